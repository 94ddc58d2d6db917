"""What does each setting of the method change? One at a time, with a smaller quickstart.

`gen-ssd sweep --config=configs/ablation.py --workdir=runs/ablation` runs the 17 items and compares
them.
"""

from configs import quickstart


def sweep():
  yield {}  # K = 4, a step, perplexity, the 0.99 quantile, temperature 1, 128 cold-start traces
  for k in (1, 2, 8):
    yield {"select.k": k}
  for c in (4, 8, 16):
    yield {"select.c": c, "select.delimiters": ()}
  yield {"select.scorer": "rsr"}
  for scorer in ("random", "anti"):
    yield {"select.scorer": scorer, "select.threshold": "off"}  # theirs would mean nothing
  for threshold in ("off", 2.0):
    yield {"select.threshold": threshold}
  for quantile in (0.9, 0.8):
    yield {"select.quantile": quantile}
  for temperature in (0.6, 1.2):
    yield {"select.temperature": temperature}
  yield "no_cold_start", {"select.chooser": "base"}


def get_config(arg=""):
  c = quickstart.get_config(arg)
  c.name = "ablation"
  c.problems.update(train=320, test=300)
  c.train.steps = 150
  c.arms = {"gen_ssd": {}}
  return c
