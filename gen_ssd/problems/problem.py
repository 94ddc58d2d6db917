"""What a problem is, and how its text is named."""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem: `answer` is text, `level` its difficulty (0 when unknown)."""

  uuid: str
  source: str
  split: str
  problem: str
  answer: str
  level: int = 0


def digest(text):
  return hashlib.sha256(text.encode()).hexdigest()
