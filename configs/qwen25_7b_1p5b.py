"""Teacher Qwen2.5-7B-Instruct, student Qwen2.5-1.5B: one device with 80 GB of memory, or more."""

from configs import paper


def get_config(arg=""):
  c = paper.get_config(arg)
  c.name = "qwen25-7b-1p5b"
  c.teacher.path, c.student.path = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B"
  for part in (c.select, c.cold_start):
    part.max_tokens = 4096  # the teacher's answers have about 500 tokens
  return c
