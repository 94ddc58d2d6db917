"""Teacher Llama-3.3-70B-Instruct on 8 devices, student Llama-3.1-8B-Instruct.

For v5p:2x2x2 or v5p:2x2x4.
"""

from configs import paper


def get_config(arg=""):
  c = paper.get_config(arg)
  c.name = "llama-70b-8b"
  c.model_parallel = 8
  c.teacher.path = "meta-llama/Llama-3.3-70B-Instruct"
  c.student.path = "meta-llama/Llama-3.1-8B-Instruct"
  for part in (c.select, c.cold_start):
    part.max_tokens = 4096
  for part in (c.warm_up, c.train):
    part.update(batch_size=16, accumulate=2)
  return c
