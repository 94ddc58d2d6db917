"""What each process of two_processes_test.py runs, with the arguments OUT and SOURCE."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np

from gen_ssd import config
from gen_ssd import mesh
from gen_ssd.collect import loop
from gen_ssd.models import export
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.training import packing
from gen_ssd.training import train
from tests import tiny
from tests.collect import translate_test

out = pathlib.Path(sys.argv[1])
mesh.start(2)
writer = tiny.writer()
select = config.Select(k=2, c=4, slots=8, prompt=40, max_tokens=16, shard_rounds=3, loop_window=8)
with answers.Grader() as grader:
  rows = loop.collect(writer, bundled.problems("test", 12), select, out / "traces", grader=grader)
  other = dataclasses.replace(
    writer,
    student=tiny.build(dataclasses.replace(tiny.STUDENT, vocab=304)),
    student_tokenizer=translate_test.byte_level(40),
    translate=True,
  )
  loop.collect(
    other,
    bundled.problems("test", 8),
    dataclasses.replace(select, prompt=88),
    out / "translated",
    grader=grader,
  )
fsdp = dataclasses.replace(tiny.ALONE, fsdp_axes=train.AXES)
net = tiny.build(tiny.STUDENT, fsdp)
settings = config.Train(steps=3, batch_size=8, length=24, warmup_steps=1, block=24, save_every=2)
pairs = [([6] * 3, r["ids"][:12]) for r in rows]
train.fit(net, packing.Rows(pairs, 24), settings, out / "train")
mesh.barrier("trained")
last = f"process_{jax.process_count() - 1}"
if jax.process_index() == 0:  # damage that only one process finds
  for file in (out / "train" / "3" / "state" / f"ocdbt.{last}" / "d").iterdir():
    file.write_bytes(b"damaged" * 99)
mesh.barrier("damaged")
net = train.fit(tiny.build(tiny.STUDENT, fsdp), packing.Rows(pairs, 24), settings, out / "train")
whole = jax.jit(lambda x: jax.sharding.reshard(x, jax.P()))(net.embed[...])
if jax.process_index() == 0:
  np.save(out / "embed.npy", np.asarray(whole))
read, fill = [], weights._fill
weights._fill = lambda part, *a: read.append(part.size) or fill(part, *a)
for weights.PIECE in (1 << 26, 0):  # whole leaves, then a few layers at a time
  net = weights.load(sys.argv[-1], Layout(fsdp_axes=train.AXES))
export.save(out / "export", net, sys.argv[-1])
(out / f"read-{jax.process_index()}").write_text(str(sum(read) // 2))
