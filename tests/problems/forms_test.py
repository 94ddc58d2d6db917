"""What an answer says: a table of decisions of the whole grader, and the rules one by one.

Each row is (gold, answer, verdict). Two rows that only differ in order may have different verdicts,
because the gold says what is asked for.
"""

import time

import pytest

from gen_ssd.problems import answers
from gen_ssd.problems import forms

TABLE = [
  (r"52_8", r"52_9", "wrong"),
  (r"52_8", r"52", "right"),
  (r"52", r"52_8", "wrong"),
  (r"13", r"1101_2", "right"),
  (r"1101_2", r"1101", "right"),
  (r"1101_2", r"1100_2", "wrong"),
  (r"5", r"\ge 5", "wrong"),
  (r"5", r"\neq 5", "wrong"),
  (r"5", r"= 5", "right"),
  (r"5", r"5 =", "wrong"),
  (r"x\neq 5", r"(-\infty,5)\cup(5,\infty)", "right"),
  (r"13", r"13_00", "wrong"),
  (r"\sqrt5", r"\ge \sqrt5", "wrong"),
  (r"\sqrt5", r"\neq \sqrt5", "wrong"),
  (r"\neq 5", r"x\neq 5", "right"),
  (r"\sqrt5", r"5^\frac{1}{2}", "right"),
  (r"1/2", r"5^\frac{1}{2}", "wrong"),
  (r"1/2", r"\sqrt\frac{1}{2}", "wrong"),
  (r"\frac{1}{2}", r"\cup\frac{1}{2}", "wrong"),
  (r"5", r"5\text{ million}", "wrong"),
  (r"5000000", r"5\text{ million}", "right"),
  (r"5\text{ minutes}", r"5\text{ hours}", "wrong"),
  (r"5\text{ hours}", r"5", "right"),
  (r"5\text{ hours}", r"5\text{ hr}", "right"),
  (r"5\text{ hours}", r"5 hours", "right"),
  (r"10\%", r"10", "right"),
  (r"10", r"10\%", "right"),
  (r"10\%", r"0.1", "right"),
  (r"0.1", r"10\%", "right"),
  (r"0.1", r"10", "wrong"),
  (r"\{1,2\}", r"(1,2)", "wrong"),
  (r"(1,2)", r"\{1,2\}", "wrong"),
  (r"(-\infty,0]", r"[-\infty,0]", "wrong"),
  (r"1/2^{98}", r"1/2^{99}", "wrong"),
  (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", "wrong"),
  (r"0.0000002", r"0.0000001", "wrong"),
  (r"5", r"\boldsymbol{5}", "right"),
  (r"x+1", r"\bm{x+1}", "right"),
  (r"5", r"{\bf 5}", "right"),
  (r"A", r"\mathbf{A}", "right"),
  (r"90^\circ", r"90°", "right"),
  (r"90", r"90°", "right"),
  (r"90", r"90\degree", "right"),
  (r"90^\circ", r"90\degree", "right"),
  (r"5", r"\text{The answer is } 5", "right"),
  (r"5", r"5 dollars", "right"),
  (r"\text{Evelyn}", r"evelyn", "right"),
  (r"Evelyn", r"EVELYN", "right"),
  (r"7/2", r"3 1/2", "right"),
  (r"\frac{7}{2}", r"3\frac{1}{2}", "right"),
  (r"3\frac12", r"3.5", "right"),
  (r"\varnothing", r"\emptyset", "right"),
  (r"\emptyset", r"\{\}", "right"),
  (r"x>3", r"(3,\infty)", "right"),
  (r"(3,\infty)", r"x>3", "right"),
  (r"x\ge 3", r"(3,\infty)", "wrong"),
  (r"1 \le x \le 2", r"[1,2]", "right"),
  (r"[1,2]", r"1 \leq x \leq 2", "right"),
  (r"[1,2]", r"1 < x \leq 2", "wrong"),
  (r"58,500", r"x = 58,500", "right"),
  (r"58500", r"\(58,500\)", "right"),
  (r"5", r"\color{red}{5}", "right"),
  (r"5", r"\underline{5}", "right"),
  (r"5", r"５", "right"),
  (r"(1,2)", r"(2,1)", "wrong"),
  (r"1,2", r"2,1", "right"),
  (r"(1,2)", r"\left( 1,\, 2 \right)", "right"),
  (r"1, 200", r"1200", "wrong"),
  (r"5", r"x = 5", "right"),
  (r"1,234", r"x = 1,234", "right"),
  (r"\frac13", r"0.333333", "right"),
  (r"\frac13", r"0.333", "wrong"),
  (r"x^3+3x-6", r"3x + x^{3} - 6", "right"),
  (r"2516_8", r"2516", "right"),
  (r"(-\infty,5]", r"x\le 5", "right"),
  (r"2\sqrt{3}", r"\sqrt{12}", "right"),
  (r"\text{(C)}", r"C", "right"),
  (r"\frac{1}{2}", r"1/2", "right"),
  (r"\pi", r"3.14159265", "right"),
  (r"5x", r"5y", "wrong"),
  (r"12\text{ m}", r"12 m^2", "wrong"),
  (r"12\text{ cm}^2", r"12", "right"),
  (r"y=2x+3", r"2x+3", "right"),
  (r"[1,2)", r"1\le x<2", "right"),
  (r"\$5", r"5", "right"),
  (r"5", r"\$5.00", "right"),
  (r"-\frac{1}{2}", r"-0.5", "right"),
  (r"\frac{3}{4}", r"\frac{6}{8}", "right"),
  (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)", "right"),
  (r"5", r"5+", "wrong"),
  (r"5", r"5\pi", "wrong"),
  (r"10^{-9}", r"2\cdot10^{-9}", "wrong"),
  ("5", "5 or 6", "wrong"),
  ("5", r"5\text{ or }6", "wrong"),
  ("5", "5 to 7", "wrong"),
  ("5", "5 hours 30 minutes", "wrong"),
  ("5", r"5\text{ hours }30\text{ minutes}", "wrong"),
  ("5", "5 1/2 hours", "wrong"),
  ("5.5", "5 1/2 hours", "right"),
  ("1/2", "1/2 cup", "right"),
  ("1/2", "1/3 cup", "wrong"),
  ("5", "5 x", "wrong"),
  ("5", "5 pi", "wrong"),
  ("5", "5E3", "wrong"),
  ("5", "5 mod 7", "wrong"),
  ("5", "5 x 10^3", "wrong"),
  ("5", "5 m^2", "right"),
  ("5 cm^2", "5 cm²", "right"),
  ("5 cm^2", "5 square cm", "right"),
  ("5 cm^2", "5 cm", "wrong"),
  ("5 kg", "5 g", "wrong"),
  ("5 million", "5 billion", "wrong"),
  (r"60^\circ", r"60\text{ degrees}", "right"),
  (r"10\%", "10 percent", "right"),
  ("0.05", r"5\text{ percent}", "right"),
  ("52", "5²", "wrong"),
  ("25", "5²", "right"),
  ("528", "52₈", "wrong"),
  ("52_8", "52₈", "right"),
  ("3.5", "3½", "right"),
  ("31/2", "3½", "wrong"),
  ("52_8", r"52_{\text{eight}}", "right"),
  ("5", "x < 5", "wrong"),
  ("x<5", "5>x", "right"),
  ("x<5", "x>5", "wrong"),
  ("1024", "2^10", "right"),
  (r"\sqrt 2", r"2^\frac12", "right"),
  (r"\sqrt[3]2", r"\sqrt[3]{2}", "right"),
  (r"\sqrt[3]2", r"\sqrt[3]{3}", "wrong"),
  ("5", r"\cup 5", "wrong"),
  ("5", "^5", "wrong"),
  ("5", "5/", "wrong"),
  ("5", r"\textcolor{red}{5}", "right"),
  ("5", r"\textcolor{red}{\textbf{5}}", "right"),
  ("6", r"\textcolor{red}{5}", "wrong"),
  ("5", r"\color[rgb]{1,0,0}{5}", "right"),
  ("5", r"\underline{\mathbf{5}}", "right"),
  ("5", r"\pmb{5}", "right"),
  ("5", r"\Large 5", "right"),
  ("1234", r"\textbf{1,234}", "right"),
  ("1234", r"\textbf{1,235}", "wrong"),
  ("51.0", r"\text{51}", "right"),
  ("51.0", r"\mathrm{51~kg}", "right"),
  ("5", "Answer: 5", "right"),
  ("5", "The final answer is 5.", "right"),
  ("5", "The answer is 6.", "wrong"),
  ("1234", "１，２３４", "right"),
  ("58500", r"\(x = 58,500\)", "right"),
  ("58,500", "(58,500)", "wrong"),
  ("-3.5", r"-3\frac{1}{2}", "right"),
  ("-2.5", "-3 1/2", "wrong"),
  (r"3\frac{1}{2}", r"\frac{3}{2}", "wrong"),
  ("A", "a", "right"),
  ("Yes", "No", "wrong"),
  ("1-1/e", "1+1/e", "wrong"),
  (r"[0,\infty)", r"[0,\infty]", "wrong"),
  ("(1,2]", "[1,2)", "wrong"),
]


@pytest.fixture(scope="module")
def grader():
  with answers.Grader() as grader:
    yield grader


@pytest.mark.parametrize("gold, answer, expected", TABLE)
def test_an_answer_is_read_as_who_sets_the_exam_would(grader, gold, answer, expected):
  assert grader.compare(gold, answer) == expected


@pytest.mark.parametrize(
  "text, value, unit",
  [
    ("5 dollars", 5, "dollar"),
    (r"5\text{ million}", 5_000_000, ""),
    (r"2.5\text{ thousand dollars}", 2500, "dollar"),
    ("12 hrs", 12, "hour"),
    (r"3\mathrm{cm}^2", 3, "centimeter ^2"),
    ("1,200 feet", 1200, "foot"),
  ],
)
def test_a_quantity_is_a_number_and_a_unit(text, value, unit):
  assert forms.quantity(text) == (value, unit)


@pytest.mark.parametrize(
  "text", ["5x", "5", "x dollars", r"5\pi", "5+3 dollars", "", "5" * 200 + " m"]
)
def test_what_is_no_quantity_is_left_to_others(text):
  assert forms.quantity(text) is None


def test_easy_pairs_are_decided_fast():
  pairs = [(a, b) for a, b, _ in TABLE if answers.compare(a, b)]
  assert len(pairs) > 60
  start = time.process_time()
  for _ in range(20):
    for a, b in pairs:
      answers.compare(a, b)
  print(f"{20 * len(pairs) / (time.process_time() - start):,.0f} pairs/s")
