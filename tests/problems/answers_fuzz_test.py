"""Hostile answers: whatever a model writes into a box has one of three verdicts, and none is 'right'.

The strings come from a seeded grammar. None has the digits of GOLDS, so that none can equal them.
"""

from collections import Counter
import random

import pytest

from gen_ssd.problems import answers
from gen_ssd.problems import children

GOLDS = ["7391", r"\frac{\pi}{7391}", "x+7391", "(7391,2)", r"\{2,7391\}", "x>7391", "7391 m"]
VERDICTS = {"right", "wrong", "unverifiable"}
ATOMS = [
  *("0", "1", "-5", "12", "0.5", ".5", "1,234", "1e5", "x", "y", "n", "pi", "oo", "E", "I", "zoo"),
  *(r"\pi", r"\infty", r"\theta", r"\emptyset", r"\mathbb{R}", r"\text{m}", r"\text{ or }"),
  *("nan", "inf", "None", "True", "lambda", "Symbol", "S.Reals", "Integer(5)", "exit()", "S"),
  *("__import__('os').system('false')", "().__class__.__bases__", "open('/dev/zero').read()"),
  *("9^{9^{9}}", "9**9**9", "10^{10^{10^{10}}}", "2^{-9999999999}", r"\binom{99999}{5000}"),
  *("\0", "\x1b[2J", "\ud800", "\udfff\ud800", "\u202e5", "\u200b", "\uff15", "\u0665", "\u2460"),
  *("\ufdfa", "\u0301\u0316", "\u221e", "\u221a5", "\u00bd", "5\u00b2", "\u2212", "\U0001f600"),
  *("'", '"', "`", "#", "%", r"\%", "&", "@", "~", "|", ";", ":", "!", "?", "\n", "\r\n", "\t"),
  *("\\", "$", "\xa0", "5!!!!"),
]
TOKENS = [
  *("{", "}", "[", "]", "(", ")", r"\{", r"\}", r"\left(", r"\right)", r"\left", r"\boxed{"),
  *(r"\fbox", r"\frac", r"\frac{", r"\sqrt", r"\sqrt[", "^", "_", "^{", "_{", "&", r"\\"),
  *(r"\begin{pmatrix}", r"\end{pmatrix}", r"\int", r"\sum_{", r"\lim_{x\to", r"\cup", r"\in"),
  *(r"\le", "<", ">", "=", r"\ne", "<think>", "</think>", "def f():", r"\input{/etc/passwd}"),
  *(r"\def\x{\x\x}\x", r"\verb|"),
]
JOINTS = ["", "", " ", "+", "-", "*", "/", r"\cdot ", "=", ",", "^", "_", "<", r"\le ", r"\cup "]
FRAMES = [
  *(r"\frac{%s}{%s}", r"\sqrt{%s%s}", r"\sqrt[%s]{%s}", "{%s}^{%s}", "%s_{%s}", r"\boxed{%s}%s"),
  *("(%s,%s)", "[%s,%s)", r"\{%s,%s\}", r"\text{%s}%s", r"\left(%s\right)%s", r"\log_{%s}{%s}"),
  *(r"\begin{pmatrix}%s\\%s\end{pmatrix}", r"\int_{%s}^{%s} x dx", r"\sum_{n=%s}^{%s} n"),
  *("%s=%s", "|%s|%s", r"\mathbf{%s}%s", r"\color{%s}%s", r"%s\pmod{%s}", r"%s\%%%s", "$%s$%s"),
  *(r"\(%s\)%s", "%s < x < %s"),
]


def _grown(rng, depth):
  """An expression of the grammar, well formed but for its atoms."""
  if depth == 0 or rng.random() < 0.3:
    return rng.choice(ATOMS)
  a, b = _grown(rng, depth - 1), _grown(rng, depth - 1)
  return rng.choice(FRAMES) % (a, b) if rng.random() < 0.5 else a + rng.choice(JOINTS) + b


def hostile(rng):
  """A string that is short, broken, deep or long."""
  kind, text = rng.random(), _grown(rng, rng.randint(0, 3))
  if kind < 0.3:  # tokens in any order
    text = "".join(rng.choice(TOKENS + ATOMS) for _ in range(rng.randint(1, 12)))
  elif kind < 0.6:  # a piece is lost, doubled or misplaced
    i, j = sorted(rng.randint(0, len(text)) for _ in range(2))
    text = rng.choice([text[:i] + text[j:], text[:j] + text[i:], text[j:] + text[:i]])
    text += rng.choice(["", "", *TOKENS])
  elif kind < 0.65:  # nested
    n = rng.choice([5, 30, 200])
    text = rng.choice(["{", "(", r"\boxed{", r"\sqrt{", "-", r"\frac{1}{"]) * n + text + "}" * n
  elif kind < 0.7:  # long
    text = rng.choice(["3", "4", "1,", "5/", "{}", "\\", " ", "x", "2^", text or "8"])
    text *= rng.choice([99, 450, 5000])
  return text.replace("7391", "")


def graded(seed, count):
  """Counts of the grades of `count` hostile strings as answers and as golds."""
  rng = random.Random(seed)
  strings = [hostile(rng) for _ in range(count)]
  golds = [rng.choice(GOLDS) for _ in strings]
  for gold, text in zip(golds, strings):
    assert answers.verdict(gold, text) in {"wrong", "unverifiable", None}, (gold, text)
    assert answers.last_number_right(gold, text) in {False, None}, (gold, text)
    assert answers.compare(text, text) in {"right", "unverifiable"}, text
  found = {}
  with answers.Grader(seconds=0.5) as grader:
    for name, pairs in {
      "as answers": [(gold, rf"so \boxed{{{text}}}") for gold, text in zip(golds, strings)],
      "as golds": [(text, rf"so \boxed{{{gold}}}") for gold, text in zip(golds, strings)],
    }.items():
      grades = grader.grades(pairs)
      for pair, grade in zip(pairs, grades):
        assert grade.verdict in VERDICTS and grade.verdict != "right", (*pair, grade)
      counts = Counter(g.verdict for g in grades) + Counter(g.graded_by for g in grades)
      print(f"{count} hostile strings {name}: {dict(sorted(counts.items()))}")
      found[name] = counts
  return found


@pytest.fixture
def started(monkeypatch):
  processes, real = [], children.Popen
  monkeypatch.setattr(
    children, "Popen", lambda *a, **k: processes.append(real(*a, **k)) or processes[-1]
  )
  return processes


@pytest.mark.parametrize("seed, count", [(0, 300), pytest.param(1, 20_000, marks=pytest.mark.slow)])
def test_every_hostile_string_has_a_verdict_and_none_is_right(started, seed, count):
  found = graded(seed, count)
  assert all(min(n["math-verify"], n["rule"]) > count / 20 for n in found.values())
  assert not any(n["crash"] for n in found.values())
  assert started and all(p.returncode is not None for p in started), "a process is left"


def test_code_in_an_answer_is_not_run(tmp_path):
  canary = tmp_path / "x"
  codes = [f"open('{canary}','w')", f"__import__('os').system('touch {canary}')"]
  pairs = [(form % code, form % code + "+1") for code in codes for form in ("%s", r"\frac{%s}{2}")]
  with answers.Grader() as grader:
    for gold, answer in pairs:
      grader.compare(gold, answer)
      grader.compare("5", answer)
      grader.compare(answer, "5")
    assert grader.counts["slow"] >= 4
  assert not canary.exists()
