"""Two processes of four devices, as on a pod: the same files and weights as in one process."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from model_test import golden
import numpy as np
from safetensors.numpy import load_file

SCRIPT = """
import sys
import jax
if sys.argv[2] != "alone":
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", 2, int(sys.argv[2]))
import dataclasses, pathlib
import numpy as np
import tiny
import translate_test
from gen_ssd import answers, collect, config, data, mesh, model, problems, stages, tokens, train
from gen_ssd import weights
out = pathlib.Path(sys.argv[1])
mesh.start(2)
tokenizer = tokens.load_tokenizer(stages.directory("bundled/teacher"))
writer = collect.Writer(tiny.build(tiny.TEACHER), tokenizer, (tokenizer.eos_token_id, 7, 9, 11),
                        tiny.build(tiny.STUDENT), tokenizer)
select = config.Select(k=2, c=4, rows=8, prompt=40, max_tokens=16, shard_rounds=3, loop_window=8)
with answers.Verifier() as verifier:
  rows = collect.collect(writer, problems.bundled("test", 12), select, out / "traces",
                         verifier=verifier)
  other = dataclasses.replace(
      writer, student=tiny.build(dataclasses.replace(tiny.STUDENT, vocab=304)),
      student_tokenizer=translate_test.byte_level(40), translate=True)
  collect.collect(other, problems.bundled("test", 8), dataclasses.replace(select, prompt=88),
                  out / "translated", verifier=verifier)
shape = dataclasses.replace(tiny.STUDENT, rows=train.AXES, tensor=None)
net = model.Transformer(shape, lambda name, dims: mesh.place(
    tiny.arrays(dataclasses.replace(shape, rows=None))[name], model.spec(shape, name, train.AXES)))
settings = config.Train(steps=3, rows=8, length=24, warmup=1, block=24, save_every=2)
pairs = [([6] * 3, r["ids"][:12]) for r in rows]
net = train.fit(net, data.Rows(pairs, 24), settings, out / "train")
whole = jax.jit(lambda x: jax.sharding.reshard(x, jax.P()))(net.embed[...])
if jax.process_index() == 0:
  np.save(out / "embed.npy", np.asarray(whole))
read, fill = [], weights._fill
weights._fill = lambda part, *a: read.append(part.size) or fill(part, *a)
for weights.PIECE in (1 << 26, 0):  # whole leaves, then a few layers at a time
  net = weights.load(sys.argv[-1], weights.read_shape(sys.argv[-1]), train.AXES)
weights.save(out / "export", net, sys.argv[-1])
(out / f"read-{jax.process_index()}").write_text(str(sum(read) // 2))
"""


def run(folder, *args, devices):
  folder.mkdir(exist_ok=True)
  here = pathlib.Path(__file__).parent
  env = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{here}:{here.parent}",
  }
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, str(folder), *map(str, args)],
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_write_what_one_writes(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  source, _, _ = golden("gemma3", tmp_path / "source")
  pair = [run(tmp_path / "two", i, port, source, devices=4) for i in range(2)]
  errors = [p.communicate(timeout=400)[1] for p in pair]
  assert [p.returncode for p in pair] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
  alone = run(tmp_path / "one", "alone", source, devices=8)
  error = alone.communicate(timeout=400)[1]
  assert alone.returncode == 0, error[-3000:]
  for kind in ("traces", "translated"):
    one, two = (
      {p.name: p.read_bytes() for p in (tmp_path / n / kind).iterdir()} for n in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) >= 5
    for name in one:
      if name.startswith("traces"):
        ids = [[json.loads(line)["ids"] for line in f[name].splitlines()] for f in (one, two)]
        assert ids[0] == ids[1]
  total = sum(x.size for x in load_file(source / "model.safetensors").values())
  mine = [int((tmp_path / "two" / f"read-{i}").read_text()) for i in range(2)]
  assert (tmp_path / "one" / "read-0").read_text() == str(total)
  assert sum(mine) >= total and max(mine) < 0.55 * total  # its half, and the small ones of all
  for folder in ("one", "two"):
    found, want = (
      load_file(f / "model.safetensors") for f in (tmp_path / folder / "export", source)
    )
    assert found.keys() == want.keys()
    for name in want:
      np.testing.assert_array_equal(found[name], want[name], err_msg=name)
  np.testing.assert_allclose(
    np.load(tmp_path / "one" / "embed.npy"), np.load(tmp_path / "two" / "embed.npy"), atol=1e-5
  )
