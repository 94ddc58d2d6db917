"""Extracts answers from texts and grades them: 'right', 'wrong' or 'unverifiable'."""

from collections import Counter
from collections.abc import Sequence
import math
import os
import re
from typing import Literal, NamedTuple

from gen_ssd.problems import children
from gen_ssd.problems import forms

Verdict = forms.Verdict
GradedBy = Literal["rule", "math-verify", "timeout", "crash"]


class Grade(NamedTuple):
  """A verdict and what it comes from; after a timeout or a crash it is 'unverifiable'."""

  verdict: Verdict
  graded_by: GradedBy


# A minus after a word or a closing bracket is a subtraction, not a sign.
LAST_NUMBER = re.compile(rf"((?<![\w)\]}}])-)?(?:\\?\$)?({forms.DIGITS})", re.ASCII)
# Escapes, boxes with braces, boxes without (`\boxed 5`), and single braces.
BOX_TOKENS = re.compile(
  r"\\\\|\\[{}]|(?P<box>\\f?box(?:ed)?\s*\{)"
  r"|\\f?box(?:ed)?(?![A-Za-z])\s*(?P<bare>(?=[-+.\d\\])(?:[^\s${}]|\{[^{}]*\})+)|[{}]"
)


def _after_thinking(text):
  """The text after the last `</think>`; empty when a `<think>` is still open."""
  tail = text.rpartition("</think>")[2]
  return "" if "<think>" in tail else tail


def extract_boxed(text: str) -> str | None:
  r"""Content of the last complete, non-empty \boxed{} or \fbox{} after the thinking, or None.

  Of nested boxes it is the inner one.
  """
  text, stack, last, content = _after_thinking(text), [], -1, None
  for token in BOX_TOKENS.finditer(text):
    start, found = token.start(), ""
    if token["bare"]:
      found = token["bare"].rstrip(".,;:!?\\")
    elif token["box"] or token[0] == "{":
      stack.append((start, token.end(), bool(token["box"])))
    elif token[0] == "}" and stack:
      start, inside, boxed = stack.pop()
      found = text[inside : token.start()].strip() if boxed and start > last else ""
    if found:
      last, content = start, found
  return content


def _join_thousands(text):
  """Replaces LaTeX's thousands separators by commas, and the Unicode minus by a hyphen."""
  return re.sub(r"\{,\}|,\\!|(?<=\d)\\,(?=\d{3}(?!\d))", ",", text).replace("\u2212", "-")


def extract_last_number(text: str) -> str | None:
  """The last number after the thinking as plain digits ('-1234.5'), or None; 4 for `3/4`."""
  numbers = LAST_NUMBER.findall(_join_thousands(_after_thinking(text)))
  return "".join(numbers[-1]).replace(",", "") if numbers else None


def _normal(answer):
  """The answer without boxes, spacing commands, dollar signs and final full stop; one \\frac."""
  answer = forms.plain((extract_boxed(answer) if "box" in answer else None) or answer)
  answer = re.sub(r"\\!|\\?\$|\\(?:left|right)(?![A-Za-z])\.?", "", _join_thousands(answer))
  answer = re.sub(r"\\[dt]frac", r"\\frac", re.sub(r"(?<!\\)\\[,;: ]|~", " ", answer))
  # Keep spaces that separate: `3 1/2` is not `31/2`, `1, 200` is not `1,200`.
  answer = re.sub(r"(?<![A-Za-z0-9,])\s+|\s+(?![A-Za-z0-9])", "", answer)
  return answer.removesuffix(".")


def _is_number(answer):
  return bool(forms.NUMBER.fullmatch(_normal(answer)))


def compare(gold: str, answer: str) -> Verdict | None:
  """Verdict on two bare answers, or None when only math-verify can tell. Starts no process."""
  return _by_rule(_normal(gold), _normal(answer))


def _by_rule(gold, answer):
  if not gold or not answer:
    return "wrong" if gold else "unverifiable"
  return forms.decide(gold, answer)


def verdict(gold: str, text: str) -> Verdict | None:
  """Verdict on a text by its boxed answer, or None when only math-verify can tell.

  This is the rule for keeping traces: a text without a complete box is 'wrong', whatever its last
  number is. So is a text that was cut off at the length limit; count those separately.
  """
  return compare(gold, extract_boxed(text) or "")


def last_number_right(gold: str, text: str) -> bool | None:
  """Whether the boxed number, or else the last number, equals gold; None if gold is no number.

  More lenient than `verdict`; use it to measure models, not to keep traces.
  """
  if not _is_number(gold):
    return None
  box = extract_boxed(text) or ""
  number = box if _is_number(box) else extract_last_number(box) or extract_last_number(text)
  return compare(gold, number or "") == "right"


class Grader:
  """Grades answers. math-verify, in child processes, decides what `compare` cannot.

  A child is a fresh interpreter without JAX, not a fork. There are at most `workers` of them, by
  default one for each CPU, and never more than there were undecided pairs at once: the first starts
  when it is first needed. Use `with` or call `close`; use it from one thread at a time.

  A verdict depends on the pair, not on how busy the machine is. `seconds` is the CPU time for a
  pair. One that needs more is a timeout: 'unverifiable', and not tried again. A child that dies
  otherwise, or that is still silent after a long time of the wall clock, is a crash, for which the
  pair may not be to blame: the machine was short of memory, for example. The pair is tried once more
  in a fresh child, and only a second crash makes it 'unverifiable'. Everything but a crash is
  remembered for equal pairs, which need not be wrong because the machine once was in trouble.

  `counts` has the number of pairs decided by `compare` (fast) and given to children (slow), of
  timeouts, and of crashes, those included after which a second child had an answer.

  Raises ValueError when `seconds` is not above 0 or `workers` is below 1.
  """

  def __init__(self, seconds: float = 4.0, workers: int | None = None):
    if not seconds > 0:
      raise ValueError(f"seconds is {seconds}; it must be above 0")
    if workers is not None and workers < 1:
      raise ValueError(f"workers is {workers}; it must be 1 or more, or None for one for each CPU")
    self.counts, self._cache = Counter(), {}
    self._children = children.Children(seconds, workers or os.cpu_count() or 1)

  def __enter__(self) -> "Grader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Kills and reaps the children. The grader can still be used."""
    self._children.close()

  def grades(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
    """Grades of (gold, text) pairs in their order, each as `grade` has it.

    Pairs that need math-verify are shared among the children, each as it becomes free: a pair that
    needs all its time holds up one child, not the others. Equal pairs are asked once.

    Raises RuntimeError when math-verify does not start.
    """
    return self._grades([(gold, extract_boxed(text) or "") for gold, text in pairs])

  def grade(self, gold: str, text: str) -> Grade:
    """Grade of a text by its boxed answer; 'wrong' without a complete box, see `verdict`."""
    return self.grades([(gold, text)])[0]

  def equivalent(self, a: str, b: str) -> bool:
    """Whether two bare answers are equal in either order: math-verify is not symmetric."""
    return self.compare(a, b) == "right" or self.compare(b, a) == "right"

  def compare(self, gold: str, answer: str) -> Verdict:
    """Verdict on two bare answers. Raises RuntimeError when math-verify does not start."""
    return self._grades([(gold, answer)])[0].verdict

  def _grades(self, pairs):
    pairs = [(_normal(gold), _normal(answer)) for gold, answer in pairs]
    by_rule = [_by_rule(*pair) for pair in pairs]
    hard = [pair for pair, decided in zip(pairs, by_rule) if not decided]
    if fast := len(pairs) - len(hard):
      self.counts["fast"] += fast
    found = {pair: self._cache[pair] for pair in hard if pair in self._cache}
    found |= self._ask([pair for pair in dict.fromkeys(hard) if pair not in found])
    return [
      Grade(decided, "rule") if decided else found[pair] for pair, decided in zip(pairs, by_rule)
    ]

  def _ask(self, pairs):
    """{pair: Grade} by math-verify. Remembers what is no crash."""
    if not pairs:
      return {}
    self.counts["slow"] += len(pairs)
    found = {}
    for pair, asked in zip(pairs, self._children.ask(pairs)):
      if asked.crashes:
        self.counts["crashes"] += asked.crashes
      if asked.said == "timeout":
        self.counts["timeouts"] += 1
      if asked.said in ("timeout", "crash"):
        found[pair] = Grade("unverifiable", asked.said)
      else:
        found[pair] = Grade(asked.said, "math-verify")
      if asked.said != "crash":
        self._cache[pair] = found[pair]
    return found


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate of P(at least one of k samples is right), from c right ones of n.

  Chen et al., 2021, arXiv:2107.03374, equation 1. Raises ValueError unless 0 <= c <= n and
  1 <= k <= n.
  """
  if not (0 <= c <= n and 1 <= k <= n):
    raise ValueError(f"n={n}, c={c}, k={k}: need 0 <= c <= n and 1 <= k <= n")
  return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0
