"""Teacher DeepSeek-R1-Distill-Qwen-32B on 4 devices, student DeepSeek-R1-Distill-Qwen-1.5B.

For v5p:2x2x1 or v5p:2x2x2.

The original chat template deletes the thinking part of assistant turns. The student is trained and
exported with a template that keeps it. There is no system message, as the authors of these models
recommend.
"""

import pathlib

from configs import paper


def get_config(arg=""):
  c = paper.get_config(arg)
  c.name = "r1-32b-1p5b"
  c.model_parallel = 4
  c.teacher.path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
  c.student.path = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
  c.student.chat_template = str(
    pathlib.Path(__file__).parent / "templates" / "r1_keeps_thoughts.jinja"
  )
  c.problems.system = ""
  for part in (c.select, c.cold_start):
    part.update(slots=32, max_tokens=16384)
  c.warm_up.length = c.train.length = 16384
  c.evaluate.max_tokens = 32768
  return c
