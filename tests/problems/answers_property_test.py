"""Properties of extraction and of the rules, for texts and numbers of all kinds; starts no process."""

from decimal import Decimal
from fractions import Fraction

import hypothesis
from hypothesis import strategies as st
import pytest

from gen_ssd.problems import answers
from gen_ssd.problems.answers import compare
from gen_ssd.problems.answers import extract_boxed

# The same examples in every run; no limit on time, which a busy machine would exceed.
SETTINGS = hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
VERDICTS = ("right", "wrong", "unverifiable")
PARTS = [
  *(r"\boxed{", r"\fbox {", r"\boxed ", r"\box", "box", "{", "}", r"\{", r"\}", "\\", "\\\\"),
  *("<think>", "</think>", r"\frac", r"\dfrac{1}{2}", r"\left(", r"\right.", r"\text{m}", r"\!"),
  *(r"\,", "{,}", ",", ".", "..", "-", "\u2212", "+", "$", r"\$", "%", r"\%", "~", " ", "\n"),
  *("0", "5", "12", "000", "1,234", ".5", "5.0", "x", "=", "\u0663", "\x00", "\ud800"),
]
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=12).map("".join)
# Between boxes: braces need not balance; no command and no tag.
prose = st.text(st.sampled_from("ab 1.,{}$=\n"), max_size=12)
# Inside a box: braces balance, or are escaped.
balanced = st.recursive(
  st.text(st.sampled_from("abx 15.,$+-=\n"), max_size=4)
  | st.sampled_from([r"\{", r"\}", r"\frac"]),
  lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map("{{{}}}".format),
  max_leaves=6,
)
integers = st.integers(-(10**30), 10**30) | st.integers(-20, 20)
decimals = st.builds(lambda n, places: Decimal(n).scaleb(-places), integers, st.integers(0, 9))


@st.composite
def spelled(draw, numbers, percent=False):
  """(value, one way to write it) of a number."""
  number = draw(numbers)
  comma = draw(st.sampled_from([",", "{,}", r"\,", r",\!", ""]))
  word = f"{abs(number):,f}" if isinstance(number, Decimal) else f"{abs(number):,d}"
  word = word.replace(",", comma)
  if "." not in word:
    word += draw(st.sampled_from(["", ".0", ".00", "."]))
  elif draw(st.booleans()):
    word = word.removeprefix("0") + "00"
  unit = draw(st.sampled_from(["", "%", r"\%"])) if percent and not word.endswith(".") else ""
  sign = draw(st.sampled_from(["-", "- ", "\u2212"] if number < 0 else ["", "+"]))
  before, after = draw(
    st.sampled_from(
      [("", ""), (" ", "\n"), ("$", "$"), (r"\$", ""), (r"\boxed{", "}"), ("$ ", " $")]
    )
  )
  return Fraction(number), f"{before}{sign}{word}{unit}{after}"


class Unasked(answers.Grader):
  """A grader whose child always crashes."""

  def _ask(self, pairs):
    return {pair: answers.Grade("unverifiable", "crash") for pair in pairs}


@SETTINGS
@hypothesis.given(gold=texts, text=texts)
def test_any_text_has_a_verdict(gold, text):
  assert Unasked().grade(gold, text).verdict in VERDICTS
  assert answers.verdict(gold, text) in (*VERDICTS, None)
  assert answers.last_number_right(gold, text) in (True, False, None)


@SETTINGS
@hypothesis.given(gold=texts, answer=texts)
@hypothesis.example(gold="..", answer="")  # what is stripped once must not be stripped twice
def test_the_grader_says_what_the_rules_say_where_they_decide(gold, answer):
  by_rule = compare(gold, answer)
  (grade,) = Unasked()._grades([(gold, answer)])
  assert grade == ((by_rule, "rule") if by_rule else ("unverifiable", "crash"))


@SETTINGS
@hypothesis.given(
  before=prose,
  box=st.sampled_from([r"\boxed", r"\fbox", r"\box", r"\boxed "]),
  inside=balanced.filter(str.strip),
  after=prose,
)
def test_the_content_of_a_box_is_found_in_any_text(before, box, inside, after):
  text = f"{before}{box}{{{inside}}}{after}"
  assert extract_boxed(text) == inside.strip()
  assert extract_boxed(rf"\boxed{{first}} {text} \boxed{{open") == inside.strip()
  assert extract_boxed(rf"\boxed{{outer {box}{{{inside}}} }}") == inside.strip()


@SETTINGS
@hypothesis.given(thoughts=texts, said=texts.filter(lambda text: "think>" not in text), gold=texts)
def test_thinking_is_ignored(thoughts, said, gold):
  text = f"<think>{thoughts}</think>{said}"
  for read in (extract_boxed, answers.extract_last_number):
    assert read(text) == read(said)
    assert read(f"{thoughts}<think>{said}") is None
  assert answers.verdict(gold, text) == answers.verdict(gold, said)
  assert answers.last_number_right(gold, text) == answers.last_number_right(gold, said)


@SETTINGS
@hypothesis.given(answer=texts)
def test_an_answer_equals_itself(answer):
  same = compare(answer, answer)
  assert same == "right" or (same == "unverifiable" and not answers._normal(answer))
  # An answer of letters and digits is never empty, so that this is not about empty ones only.
  assert compare(f"x{answer}", f"x{answer}") == "right" or "box" in answer


@pytest.mark.parametrize("numbers", [integers, decimals], ids=["integers", "decimals"])
def test_a_number_equals_itself_in_all_its_spellings(numbers):
  @SETTINGS
  @hypothesis.given(data=st.data(), number=numbers)
  def check(data, number):
    same = spelled(st.just(number), percent=True)
    (_, gold), (_, answer) = data.draw(same), data.draw(same)
    assert compare(gold, answer) == "right", (gold, answer)

  check()


@SETTINGS
@hypothesis.given(a=spelled(integers), b=spelled(integers), near=st.integers(1, 3))
def test_different_integers_are_wrong(a, b, near):
  if a[0] != b[0]:
    assert compare(a[1], b[1]) == "wrong"
  assert compare(a[1], str(int(a[0]) + near)) == "wrong"


@SETTINGS
@hypothesis.given(a=spelled(decimals), step=st.integers(-(10**7), 10**7).filter(bool))
def test_different_decimals_are_wrong_unless_one_is_the_other_rounded(a, step):
  value, gold = a
  whole, billionths = divmod(abs(other := int(value * 10**9) + step), 10**9)
  answer = f"{'-' * (other < 0)}{whole}.{billionths:09d}"
  same = abs(step) * 10**6 <= max(abs(other), abs(int(value * 10**9)))
  whole_numbers = value.denominator == 1 and other % 10**9 == 0
  assert compare(gold, answer) == ("right" if same and not whole_numbers else "wrong")
