"""The complete method with the bundled models: minutes on a laptop, no download.

Four arms use the same problems and the same teacher. Each trains the same base student for the same
number of updates.
"""

from gen_ssd import config

STEP = (
  ".",
)  # a chunk ends with a step, whose last token is a full stop; a step has 6 to 10 tokens


def get_config(arg=""):
  del arg
  c = config.default()
  c.name = "quickstart"
  c.teacher.update(path="bundled/teacher", unroll=True)
  c.student.update(path="bundled/student", unroll=True)
  # We tuned the settings on problems of seed 0.
  c.problems.update(train=640, cold_start=160, held_out=32, test=400, seed=1)

  c.select.update(
    k=4,
    c=16,
    delimiters=STEP,
    slots=32,
    prompt=48,
    max_tokens=80,
    temperature=1.0,
    scorer="perplexity",
    threshold="calibrated",
    quantile=0.99,
  )
  c.cold_start.update(c=16, delimiters=STEP, slots=32, prompt=48, max_tokens=80)
  c.arms = {
    "standard_kd": dict(k=1, threshold="off"),
    "random": dict(scorer="random", threshold="off"),
    "posthoc": dict(granularity="trace", threshold="off"),
    "gen_ssd": dict(),
  }
  training = dict(batch_size=16, length=128, learning_rate=2e-3, warmup_steps=20, unroll=True)
  c.warm_up.update(steps=60, **training)
  c.train.update(steps=300, **training)
  c.evaluate.update(slots=64, temperature=0.0)
  return c
