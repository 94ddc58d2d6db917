"""Gold answers of public sets, restated as models write them: all right, and the next number wrong.

answers_test.py has more styles. These are numbers in other forms, with units, and in fonts.
"""

import json

import pytest

from gen_ssd.problems import answers
from tests import paths

GSM8K, SVAMP = paths.DATA / "gsm8k" / "test.jsonl", paths.DATA / "svamp" / "SVAMP.json"
FULL_WIDTH = str.maketrans("0123456789", "".join(map(chr, range(0xFF10, 0xFF1A))))
STYLES = {
  "dollars and cents": lambda n: rf"\${n:,}.00",
  "one decimal": lambda n: f"{n}.0",
  "a unit in \\text": lambda n: rf"{n}\text{{ dollars}}",
  "inside \\text": lambda n: rf"\text{{{n}}}",
  "signed": lambda n: f"{n:+}",
  "full stop": lambda n: f"{n}.",
  "fraction": lambda n: rf"\frac{{{2 * n}}}{{2}}",
  "full-width": lambda n: str(n).translate(FULL_WIDTH),
  "bold, grouped": lambda n: rf"\textbf{{{n:,}}}",
  "named, thin space": lambda n: "N = " + f"{n:,}".replace(",", r"\,"),
  "upright with unit": lambda n: rf"\mathrm{{{n}~kg}}",
  "parentheses": lambda n: rf"\left({n}\right)",
}


def gsm8k():
  return [json.loads(x)["answer"].rpartition("#### ")[2] for x in GSM8K.read_text().splitlines()]


def svamp():
  return [str(x["Answer"]) for x in json.loads(SVAMP.read_text())]


@pytest.mark.parametrize("golds, file, count", [(gsm8k, GSM8K, 1319), (svamp, SVAMP, 1000)])
def test_a_gold_answer_is_right_however_it_is_restated(golds, file, count):
  if not file.is_file():
    pytest.skip(f"{file} is not there")
  found = golds()
  assert len(found) == count
  numbers = [float(gold.replace(",", "")) for gold in found]
  whole = [(gold, int(n)) for gold, n in zip(found, numbers) if n == int(n)]
  assert len(whole) > 0.99 * count
  with answers.Grader() as grader:
    for style, write in STYLES.items():
      same, other = (
        grader.grades([(gold, rf"so \boxed{{{write(n + more)}}}") for gold, n in whole])
        for more in (0, 1)
      )
      rights = sum(g.verdict == "right" for g in same)
      by_rule = sum(g.graded_by == "rule" for g in same + other) / len(same + other)
      print(f"{file.name:12} {style:18} {rights / len(whole):7.2%} right, {by_rule:4.0%} by rule")
      assert rights == len(whole), [w for w, g in zip(whole, same) if g.verdict != "right"][:3]
      bad = [w for w, g in zip(whole, other) if g.verdict != "wrong"]
      assert not bad, (style, bad[:3])
