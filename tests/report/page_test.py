"""The page of a run: complete, unfinished, broken and hostile input.

Long, because its tests share one made-up run.
"""

import json
import random
import re
import sys
import xml.etree.ElementTree as xml

import pytest

from gen_ssd.errors import UserError
from gen_ssd.report import __main__ as report_command
from gen_ssd.report import curves
from gen_ssd.report import figures
from gen_ssd.report import words
from gen_ssd.report.page import write_report
from tests.report import made_run
from tests.report.made_run import CONFIG
from tests.report.made_run import RESULTS
from tests.report.made_run import K
from tests.report.made_run import page_of


def test_finished_run_shows_everything(tmp_path):
  text = page_of(made_run.make(tmp_path))
  for arm in CONFIG["arms"]:
    assert f"{arm}<small>" in text or re.search(rf"</svg> {arm}</th>", text)
  assert "73.8%" in text and "[68.8, 78.3]" in text and "27,648" in text
  for part in (
    "Paired difference",
    "gen_ssd − standard_kd",
    "Student nll",
    "Trace length",
    "bundled-sums",
    "gen-ssd report --workdir=DIR",
    "jax",
    "median",
  ):
    assert part in text
  assert text.count('<details class="tree') == 6
  for outcome in ("right", "wrong", "pruned"):
    assert f'data-outcome="{outcome}"' in text
  assert "✕ invalid" in text and "✓ kept" in text and "Gold answer" in text
  assert "Left out of this page" not in text


def test_seeds_and_several_tests_are_drawn(tmp_path):
  rings = page_of(made_run.make(tmp_path, problems=8)).count('class="ring"')
  arm = lambda x, *seeds: {"accuracy": x, "ci": [x - 0.1, x + 0.1], "n": 30, "seeds": [*seeds]}
  one = {"standard_kd": arm(0.2, 0.1, 0.3), "gen_ssd": arm(0.4, 0.4, 0.4)}
  (tmp_path / "results.json").write_text(
    json.dumps(
      {"arms": one, "tests": {"aime24": {"arms": one}, "amc<23>": {"arms": {"gen_ssd": arm(0.7)}}}}
    )
  )
  text = page_of(tmp_path)
  for title in (
    "Accuracy on all tests",
    "Accuracy on aime24, 30 problems",
    "Accuracy on amc&lt;23&gt;, 30 problems",
  ):
    assert title in text
  assert text.count("small rings: training seeds") == 2 and text.count('class="ring"') == rings + 8
  (tmp_path / "results.json").write_text(
    json.dumps(
      {
        "arms": one,
        "tests": {
          "a": 3,
          "b": {"arms": {"gen_ssd": {"accuracy": 0.5, "seeds": 7, "n": "x"}}},
          "c": None,
        },
      }
    )
  )
  assert "Accuracy on b, 0 problems" in page_of(tmp_path)


def test_what_math_verify_did_not_finish_is_named_below_the_table(tmp_path):
  made_run.make(tmp_path, problems=2)
  results = json.loads(json.dumps(RESULTS))
  for count, named in ((0, 0), (1200, 1), ("many", 0)):
    results["arms"]["gen_ssd"].update(trace_timeouts=count, answer_crashes=0)
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = page_of(tmp_path)
    assert text.count("math-verify did not finish") == named
    assert text.count("gen_ssd: unverifiable because") == named == text.count("timeouts 1,200</p>")


def test_overlapping_intervals_are_not_called_best(tmp_path):
  made_run.make(tmp_path, problems=8)
  text = page_of(tmp_path)
  assert "▲ highest" in text and "★ best" not in text and "can’t be told apart" in text
  results = json.loads(json.dumps(RESULTS))
  results["arms"]["gen_ssd"].update(accuracy=0.85, ci=[0.80, 0.89])
  (tmp_path / "results.json").write_text(json.dumps(results))
  text = page_of(tmp_path)
  assert "★ best" in text and "▲ highest" not in text and "can’t be told apart" not in text
  # a wide interval further down the ranking counts too, and so does a missing one
  for ci in ([0.3, 0.9], None):
    results["arms"]["random"]["ci"] = ci
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = page_of(tmp_path)
    assert "★ best" not in text and "separate it from <b>random</b>:" in text


def test_everything_from_a_run_is_escaped(tmp_path):
  made_run.make(tmp_path, problems=2)
  evil = '<script>alert(1)</script><img src="http://x.example/a.png" onerror=alert(2)>\ud800\u202e'
  trace, lost_rows = made_run.trace(random.Random(0), "gen_ssd", 0, K, 0.5)
  trace.update(problem=evil, answer=evil, source=evil, level=evil, verdict=evil, stop=evil)
  for part in [*trace["chunks"], *lost_rows]:
    part["text"] = evil
  made_run.write_lines(tmp_path / "traces" / "genssd" / "traces-00000.jsonl", [trace])
  made_run.write_lines(tmp_path / "traces" / "genssd" / "candidates-00000.jsonl", lost_rows)
  config = {
    **CONFIG,
    "name": evil,
    "arms": {evil: {"note": evil}},
    "teacher": {"path": evil},
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "results.json").write_text(
    json.dumps({"arms": {evil: RESULTS["arms"]["random"]}, "paired": {evil: {"difference": 0.1}}})
  )
  text = page_of(tmp_path)
  assert "<script>alert" not in text and "<img" not in text
  # name and its title; teacher in the lead and the facts; arm, its note and its figures; problem,
  # gold answer, ending, badges, kept and lost candidates, config
  assert text.count("&lt;script&gt;alert(1)") > 20
  for place in ("<title>{}", "<h1>{}", "<small>note={}", '<p class="problem" dir="auto">{}'):
    assert place.format("&lt;script&gt;alert(1)") in text


def test_panels_escape_what_they_are_given():
  evil = '"><script>alert(1)</script>'
  show = lambda v: f"<b>{v}</b>"
  panels = [
    figures.intervals(evil, evil, [figures.Estimate(0, evil, 0.5, (0.4, 0.6), evil)], show),
    curves.curves(
      evil, evil, [curves.Line(i, evil, [curves.Point(evil, 0.5)]) for i in (0, 1)], show
    ),
    figures.ridges(evil, evil, [figures.Sample(0, evil, [0.5])], show, show),
  ]
  text = figures.svg(panels, columns=2)
  assert "<script" not in text and "<b>" not in text and "&lt;b&gt;0.5" in text
  root = xml.fromstring(text)
  assert evil in "".join(root.itertext()) and root.attrib["width"] == str(2 * 470)


def test_lost_candidates_of_the_last_resample_are_shown(tmp_path):
  made_run.make(tmp_path, problems=1)
  folder = tmp_path / "traces" / "genssd"
  rows = [json.loads(line) for line in (folder / "candidates-00000.jsonl").open()]
  first = [{**r, "resample": 0, "text": "first draw"} for r in rows]
  last = [{**r, "resample": 1, "text": "second draw"} for r in rows]
  made_run.write_lines(folder / "candidates-00000.jsonl", first + last)
  text = page_of(tmp_path)
  assert "second draw" in text and "first draw" not in text


@pytest.mark.parametrize("missing", ["results.json", "candidates", "traces", "arms"])
def test_unfinished_run(tmp_path, missing):
  made_run.make(tmp_path, problems=30)
  for path in sorted(tmp_path.glob("**/*"), reverse=True):
    name = str(path.relative_to(tmp_path))
    if path.is_file() and (missing in path.name or missing in name.split("/")):
      path.unlink()
  text = page_of(tmp_path)
  assert all(arm in text for arm in CONFIG["arms"])
  if missing == "results.json":
    assert "No accuracy has been measured yet" in text and "counted from the trace files" in text
    assert "–" in text and "Student nll" in text
  if missing == "candidates":
    assert "text not stored" in text and text.count('<details class="tree') == 6
  if missing in ("traces", "arms"):
    assert '<details class="tree' not in text and "73.8%" in text


def test_broken_files_are_skipped_and_named(tmp_path):
  made_run.make(tmp_path, problems=30)
  shard = tmp_path / "traces" / "genssd" / "traces-00001.jsonl"
  shard.write_bytes(shard.read_bytes()[:-400])
  with (shard.parent / "traces-00000.jsonl").open("ab") as f:
    f.write(
      b'\xff\xfe\n[1]\n{"uuid": "x", "attempt": 0}\n{"uuid": "y", "attempt": 0, "chunks": [3]}\n\n'
    )
  with (shard.parent / "candidates-00000.jsonl").open("a") as f:
    f.write('{"uuid": "sums-00003", "attempt": 0, "chunk": "a"}\n{')
  (tmp_path / "arms" / "random" / "kept.json").write_text('{"not": "pairs"}')
  (tmp_path / "results.json").write_text('{"arms": {"gen_ss')
  text = page_of(tmp_path)
  assert "traces/genssd/traces-00001.jsonl: 1 broken line skipped" in text
  assert "traces/genssd/traces-00000.jsonl: 2 broken lines skipped" in text
  assert "2 traces without usable uuid or chunks skipped" in text
  assert "candidates-00000.jsonl: 1 broken line skipped" in text
  assert "results.json: not readable" in text and "random/kept.json: not pairs" in text


def test_values_of_the_wrong_kind_become_dashes(tmp_path):
  (tmp_path / "config.json").write_text('{"select": 3, "arms": ["a"], "teacher": "x"}')
  (tmp_path / "results.json").write_text(
    json.dumps(
      {
        "arms": {
          "a": {"accuracy": "high", "ci": [None, 1], "n": float("nan"), "kept": True},
          "b": 5,
          "c": {"accuracy": 0.5, "ci": "?"},
        },
        "paired": [1],
      }
    )
  )
  text = page_of(tmp_path)
  assert "50.0%" in text and "Only <b>c</b> has been evaluated" in text and "nan" not in text


@pytest.mark.parametrize("x", [1e299, -1e299, 1e15, 1e14, 5e-324, 10**400, 0.5 + 1e-16])
def test_figures_are_drawn_of_any_number(tmp_path, x):
  made_run.make(tmp_path, problems=2)
  arms = {name: {"accuracy": x, "ci": [x, x], "seeds": [x, 0.5]} for name in CONFIG["arms"]}
  paired = {f"{name}-random": {"difference": x, "ci": [0, x]} for name in CONFIG["arms"]}
  (tmp_path / "results.json").write_text(json.dumps({"arms": arms, "paired": paired}))
  shard = tmp_path / "traces" / "genssd" / "traces-00000.jsonl"
  rows = [json.loads(line) for line in shard.open()]
  made_run.write_lines(shard, [{**r, "num_tokens": x, "student_nll": x} for r in rows])
  assert max(map(len, re.findall(r"[\d,.]+", page_of(tmp_path)))) < 60  # no number of 300 digits


def test_kept_json_decides_what_is_kept(tmp_path):
  made_run.make(tmp_path, problems=30)
  (tmp_path / "arms" / "gen_ssd" / "kept.json").write_text('[["sums-00004", 0], ["sums-00005", 0]]')
  (tmp_path / "results.json").unlink()
  text = page_of(tmp_path)
  assert ">n 2</text>" in text and "2 / 30" in text


def test_long_trees_fold_and_first_branching_arm_is_shown(tmp_path):
  made_run.make(tmp_path, problems=1)
  for arm in ("gen_ssd", "random"):
    for path in (tmp_path / "traces" / arm.replace("_", "")).iterdir():
      path.unlink()
  trace, _ = made_run.trace(random.Random(0), "random", 0, K, 0.5)
  trace["chunks"] *= 9
  made_run.write_lines(tmp_path / "traces" / "random" / "traces-00000.jsonl", [trace, trace])
  text = page_of(tmp_path)
  assert f"{len(trace['chunks']) - 10} more rounds" in text
  assert text.count('<details class="tree') == 1  # the repeated record counts once


def test_many_candidates_or_long_texts_are_stacked(tmp_path):
  made_run.make(tmp_path, problems=12)
  assert 'class="rounds"' in page_of(tmp_path)
  trace, _ = made_run.trace(random.Random(0), "gen_ssd", 0, K, 0.5)
  for chunk in trace["chunks"]:
    chunk["scores"] *= 2
  shard = tmp_path / "traces" / "genssd" / "traces-00000.jsonl"
  made_run.write_lines(shard, [trace])
  assert 'class="rounds stacked"' in page_of(tmp_path)


def test_the_round_that_pruned_a_trace_is_drawn_from_its_lost_candidates(tmp_path):
  made_run.make(tmp_path, problems=1)
  folder = tmp_path / "traces" / "genssd"
  trace, _ = made_run.trace(random.Random(0), "gen_ssd", 0, K, 0.5)
  trace.update(stop="pruned", verdict="unverifiable", chunks=trace["chunks"][:1])
  made_run.write_lines(folder / "traces-00000.jsonl", [trace])
  place = {"uuid": trace["uuid"], "attempt": 0, "chunk": 1, "count": 3}
  scores = [7.25, None, 8.5]
  rows = [
    {**place, "resample": resample, "branch": b, "text": f"draw {resample}", "score": score}
    for resample in range(3)
    for b, score in enumerate(scores)
  ]
  rows[-1]["branch"] = 10**12  # damaged
  made_run.write_lines(folder / "candidates-00000.jsonl", rows)
  text = page_of(tmp_path)
  assert text.count("Round 2") == 1 and text.count('class="round pruned"') == 1
  assert "resampled 2×" in text and "draw 0" not in text and "draw 1" not in text
  assert text.count("draw 2</p>") == 2 and text.count('class="dashed"') == 2
  assert ">7.25</span>" in text
  assert "#1, #3 · not suitable · 2 × same text · scores 7.25 to 8.50 · 3 tok" in text


def test_config_is_required(tmp_path):
  with pytest.raises(UserError, match="config.json is missing"):
    write_report(tmp_path)
  with pytest.raises(UserError, match="nowhere does not exist: it must be the workdir of a run"):
    write_report(tmp_path / "nowhere")
  for text, said in (
    (b"[]", r"is \[\], not an object"),
    (b'{"name": "\xff"}', "not UTF-8 text"),
    (b'\xef\xbb\xbf{"name": "x"}', "BOM"),
    (b'{"a": ' * 500 + b"1" + b"}" * 500, "nested more than 100 levels deep"),
    (b"[" * 99999, "nested more than 100 levels deep"),
    (b'{"name": ', "not JSON as it should be"),
  ):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=said):
      write_report(tmp_path)
  with pytest.raises(UserError, match="is not a folder"):
    write_report(tmp_path / "config.json")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, monkeypatch):
  (tmp_path / "config.json").write_bytes(b"\xff")
  monkeypatch.setattr(sys, "argv", ["gen-ssd report", f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit) as stop:
    report_command.main()
  said = capsys.readouterr().err
  assert stop.value.code == 2 and said.count("\n") == 1 and "not UTF-8" in said


# ---------------------------------------------------------------- large and odd texts


def _one_trace(path, **changes):
  """A run whose only trace of gen_ssd is changed; returns its page."""
  made_run.make(path, problems=1)
  trace, lost = made_run.trace(random.Random(0), "gen_ssd", 0, K, 0.5)
  made_run.write_lines(path / "traces" / "genssd" / "traces-00000.jsonl", [{**trace, **changes}])
  made_run.write_lines(path / "traces" / "genssd" / "candidates-00000.jsonl", lost)
  (path / "traces" / "genssd" / "traces-00001.jsonl").write_text("")
  return page_of(path)


@pytest.mark.parametrize("field", ["problem", "answer", "text", "verdict", "source", "level"])
def test_long_texts_of_a_trace_are_cut_and_their_length_is_shown(tmp_path, field):
  text = _one_trace(tmp_path, **{field: "ab" * 2_500_000})
  assert len(text) < 150_000
  assert "... (5,000,000 characters)" in text


def test_long_names_settings_and_candidates_are_cut(tmp_path):
  made_run.make(tmp_path, problems=1)
  long = "n" * 10**6
  folder = tmp_path / "traces" / "genssd"
  rows = [json.loads(line) for line in (folder / "candidates-00000.jsonl").open()]
  made_run.write_lines(folder / "candidates-00000.jsonl", [{**r, "text": long} for r in rows])
  config = {
    **CONFIG,
    "name": long,
    "arms": {**CONFIG["arms"], long: {long: long}},
  }
  (tmp_path / "config.json").write_text(json.dumps({**config, "select": {"k": 4, "slots": long}}))
  arms = {**RESULTS["arms"], long: RESULTS["arms"]["random"]}
  paired = {f"{long}-random": {"difference": 0.1}, long: {"difference": 0.1}}
  (tmp_path / "results.json").write_text(
    json.dumps({"arms": arms, "paired": paired, "tests": {long: {"arms": arms}}})
  )
  text = page_of(tmp_path)
  assert text.count("(1,000,000 characters)") > 10 and len(text) < 600_000


@pytest.mark.parametrize("what", ["arms", "tests", "paired", "branches", "rounds", "shards"])
def test_a_page_of_very_many_of_anything_stays_small(tmp_path, what):
  many = 20_000
  chunk = {"text": "kept", "count": 1, "choice": 0, "score": 0.5, "scores": [0.5, 0.7]}
  changes = {
    "branches": {"chunks": [{**chunk, "choice": many - 1, "scores": [0.5] * many}]},
    "rounds": {"chunks": [chunk] * many},
  }
  _one_trace(tmp_path, **changes.get(what, {}))
  config, results, arm = (
    dict(CONFIG),
    dict(RESULTS),
    RESULTS["arms"]["random"],
  )
  if what == "arms":
    config["arms"] = {f"arm{i}": {"k": 2} for i in range(many)}
    results["arms"] = {name: arm for name in config["arms"]}
  if what == "tests":
    results["tests"] = {f"test{i}": {"arms": {"random": arm}} for i in range(many)}
  if what == "paired":
    results["paired"] = {f"a{i}": {"difference": 0.1} for i in range(many)}
  if what == "shards":
    for i in range(200):
      (tmp_path / "traces" / "genssd" / f"traces-{i:05d}.jsonl").write_text("{")
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "results.json").write_text(json.dumps(results))
  text = page_of(tmp_path)
  assert len(text) < 1_500_000
  said = {
    "arms": "19,940 of 20,004 arms",
    "tests": "19,936 of 20,000 tests",
    "paired": "19,936 of 20,000 paired differences",
    "branches": "19,976 more not shown",
    "rounds": "19,700 more rounds are not shown",
    "shards": "and more: ",
  }
  assert said[what] in text


ODD = "\x1b[31m \x00 \u202e \ud800 \x7f \u2066"
SHOWN = r"\x1b[31m \x00 \u202e \ud800 \x7f \u2066"


@pytest.mark.parametrize("field", ["problem", "answer", "verdict", "source"])
def test_control_characters_of_a_trace_are_shown(tmp_path, field):
  text = _one_trace(tmp_path, **{field: ODD})
  assert SHOWN in text and not any(c in text for c in ODD.replace(" ", "").replace("[31m", ""))


def test_control_characters_of_settings_and_candidates_are_shown(tmp_path):
  made_run.make(tmp_path, problems=1)
  folder = tmp_path / "traces" / "genssd"
  rows = [json.loads(line) for line in (folder / "candidates-00000.jsonl").open()]
  made_run.write_lines(folder / "candidates-00000.jsonl", [{**r, "text": ODD} for r in rows])
  config = {**CONFIG, "name": ODD, "arms": {**CONFIG["arms"], ODD: {"note": ODD}}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "results.json").write_text(json.dumps({"arms": {ODD: {"accuracy": 0.5}}}))
  text = page_of(tmp_path)
  assert text.count(SHOWN) > 8
  assert not any(c in text for c in ODD.replace(" ", "").replace("[31m", ""))


def test_spaces_and_joiners_of_other_scripts_stay():
  text = "日本\u3000語 a\u00a0b \u0645\u200c\u06cc 👩\u200d🚀 tränen\n\ttab"
  assert words.visible(text) == text
