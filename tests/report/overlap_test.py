"""The section of the page on problems that were left out, from a file that may hold anything."""

import json

import pytest

from gen_ssd.problems import overlap as overlap_lib
from gen_ssd.problems import problem as problem_lib
from gen_ssd.report import overlap
from gen_ssd.report import traces
from gen_ssd.report.page import write_report


def row(i=0, split="train"):
  own, asked = (
    problem_lib.Problem(f"{s}{i}", "made up", s, f"{s} problem {i} <b>", "1")
    for s in (split, "test")
  )
  return overlap_lib.Match(own, asked, 0.75, "0.75 of it").row("test")


def page(folder, content):
  (folder / "config.json").write_text("{}")
  (folder / "overlap.json").write_text(content)
  return write_report(folder).read_text()


def test_pairs_are_shown_side_by_side_and_escaped(tmp_path):
  text = page(tmp_path, json.dumps([row(1), row(2), row(3, "cold_start")]))
  assert "no student is trained: 2 training, 1 cold-start." in text
  assert text.count('<div class="pair">') == 3 and "<b>" not in text.split('class="pair"')[1]
  assert text.index("train problem 2") < text.index("test problem 2")
  assert "cold_start problem 3 &lt;b&gt;" in text and "more, which are not shown" not in text


def test_at_most_20_pairs_are_shown_and_long_texts_are_cut(tmp_path):
  rows = [{**row(i), "problem": "x" * 100_000} for i in range(1500)]
  text = page(tmp_path, json.dumps(rows))
  assert text.count('<div class="pair">') == overlap.MOST == 20
  assert "no student is trained: 1,500 training." in text
  assert "And 1,480 more, which are not shown here." in text
  assert len(text) < 200_000 + 20 * 2 * traces.TEXT


@pytest.mark.parametrize("content", [None, "[]"])
def test_where_nothing_was_left_out_there_is_no_section(tmp_path, content):
  if content:
    (tmp_path / "overlap.json").write_text(content)
  notes = []
  assert overlap.section(tmp_path, notes) is None and notes == []


@pytest.mark.parametrize(
  "content,note",
  [
    ('[{"split": "tr', "overlap.json: not readable as JSON, left out"),
    ('{"split": "train"}', "overlap.json: not a list, left out"),
    ("3", "overlap.json: not a list, left out"),
    (
      '[3, null, {}, {"split": []}]',
      "overlap.json: 4 broken entries skipped",
    ),
    (
      json.dumps([{**row(), "problem": 5}, {**row(), "split": "dev"}]),
      "overlap.json: 2 broken entries skipped",
    ),
  ],
)
def test_damaged_files_are_named_and_left_out(tmp_path, content, note):
  text = page(tmp_path, content)
  assert "Problems left out" not in text and note in text


def test_what_is_sound_of_a_damaged_file_is_shown(tmp_path):
  text = page(tmp_path, json.dumps([row(1), 7]))
  assert "trained: 1 training." in text and "train problem 1" in text
  assert "overlap.json: 1 broken entry skipped" in text
