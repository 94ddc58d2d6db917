"""What a sweep writes, from results and traces made by hand."""

import json
import re
import xml.etree.ElementTree as xml

import pytest

from gen_ssd import config as config_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import traces
from gen_ssd.errors import UserError
from gen_ssd.problems import problem as problem_lib
from gen_ssd.problems.answers import Grade
from gen_ssd.report import comparison
from gen_ssd.report import comparison_figures
from gen_ssd.report import comparison_tables
from gen_ssd.report import examples
from gen_ssd.report import lines
from gen_ssd.report import sweep_page


def _arm(accuracy, teacher_tokens=100, **more):
  return {
    "accuracy": accuracy,
    "ci": [accuracy - 0.1, accuracy + 0.1],
    "n": 40,
    "seeds": [accuracy - 0.05, accuracy + 0.05],
    "kept": 10,
    "teacher_tokens": teacher_tokens,
    "mean_tokens": 30.0,
    "mean_kept_tokens": None,
    "student_nll": 0.5,
    "coverage": 0.9,
    "pruned": 0.0,
    "equal_teacher_tokens": None,
    "training_tokens": 1234.0,
    **more,
  }


ARMS = {"standard_kd": _arm(0.2), "posthoc": _arm(0.3, 400), "gen_ssd": _arm(0.6, 400)}
PAIRED = {
  f"{a}-{b}": {"difference": d, "ci": [d - 0.15, d + 0.15], "n": 40}
  for a, b, d in (
    ("posthoc", "standard_kd", 0.1),
    ("gen_ssd", "standard_kd", 0.4),
    ("standard_kd", "posthoc", -0.1),
    ("gen_ssd", "posthoc", 0.3),
  )
}
FOUND = {"arms": ARMS, "paired": PAIRED, "sweeps": {}, "items": {"base": ARMS}}


def test_the_table_has_a_column_per_base_and_dashes_for_what_is_unknown():
  arms, paired = comparison_tables.markdown(FOUND).strip().split("\n\n")
  for text, columns in ((arms, 12), (paired, 3)):
    assert {line.count("|") for line in text.splitlines()} == {columns + 1}
  assert "| gen_ssd | **60.0** | 50.0 - 70.0 | 55.0 - 65.0 | - | 30.0 | - | 0.500 |" in arms
  assert "| - standard_kd | - posthoc |" in paired and "morsd" not in paired
  assert "| gen_ssd | +40.0 (+25.0 to +55.0) | +30.0 (+15.0 to +45.0) |" in paired
  assert "| posthoc | +10.0 (-5.0 to +25.0) |  |" in paired


def test_answers_that_math_verify_did_not_finish_are_named_between_the_tables():
  assert "math-verify" not in comparison_tables.markdown(FOUND)
  arms = {**ARMS, "random": _arm(0.4, answer_timeouts=0, trace_crashes=3)}
  _, line, _ = comparison_tables.markdown({**FOUND, "arms": arms}).strip().split("\n\n")
  assert line == "random: unverifiable because math-verify did not finish: trace crashes 3"


def test_items_have_a_row_per_arm_in_columns_that_a_terminal_shows():
  items = {"base": ARMS, "select.k=16": {"gen_ssd": _arm(0.7, 12345)}}
  first, *rest = comparison_tables.markdown({**FOUND, "items": items}).strip().split("\n\n")
  assert "\n\n".join(rest) == comparison_tables.markdown(FOUND).strip()
  lines = first.splitlines()
  assert (
    lines[-1]
    == "| select.k=16 | gen_ssd     | 70.0        | 60.0 - 80.0   | 10   | 12,345         |"
  )
  assert len(lines) == 6 and len({len(x) for x in lines if "---" not in x}) == 1


def test_a_panel_compares_the_items_that_have_its_arm():
  items = {
    "base": ARMS,
    "a": {"gen_ssd": _arm(0.7), "posthoc": _arm(0.1)},
    "b": {"gen_ssd": _arm(0)},
  }
  places = _places(comparison_figures.draw({**FOUND, "items": items})["items.svg"])
  assert [(arm, [*names]) for arm, names in places.items()] == [
    ("posthoc", ["base", "a"]),
    ("gen_ssd", ["base", "a", "b"]),
  ]
  assert "items.svg" not in comparison_figures.draw(FOUND)


def test_a_line_goes_through_the_items_that_change_one_setting():
  changes = {
    "base": {},
    "k8": {"select.k": 8},
    "k2": {"select.k": 2},
    "off": {"select.threshold": "off"},
    "hot": {"arms.b.temperature": 1.2, "seeds": 3},
    "late": {"select.k": 16},
  }
  settings = {"select": {"threshold": 2.0}, "arms": {"b": {}, "a": {"k": 1}}}
  configs = {name: config_lib.parse(settings) for name in changes if name != "late"}
  found = lines.lines(changes, configs)
  assert [*found] == ["select.k", "select.threshold", "arms.b.temperature"]
  assert found["select.k"]["b"] == [(2, "k2", "b"), (4, "base", "b"), (8, "k8", "b")]
  assert {*found["select.k"]} == {"a", "b"}
  assert found["select.threshold"]["a"] == [("off", "off", "a"), (2.0, "base", "a")]
  assert found["arms.b.temperature"]["b"] == [(1.0, "base", "b"), (1.2, "hot", "b")]


def test_a_grid_and_a_single_value_have_no_line():
  changes = {f"{k}{c}": {"select.k": k, "select.c": c} for k in (2, 4) for c in (8, 16)}
  changes["seed"] = {"select.seed": 1}
  configs = {name: config_lib.parse({"arms": {"a": {}}}) for name in changes}
  assert lines.lines(changes, configs) == {}


def test_a_sweep_of_an_arm_that_is_not_there_is_one_error(tmp_path, monkeypatch):
  (tmp_path / "main").mkdir()
  (tmp_path / "main" / "results.json").write_text(json.dumps({"arms": ARMS}))
  answers = [[{"uuid": "a", "verdict": "right"}]]
  monkeypatch.setattr(workdir_lib, "arm_answers", lambda *a: answers)
  monkeypatch.setattr(comparison.statistics, "paired", lambda *a: {})
  with pytest.raises(UserError, match=r"SWEEPS\['k'\] names the arm 'no' of main: .* standard_kd"):
    comparison.read(tmp_path, {"main": CONFIG}, {"k": {"line": [(1, "main", "no")]}})


def _places(text):
  """{panel title: {arm: y of its label}} of an SVG file of panels of intervals."""
  space = "{http://www.w3.org/2000/svg}"
  found = {}
  for panel in xml.fromstring(text).findall(f"{space}g"):
    names = panel.findall(f"./{space}g//{space}text[@class='name']")
    found[panel.find(f"{space}text").text] = {t.text: float(t.attrib["y"]) for t in names}
  return found


def test_differences_are_drawn_in_columns_with_every_arm_on_one_line():
  text = comparison_figures.draw(FOUND)["paired.svg"]
  places = _places(text)
  assert [*places] == ["Difference from standard_kd", "Difference from posthoc"]
  first, second = places.values()
  assert first == second and {*first} == {*ARMS}
  root = xml.fromstring(text)
  width, height = (float(root.attrib[x]) for x in ("width", "height"))
  assert width == 2 * 470 and height < 300
  words = " ".join(root.itertext())
  assert words.count("reference") == 2 and "+40.0" in words and "−10.0" in words


def test_only_what_there_is_is_drawn():
  alone = {"arms": {"gen_ssd": ARMS["gen_ssd"]}, "paired": {}, "sweeps": {}, "items": {}}
  assert {*comparison_figures.draw(alone)} == {"arms.svg"}
  one = {"arms": {"posthoc": ARMS["posthoc"]}, "paired": {}, "sweeps": {}, "items": {}}
  assert {*comparison_figures.draw(one)} == {"arms.svg"}  # nothing to compare the base with
  points = [{"value": k, **_arm(0.1 * k)} for k in (2, 4)]
  swept = comparison_figures.draw({**FOUND, "sweeps": {"k": {"gen_ssd": points}}})["sweeps.svg"]
  words = " ".join(xml.fromstring(swept).itertext())
  assert "k: accuracy" in words and "k: cost" in words and "gen_ssd, 4: 40%" in words
  assert "gen_ssd, 4: 10" in words  # teacher tokens per kept trace


def test_the_differences_of_many_arms_are_a_line_of_text_each():
  arms = {f"arm_{i}": _arm(0.01 * i) for i in range(45)} | {"standard_kd": _arm(0.2)}
  paired = {f"{a}-standard_kd": {"difference": 0.1, "ci": [0.0, 0.2], "n": 40} for a in arms}
  drawn = comparison_figures.draw({"arms": arms, "paired": paired, "sweeps": {}, "items": {}})
  for text in drawn.values():
    assert float(xml.fromstring(text).attrib["height"]) < 46 * 24 + 110


def test_the_page_of_a_sweep_has_its_tables_and_figures_and_nothing_to_run():
  evil = "<script>alert(1)</script>"
  items = {"base": ARMS, evil: {"gen_ssd": _arm(0.7), evil: _arm(0.5)}}
  points = [{"value": evil, **_arm(0.1 * k)} for k in (2, 4)]
  found = {**FOUND, "items": items, "sweeps": {evil: {evil: points}}}
  text = sweep_page.html(found, evil)
  assert "<script" not in text and "src=" not in text and "href" not in text
  assert "default-src 'none'; style-src 'unsafe-inline'\"" in text
  titles = ["Items", "Arms", "Differences", "Accuracy", "Paired differences", "Items", "Sweeps"]
  assert re.findall("<h2>([^<]*)</h2>", text) == titles
  assert "<b>60.0</b>" in text and "+40.0 (+25.0 to +55.0)" in text and text.count("<figure>") == 6
  assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
  alone = {"arms": {"gen_ssd": ARMS["gen_ssd"]}, "paired": {}, "sweeps": {}}
  alone["items"] = {"base": alone["arms"]}
  assert re.findall("<h2>([^<]*)</h2>", sweep_page.html(alone, "x")) == ["Arms", "Accuracy"]


# ---------------------------------------------------------------- examples


def _trace(uuid, verdict, stop="ended", chunks=(), text="", problem=""):
  made = problem_lib.Problem(uuid, "made", "train", problem or f"problem {uuid}", "7")
  n = sum(c["count"] for c in chunks)
  trace = traces.Trace(uuid, 0, ids=[1] * n, teacher_nlls=[1.0] * n, chunks=list(chunks))
  return traces.row(
    trace, made, trace.chunks, text or f"text {verdict}", stop, Grade(verdict, "rule")
  )


def _lost(uuid, chunk, resample, branch, text, score):
  place = {"uuid": uuid, "attempt": 0, "chunk": chunk, "resample": resample, "branch": branch}
  return {**place, "text": text, "score": score, "ids": [1], "count": 1, "student_nll": None}


@pytest.fixture
def run(tmp_path):
  chunk = {
    "text": "kept",
    "count": 2,
    "choice": 1,
    "score": 0.5,
    "scores": [2.0, 0.5],
    "resamples": 1,
  }
  kinds = {
    "gen_ssd": [
      _trace("a", "right", chunks=[chunk]),
      _trace("b", "wrong", "pruned", chunks=[chunk]),
      _trace("c", "right"),
    ],
    "random": [_trace("a", "wrong"), _trace("b", "right"), _trace("c", "right")],
  }
  lost = [
    _lost("a", 0, 0, 0, "first draw", 3.0),
    _lost("a", 0, 0, 1, "first draw too", None),
    _lost("a", 0, 1, 0, "second draw", 2.0),
    _lost("b", 0, 1, 0, "lost", 2.0),
    _lost("b", 1, 0, 0, "too hard", 9.0),
    _lost("b", 1, 0, 1, "", None),
  ]
  for arm, rows in kinds.items():
    folder, home = tmp_path / "traces" / arm, tmp_path / "arms" / arm
    folder.mkdir(parents=True)
    home.mkdir(parents=True)
    (folder / "traces-00000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "in_flight.json").write_text('{"shards": 1, "slots": [null]}')
    (home / "traces.json").write_text(json.dumps({"collection": arm}))
    (home / "kept.json").write_text("[]")
  (tmp_path / "traces" / "gen_ssd" / "candidates-00000.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in lost)
  )
  return tmp_path


def test_examples_show_where_selection_helped_and_where_it_hurt(run):
  helped, hurt = examples.examples(run).split("## Where selection hurt")
  assert "helped (1 of 3 problems)" in helped and hurt.startswith(" (1 of 3 problems)")
  assert "**problem a** Answer: 7." in helped and "random wrote: `text wrong` (wrong)." in helped
  assert "1. `second draw` 2.00 · **`kept` 0.50**" in helped  # candidates of the last resample
  assert "first draw" not in helped and "problem c" not in helped + hurt
  assert "gen_ssd (wrong, pruned):" in hurt
  assert "2. none suitable: `too hard` 9.00 · `end` invalid" in hurt


def test_examples_are_one_line_each_and_hold_no_markup_of_a_model(run):
  chunk = {"count": 1, "choice": 0, "score": 0.5, "scores": [0.5], "resamples": 0}
  odd = "a`b``c\n\n# no heading \x1b[31m \u202e"
  mine = _trace("a", "right", chunks=[{**chunk, "text": odd}], problem=odd)
  other = _trace("a", "wrong", text="y" * 10**5)
  for arm, row in (("gen_ssd", mine), ("random", other)):
    path = run / "traces" / arm / "traces-00000.jsonl"
    path.write_text(json.dumps(row) + "\n")
  text = examples.examples(run)
  assert "helped (1 of 1 problems)" in text and "\n# no" not in text and len(text) < 3000
  assert "``` a`b``c⏎⏎# no heading \\x1b[31m \\u202e ``` 0.50" in text
  assert "**a\\`b\\`\\`c # no heading " in text and "... (100,000 characters)" in text


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
  "name,text,said",
  [
    ("kept.json", b"{", "kept.json is damaged (not JSON as it should be"),
    ("kept.json", b'["\xff"]', "kept.json is damaged (not UTF-8 text)"),
    ("kept.json", b"[" * 10**5, "kept.json is damaged (nested more than 100 levels deep)"),
    ("kept.json", b'{"a": 1}', "must be a list of pairs of uuid and attempt"),
    ("kept.json", b'[["a"]]', "must be a list of pairs of uuid and attempt"),
    ("kept.json", b'[["a", true]]', "must be a list of pairs of uuid and attempt"),
    ("kept.json", b'[[["a"], 0]]', "must be a list of pairs of uuid and attempt"),
    ("kept.json", b'[["a", 0], ["zz", 0]]', "it names ['zz', 0], which is not among the traces"),
    ("kept.json", None, "kept.json is missing"),
    ("traces.json", b"", "traces.json is damaged (not JSON as it should be"),
    ("traces.json", b"[]", "must name a folder of traces/"),
    ("traces.json", b'{"collection": "../../elsewhere"}', "must name a folder of traces/"),
    ("traces.json", b'{"collection": "/etc"}', "must name a folder of traces/"),
    ("traces.json", b'{"collection": ["x"]}', "must name a folder of traces/"),
    ("traces.json", b'{"collection": ""}', "must name a folder of traces/"),
    ("traces.json", None, "traces.json is missing"),
  ],
)
def test_a_damaged_list_of_an_arm_is_named_with_its_remedy(run, name, text, said):
  path = run / "arms" / "gen_ssd" / name
  path.unlink() if text is None else path.write_bytes(text)
  with pytest.raises(UserError) as error:
    workdir_lib.arm_rows(run, "gen_ssd")
  assert said in str(error.value) and str(path) in str(error.value)
  assert "delete" in str(error.value) and "kept.json, of a sweep also" in str(error.value)


def test_rows_that_are_no_rows_are_left_out_and_said(run, capsys):
  path = run / "traces" / "gen_ssd" / "traces-00000.jsonl"
  path.write_text(path.read_text() + '{"uuid": "z", "attempt": 0}\n')
  rows, kept = workdir_lib.arm_rows(run, "gen_ssd")
  assert [r["uuid"] for r in rows] == ["a", "b", "c"] and kept == []
  assert f"{path} is damaged in 1 line(s), which are left out" in capsys.readouterr().err


CONFIG = config_lib.parse({"arms": {name: {} for name in ARMS}})


@pytest.mark.parametrize(
  "text,said",
  [
    (None, "results.json is missing"),
    (b"\xff", "results.json is damaged (not UTF-8 text)"),
    (b"[]", "results.json is damaged (it lacks figures of the arm 'standard_kd')"),
    (b'{"arms": {}}', "results.json is damaged (it lacks figures of the arm 'standard_kd')"),
    ({**ARMS, "gen_ssd": {}}, "lacks figures of the arm 'gen_ssd'"),
    ({**ARMS, "gen_ssd": _arm(0.6, ci=[0.1])}, "lacks figures of the arm 'gen_ssd'"),
    ({**ARMS, "gen_ssd": _arm(0.6, seeds=[])}, "lacks figures of the arm 'gen_ssd'"),
    ({**ARMS, "gen_ssd": _arm(0.6, kept="10")}, "lacks figures of the arm 'gen_ssd'"),
    ({**ARMS, "more": None}, "lacks figures of the arm 'more'"),
    (ARMS, "standard_kd lacks answers in seed-*/answers"),
  ],
)
def test_a_comparison_names_the_item_whose_results_are_damaged(tmp_path, text, said):
  (tmp_path / "main").mkdir()
  if isinstance(text, dict):
    text = json.dumps({"arms": text}).encode()
  if text is not None:
    (tmp_path / "main" / "results.json").write_bytes(text)
  with pytest.raises(UserError) as error:
    comparison.write(tmp_path, {"main": CONFIG}, {})
  assert said in str(error.value) and "report.html, and the same command" in str(error.value)


def test_names_cannot_break_a_table():
  name = "a|b\nc\x1b[2J" + "d" * 1000
  text = comparison_tables.markdown(
    {"arms": {name: _arm(0.5)}, "paired": {}, "sweeps": {}, "items": {}}
  )
  line = text.splitlines()[2]
  assert line.startswith(r"| a\|b c\\x1b[2Jd") and "(1,009 characters)" in line
  assert line.count(" | ") == 11
