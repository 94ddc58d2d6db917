"""A real pair on a laptop: --config=configs/laptop.py[:PAIR[,PROBLEMS,TEST[,TEST ...]]]

PAIR is `qwen` (Qwen2.5-Coder-1.5B-Instruct teaches the 0.5B model; one vocabulary), `smollm2`
(Qwen2.5-Coder-0.5B-Instruct teaches SmolLM2-135M-Instruct; two vocabularies) or TEACHER,STUDENT:
directories, GGUF files or hub names. Without PROBLEMS and TEST, both train on GSM8K and are tested
on GSM8K and SVAMP, from the hub. For example, with local files only:

  configs/laptop.py:teacher.gguf,student.gguf,gsm8k:train.jsonl,gsm8k:test.jsonl,svamp:test.jsonl

Generation and training use bfloat16 on a CPU with instructions for it (AVX-512 BF16 or AMX), where
it is faster, and float32 on others. To continue a run on another kind of CPU, keep its dtypes, with
--config.teacher.dtype, --config.student.dtype, --config.warm_up.dtype and --config.train.dtype.
"""

import pathlib
import re

from configs.study import ARMS
from gen_ssd import config
from gen_ssd.errors import UserError
from gen_ssd.problems import sets

PAIRS = {
  "qwen": ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"),
  "smollm2": ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
KNOWN = ("gsm8k", "gsm8k", "svamp")  # what to train on, and the tests
USAGE = "configs/laptop.py:PAIR[,PROBLEMS,TEST[,TEST ...]]"

# Of two tried on 32 training questions with Qwen2.5-Coder-0.5B, greedily and cut at 256 tokens: 22 %
# right (95 % interval 9 to 38), and 16 % (3 to 28) with a solved example in the system message. Two
# thirds of the answers were cut, so traces may be longer here.
SYSTEM = (
  "Solve the problem in a few short steps, each on its own line. "
  "Put only the final number within \\boxed{} on the last line."
)


def dtype(cpu=pathlib.Path("/proc/cpuinfo")):
  """The faster one on this machine, whose features Linux lists in a file."""
  features = cpu.read_text() if cpu.is_file() else ""
  return "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", features) else "float32"


def get_config(arg="qwen"):
  parts = [part.strip() for part in arg.split(",")]
  if parts[0] in PAIRS:
    parts[:1] = PAIRS[parts[0]]
  if len(parts) == 2:
    parts += KNOWN
  if not all(parts) or len(parts) < 4:
    raise UserError(
      f"{arg!r}: the config is {USAGE}, where PAIR is {', '.join(PAIRS)} or TEACHER,STUDENT"
    )
  teacher, student, problems, *tests = parts

  c = config.default()
  c.name = "laptop"
  c.translate = True  # if the vocabularies differ
  c.teacher.path, c.student.path = teacher, student
  for model in (c.teacher, c.student):
    model.update(unroll=True, dtype=dtype())
  c.problems.update(source=problems, system=SYSTEM, train=200, cold_start=64, held_out=16)
  c.tests = {sets.name(source): dict(source=source, limit=300) for source in tests}
  if len(c.tests) < len(tests):
    raise UserError(f"{arg!r}: two tests have one name: {', '.join(map(sets.name, tests))}")

  # Many slots, as a CPU multiplies 64 rows in one and a half times the time of 16. A step is a line.
  step = dict(c=32, delimiters=("\n",), loop_window=64)
  length = dict(prompt=256, max_tokens=384, shard_rounds=32)
  c.select.update(k=4, slots=32, temperature=0.8, threshold="calibrated", **step, **length)
  # Its chunks end with a step, too, as their scores calibrate the threshold.
  c.cold_start.update(temperature=0.6, slots=64, **step, **length)
  # Where nothing is chosen, chunks are full. More slots take longer to read again at a fence.
  plain = dict(slots=128, delimiters=(), shard_rounds=64)
  c.arms = {name: ARMS[name] | plain for name in ("standard_kd", "rejection", "posthoc")}
  c.arms.gen_ssd = {}
  training = dict(
    batch_size=2,
    accumulate=2,
    length=256 + 384 + 32,
    block=672,
    learning_rate=1e-4,
    weight_decay=0.0,
    unroll=True,
    dtype=dtype(),
    too_long="drop",
  )
  c.warm_up.update(steps=10, warmup_steps=2, save_every=10, **training)
  c.train.update(steps=30, warmup_steps=3, save_every=10, **training)
  c.evaluate.update(slots=128)
  c.references = ("teacher", "base", "cold_start")
  return c
