"""The first false equation of a text."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from gen_ssd.problems import equations
from tests import paths


def found(text):
  equation = equations.first_false(text)
  if equation is None:
    return None
  assert text[equation.start : equation.end].strip() == equation.text
  return equation.text


@pytest.mark.parametrize(
  "text,equation",
  [
    ("So 3 + 4 = 8 .", "3 + 4 = 8"),
    ("3+4=7 and then 7-2=6, so 6", "7-2=6"),
    ("2+3*4=20", "2+3*4=20"),
    ("2 + 3 * 4 = 14 = 15 apples", "14 = 15"),
    ("x = 3 + 4 = 8", "3 + 4 = 8"),
    ("He pays $5 + $3.50 = $8.", "5 + $3.50 = $8"),
    (r"\[ 6 \times 7 = 41 \]", r"6 \times 7 = 41"),
    (r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}", r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}"),
    ("6 x 7 = 43", "6 x 7 = 43"),
    ("6x7=43", "6x7=43"),
    ("6 × 7 ÷ 2 = 20", "6 × 7 ÷ 2 = 20"),
    ("(2 + 3) * 4 = 14", "(2 + 3) * 4 = 14"),
    ("(3 + 4 = 8)", "3 + 4 = 8"),
    ("1) 3 + 4 = 8", "3 + 4 = 8"),
    ("1. 3 + 4 = 8", "3 + 4 = 8"),
    ("- 3 + 4 = 8", "3 + 4 = 8"),
    ("**3 + 4 = 8**", "3 + 4 = 8"),
    ("1,000 + 1 = 1,002", "1,000 + 1 = 1,002"),
    ("10 − 4 = 7", "10 − 4 = 7"),
    ("0.1 + 0.2 = 0.4", "0.1 + 0.2 = 0.4"),
    ("7 / 2 = 3", "7 / 2 = 3"),
    ("one line\n2 * 2 = 4\n4 * 2 = 9 cakes", "4 * 2 = 9"),
  ],
)
def test_a_false_equation_is_found(text, equation):
  assert found(text) == equation


@pytest.mark.parametrize(
  "text",
  [
    "3 + 4 = 7",
    "0.1 + 0.2 = 0.3",  # exactly, unlike floats
    "10 / 3 = 3.33 and 2 / 3 = 0.67 and 2 / 3 = 0.66",
    "1 / 2 + 1 / 3 = 5 / 6",
    "2 + 3 * 4 = 14 and (2 + 3) * 4 = 20",
    "8 - -2 = 10",
    "3x + 4 = 10, 3x - 4 = 10, x + 3 = 10, 2x = 6, 3 + 4 = 8x, 3 + 4 = 8 - y",
    "f(3) + 1 = 10, 2^3 + 1 = 9, 2 ^ 3 + 1 = 9, 3! + 1 = 7, 1 + 1 = 2^1, 3 + 3 = 3!",
    "Day 1 = 5 pages, 1 km = 1000 m",
    "half of 10 + 2 = 7, 20% of 50 + 10 = 20, 3 / 4 * 100 = 75%, 3 / 4 = 75 %",
    "17 / 5 = 3 remainder 2, 17 / 5 = 3 R 2, 7 + 8 = 3 (mod 12), 17 / 5 = 3 with a remainder of 2",
    "3,5 + 1 = 4,5",
    "4 apples + 3 + 2 = 9",
    "Step 2 - 3 + 4 = 7",
    "2(3) + 1 = 7, 1 1/2 + 1 = 2 1/2, 2 ** 3 = 8",
    "5 / 0 = 7, 3 + = 4, ( = ), = 3, 3 + 4 =",
    r"\sqrt{16} + 1 = 5, \frac{x}{2} + 3 = 5, 3 + 4 = 7\pi, |3 - 5| + 1 = 3",
    "3 + 4 == 8, 3 + 4 != 8, 3 + 4 >= 6, 3 + 4 <= 8",
    "7" * 100 + " + 1 = 2",
    " + ".join("1" * 200) + " = 3",
    "(" * 5000 + "1 + 1" + ")" * 5000 + " = 3",
    "X*6 + 9 = 87, (X-2)*9/2 = 63, 2 pounds * 1/3 = 2/3 pounds, ¾ x 3/3 = 9/12",
    "12 x 1 and 1/4 = 15, 17/3 = 5 and 2/3 loads, 2.50 - 2.24 = 26 cents, 25 / 1/3 = 75",
    "",
  ],
)
def test_what_is_true_or_not_plain_arithmetic_is_passed_over(text):
  assert found(text) is None


def test_a_unit_in_latex_does_not_hide_a_false_equation():
  assert found(r"3 + 4 = 8\text{ apples}") == "3 + 4 = 8"
  assert found(r"\(3 + 4 = 8\)") == "3 + 4 = 8"


@given(st.lists(st.integers(0, 99), min_size=2, max_size=5), st.integers(-2, 2))
def test_a_sum_is_false_exactly_when_it_does_not_add_up(terms, wrong):
  text = f"{' + '.join(map(str, terms))} = {sum(terms) + wrong}."
  assert (found(text) is None) == (wrong == 0)


@given(st.text(alphabet="0123456789.,+-*/=()xX× $\\{}frac%\n", max_size=60))
def test_any_text_is_read_without_an_error(text):
  found(text)


def test_gold_solutions_have_hardly_any_false_equation():
  path = paths.DATA / "gsm8k" / "test.jsonl"
  if not path.exists():
    pytest.skip(f"{path} is not there")
  texts = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
  wrong = [e for text in texts if (e := found(text))]
  assert len(texts) > 1000 and len(wrong) < 0.01 * len(texts), wrong[:20]
