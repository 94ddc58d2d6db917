"""Teacher Qwen2.5-7B-Instruct on 4 devices, student Qwen2.5-1.5B: v5e:2x4, v6e:2x4 or v5p:2x2x1."""

from configs import paper


def get_config(arg=""):
  c = paper.get_config(arg)
  c.name = "qwen25-7b-1p5b"
  c.model_parallel = 4
  c.teacher.path, c.student.path = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B"
  for part in (c.select, c.cold_start):
    part.max_tokens = 4096  # the teacher's answers have about 500 tokens
  return c
