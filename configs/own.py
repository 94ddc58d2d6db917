"""Your own models and problems: --config=configs/own.py:TEACHER,STUDENT,PROBLEMS[,TEST]

TEACHER and STUDENT are directories, GGUF files or hub names. PROBLEMS and TEST are files or known
sets, such as `train.jsonl` or `gsm8k:test.jsonl`; without TEST, PROBLEMS is a known set and its test
part is used.

Lengths follow from two settings, which you can override: `--config.select.max_tokens`, the longest
trace, and `--config.select.prompt`, the longest prompt. Training examples are as long as both, so
that none is cut. Both are multiples of `select.c`, the longest chunk.
"""

from ml_collections import config_dict

from gen_ssd import config
from gen_ssd.errors import UserError
from gen_ssd.problems import sets

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
USAGE = "configs/own.py:TEACHER,STUDENT,PROBLEMS[,TEST]"


def get_config(arg=""):
  parts = [part.strip() for part in arg.split(",")]
  if len(parts) not in (3, 4) or not all(parts):
    raise UserError(f"{arg!r}: {USAGE} needs three or four names, joined by commas")
  teacher, student, problems, *test = parts
  if not test and problems not in sets.SETS:
    raise UserError(f"{arg!r}: {USAGE} needs TEST when PROBLEMS is {problems!r}, not a known set")

  c = config.default()
  c.name = "own"
  c.teacher.update(path=teacher, dtype="bfloat16")
  c.student.update(path=student, dtype="bfloat16")
  c.problems.update(source=problems, test_source=(test or [problems])[0], system=SYSTEM)
  c.problems.update(train=0, test=0, cold_start=128, held_out=32)

  chunk = config_dict.FieldReference(128)  # the longest; `step` ends one earlier
  prompt = config_dict.FieldReference(512)
  max_tokens = config_dict.FieldReference(2048)
  lengths = dict(c=chunk, prompt=prompt, max_tokens=max_tokens, block=chunk * 4)
  own = {name: x.identity() for name, x in lengths.items()}  # follow, and can be changed alone
  step = config_dict.FieldReference(("\n\n", ".\n"))  # what a chunk ends with, in both
  c.select.update(k=4, slots=16, delimiters=step, loop_window=128, shard_rounds=32, **lengths)
  c.select.update(temperature=1.0, threshold="calibrated")
  c.cold_start.update(slots=16, delimiters=step.identity(), loop_window=128, shard_rounds=32, **own)
  c.arms = {
    "standard_kd": dict(k=1, threshold="off"),
    "random": dict(scorer="random", threshold="off"),
    "posthoc": dict(granularity="trace", threshold="off"),
    "gen_ssd": dict(),
  }
  training = dict(
    batch_size=8,
    accumulate=2,
    learning_rate=1e-5,
    weight_decay=0.0,
    remat=True,
    dtype="bfloat16",
  )
  for train in (c.warm_up, c.train):  # a template may open the trace with a few tokens
    train.update(length=prompt + max_tokens + chunk, block=chunk.identity(), **training)
  c.warm_up.update(steps=50, warmup_steps=5)
  c.train.update(steps=300, warmup_steps=15)
  c.evaluate.update(slots=32, temperature=0.0)
  return c
