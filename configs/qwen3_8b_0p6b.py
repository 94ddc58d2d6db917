"""Teacher Qwen3-8B with thinking on 4 devices, student Qwen3-0.6B-Base.

For v6e:2x4 or v5p:2x2x1.
"""

from configs import paper


def get_config(arg=""):
  c = paper.get_config(arg)
  c.name = "qwen3-8b-0p6b"
  c.model_parallel = 4
  c.teacher.update(path="Qwen/Qwen3-8B", thinking="on")
  c.student.path = "Qwen/Qwen3-0.6B-Base"
  for part in (c.select, c.cold_start):
    part.update(slots=16, max_tokens=16384)
  c.warm_up.length = c.train.length = 16384
  c.evaluate.max_tokens = 32768
  return c
