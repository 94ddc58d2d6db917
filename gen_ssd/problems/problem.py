"""The record of one problem, and the hash that identifies its text."""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem, its correct answer as text, and its difficulty."""

  uuid: str
  source: str  # bundled, the name of a public set, or a file
  split: str  # train, cold_start or test
  problem: str
  answer: str
  level: int = 0  # 0: unknown


def normal(text: str) -> str:
  """The text of a problem without what does not make it another one: spaces and upper case."""
  return " ".join(text.split()).casefold()


def digest(text: str) -> str:
  """SHA-256 of a text, 64 hexadecimal digits."""
  return hashlib.sha256(text.encode()).hexdigest()


def uniform(text: str) -> float:
  """A number in [0, 1) that depends on the text alone."""
  return int(digest(text)[:8], 16) / 2**32
