"""Data and evaluation for competition mathematics, after the paper; other configs add the models.

Training uses problems of MATH. Students are evaluated on AIME 2024, AIME 2025 and AMC 2023 (mean of 16
samples) and OlympiadBench (674 problems, one sample), at temperature 0.6 and top_p 0.95. We do not
know the paper's K, chunk length, temperatures and sizes; the values here are our choice.

One run produces the table of all arms. `:ARM` after the config file, or several as in
`:morsd+gen_ssd`, produces only these rows; use another workdir for them. `:RECIPE` produces the arms of
a recipe of configs/recipes.py.
"""

from configs import recipes
from configs.study import ARMS
from gen_ssd import config
from gen_ssd.errors import UserError

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def get_config(arg=""):
  names = arg.split("+") if arg else list(ARMS)
  if not {*names} <= ARMS.keys() and arg not in recipes.TABLE:
    raise UserError(
      f"{arg!r}: it must be arms joined by +, from {', '.join(ARMS)}, or a recipe: "
      f"{', '.join(recipes.TABLE)}"
    )
  c = config.default()
  c.name = "paper"
  c.problems.update(source="math", train=5000, cold_start=500, held_out=50, system=SYSTEM)
  long = dict(c=128, slots=64, prompt=2048, max_tokens=8192, block=2048, loop_window=256)
  long |= dict(shard_rounds=128)  # fences then take about 2 % of the time
  c.select.update(k=8, temperature=1.0, threshold="calibrated", **long)
  c.cold_start.update(temperature=0.6, **long)
  budget = dict(attempts=c.select.k)  # standard_kd_all: as many teacher tokens as the others
  c.seeds = 3
  training = dict(
    batch_size=8,  # a sequence for each of 8 devices: more need more memory, and are slower
    length=8192,
    accumulate=4,
    learning_rate=1e-5,
    weight_decay=0.0,
    block=1024,
    remat=True,
    dtype="bfloat16",
  )
  c.warm_up.update(steps=50, warmup_steps=5, **training)
  c.train.update(steps=500, warmup_steps=25, **training)
  c.arms = (
    recipes.TABLE[arg](c)
    if arg in recipes.TABLE
    else {name: ARMS[name] | (budget if "attempts" in ARMS[name] else {}) for name in names}
  )
  c.evaluate.update(slots=32, temperature=0.6, top_p=0.95, max_tokens=16384)
  c.tests = {
    "aime24": dict(source="aime24", samples=16),
    "aime25": dict(source="aime25", samples=16),
    "amc23": dict(source="amc23", samples=16),
    "olympiadbench": dict(source="olympiadbench"),
  }
  for who in ("teacher", "student"):
    c[who].dtype = "bfloat16"
  return c
