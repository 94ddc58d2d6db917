"""Formulas of a page as MathML: which, and that nothing else of a text becomes markup."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from gen_ssd.report import latex
from gen_ssd.report import page
from tests.report import made_run


def tags(text):
  return re.findall(r"<(\w+)", latex.drawn(text))


@pytest.mark.parametrize(
  "text",
  [r"so \(\frac{1}{2}\)", r"\[x^2\]", "$$x^2$$", "it is $x+1$.", r"So \boxed{\frac{1}{2}}."],
)
def test_formulas_are_drawn(text):
  assert "math" in tags(text)
  assert r"\frac" not in latex.drawn(text)


def test_a_formula_in_a_line_of_its_own_is_a_block():
  assert 'display="block"' in latex.drawn(r"\[x\]") and 'display="inline"' in latex.drawn("$x$")


@pytest.mark.parametrize(
  "text",
  [
    "It costs $5 and $6.",
    "from $3 to$4",
    r"\(\frac{1}",
    r"\frac{1}{2} alone",
    r"\(\href{javascript:alert(1)}{x}\)",
    r"\(\style{color:red}{x}\)",
    r"\(" + "x" * 401 + r"\)",
  ],
)
def test_what_is_no_formula_stays_text(text):
  assert tags(text) == [] and str(latex.drawn(text)).count("&") <= text.count("<")


def test_what_surrounds_a_formula_is_escaped():
  found = latex.drawn("<b>bold</b> $x<y$ <script>")
  assert "&lt;b&gt;" in found and "&lt;script&gt;" in found
  assert "<b>" not in found and "<script" not in found


ALLOWED = re.compile(
  r"math|m[a-z]+|semantics|annotation", re.ASCII
)  # elements of MathML; no a, script, img, svg


@given(st.lists(st.sampled_from(
  ["$", r"\(", r"\)", r"\[", r"\]", r"\boxed{", "{", "}", "<script>", '"', "&", r"\frac", r"\text{",
   "x", "1", "^", "_", r"\sqrt", r"\begin{array}{c}", r"\end{array}", r"\\", "<img src=x>", " "]
), max_size=24).map("".join))  # fmt: skip
def test_no_text_becomes_other_markup(text):
  found = str(latex.drawn(text))
  assert all(ALLOWED.fullmatch(tag) for tag in re.findall(r"<\s*/?\s*([A-Za-z]\w*)", found))
  assert not re.search(r"<[^>]*(href|src|on\w+|style)\s*=", found)


def test_a_page_has_formulas_when_asked(tmp_path):
  made_run.make(tmp_path, problems=6)
  for shard in tmp_path.glob("traces/*/traces-*.jsonl"):
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    made_run.write_lines(shard, [{**r, "problem": r"What is \(\frac{1}{2}\)?"} for r in rows])
  plain = page.write_report(tmp_path).read_text()
  assert "<math" not in plain and r"\frac{1}{2}" in plain
  drawn = page.write_report(tmp_path, formulas="mathml").read_text()
  assert drawn.count("<math") > 6 and len(drawn) > len(plain)
