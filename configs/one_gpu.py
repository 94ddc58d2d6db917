"""The pairs of configs/laptop.py on one GPU: --config=configs/one_gpu.py[:PAIR[,PROBLEMS,TEST ...]]

Three seeds, 1,000 training questions and the whole test sets. The argument is that of
configs/laptop.py; without it, the pair is smollm2. Prompts and chunks are those of configs/laptop.py.
There are two more arms, a larger cold start, more slots, bfloat16 weights and more training.
"""

from configs import laptop
from configs.study import ARMS

NAMES = ("standard_kd", "rejection", "random", "posthoc", "gen_ssd_rsr")


def get_config(arg="smollm2"):
  c = laptop.get_config(arg)
  c.name = "one_gpu"
  for model in (c.teacher, c.student):
    model.update(dtype="bfloat16", unroll=False)
  c.problems.update(train=1000, cold_start=288, held_out=32)
  for test in c.tests.values():
    test.limit = 0  # all of them
  c.select.slots = 250
  # Where nothing is chosen, chunks are full, and all collections are one compiled program.
  plain = dict(slots=500, delimiters=())
  c.cold_start.update(slots=500)
  choosing = ("random", "gen_ssd_rsr")
  c.arms = {name: ARMS[name] | ({} if name in choosing else plain) for name in NAMES}
  c.arms.gen_ssd = {}
  c.seeds = 3
  training = dict(batch_size=8, accumulate=1, dtype="bfloat16", unroll=False)
  c.warm_up.update(steps=20, warmup_steps=2, save_every=20, **training)
  c.train.update(steps=60, warmup_steps=6, save_every=60, **training)
  c.evaluate.update(slots=512)
  return c
