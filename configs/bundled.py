"""Trains a bundled model from random weights: --config=configs/bundled.py:teacher, :student, ...

The teacher learns worked solutions, the students plain text of the domain.
"""

from gen_ssd import config
from gen_ssd.errors import UserError

SIZES = {
  "teacher": dict(width=128, layers=4, heads=4, head=32, hidden=256),
  "student": dict(width=64, layers=3, heads=4, head=16, hidden=128),
  "student_small": dict(width=48, layers=2, heads=4, head=12, hidden=96),
  "student_large": dict(width=96, layers=4, heads=4, head=24, hidden=192),
}


def get_config(arg="teacher"):
  if arg not in SIZES:
    raise UserError(f"configs/bundled.py:{arg}: the name must be one of {', '.join(SIZES)}")
  c = config.default()
  c.name = f"bundled-{arg}"
  c.stages = ("pretrain",)
  c.pretrain.documents = "lessons" if arg == "teacher" else "plain"
  c.pretrain.update(SIZES[arg])
  c.train.update(
    steps=4000 if arg == "teacher" else 2500,
    batch_size=32,
    length=128,
    learning_rate=4e-3,
    warmup_steps=100,
    weight_decay=0.05,
    final_rate=0.02,
    save_every=250,
    log_every=20,
  )
  return c
