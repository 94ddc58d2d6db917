"""What a study writes, from results and traces made by hand."""

import json
import xml.etree.ElementTree as xml

import pytest

from gen_ssd.report import comparison


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
FOUND = {"arms": ARMS, "paired": PAIRED, "sweeps": {}}


def test_the_table_has_a_column_per_base_and_dashes_for_what_is_unknown():
  arms, paired = comparison.table(FOUND).strip().split("\n\n")
  for text, columns in ((arms, 12), (paired, 3)):
    assert {line.count("|") for line in text.splitlines()} == {columns + 1}
  assert "| gen_ssd | **60.0** | 50.0 - 70.0 | 55.0 - 65.0 | - | 30.0 | - | 0.500 |" in arms
  assert "| - standard_kd | - posthoc |" in paired and "morsd" not in paired
  assert "| gen_ssd | +40.0 (+25.0 to +55.0) | +30.0 (+15.0 to +45.0) |" in paired
  assert "| posthoc | +10.0 (-5.0 to +25.0) |  |" in paired


def test_answers_that_math_verify_did_not_finish_are_named_between_the_tables():
  assert "math-verify" not in comparison.table(FOUND)
  arms = {**ARMS, "random": _arm(0.4, answer_timeouts=0, trace_crashes=3)}
  _, line, _ = comparison.table({**FOUND, "arms": arms}).strip().split("\n\n")
  assert line == "random: unverifiable because math-verify did not finish: trace crashes 3"


def _places(text):
  """{panel title: {arm: y of its label}} of an SVG file of panels of intervals."""
  space = "{http://www.w3.org/2000/svg}"
  found = {}
  for panel in xml.fromstring(text).findall(f"{space}g"):
    names = panel.findall(f"./{space}g//{space}text[@class='name']")
    found[panel.find(f"{space}text").text] = {t.text: float(t.attrib["y"]) for t in names}
  return found


def test_differences_are_drawn_in_columns_with_every_arm_on_one_line():
  text = comparison.draw(FOUND)["paired.svg"]
  places = _places(text)
  assert [*places] == ["Difference from standard_kd", "Difference from posthoc"]
  first, second = places.values()
  assert first == second and {*first} == {*ARMS}
  root = xml.fromstring(text)
  width, height = (float(root.attrib[x]) for x in ("width", "height"))
  assert width == 2 * 470 and height < 300
  words = " ".join(root.itertext())
  assert words.count("reference") == 2 and "+40.0" in words and "-10.0" in words


def test_only_what_there_is_is_drawn():
  alone = {"arms": {"gen_ssd": ARMS["gen_ssd"]}, "paired": {}, "sweeps": {}}
  assert {*comparison.draw(alone)} == {"arms.svg"}
  one = {"arms": {"posthoc": ARMS["posthoc"]}, "paired": {}, "sweeps": {}}
  assert {*comparison.draw(one)} == {"arms.svg"}  # nothing to compare the base with
  points = [{"value": k, **_arm(0.1 * k)} for k in (2, 4)]
  swept = comparison.draw({**FOUND, "sweeps": {"k": {"gen_ssd": points}}})["sweeps.svg"]
  words = " ".join(xml.fromstring(swept).itertext())
  assert "k: accuracy" in words and "k: cost" in words and "gen_ssd, 4: 40%" in words
  assert "gen_ssd, 4: 10" in words  # teacher tokens per kept trace


# ---------------------------------------------------------------- examples


def _trace(uuid, verdict, stop="ended", chunks=()):
  return {
    "uuid": uuid,
    "attempt": 0,
    "problem": f"problem {uuid}",
    "answer": "7",
    "text": f"text {verdict}",
    "verdict": verdict,
    "stop": stop,
    "chunks": list(chunks),
  }


def _lost(uuid, chunk, resample, branch, text, score):
  place = {"uuid": uuid, "attempt": 0, "chunk": chunk, "resample": resample, "branch": branch}
  return {**place, "text": text, "score": score}


@pytest.fixture
def run(tmp_path):
  chunk = {"text": "kept", "choice": 1, "scores": [2.0, 0.5], "resamples": 1}
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
    (folder / "in_flight.json").write_text('{"shards": 1, "rows": []}')
    (home / "traces.json").write_text(json.dumps({"collection": arm}))
    (home / "kept.json").write_text("[]")
  (tmp_path / "traces" / "gen_ssd" / "candidates-00000.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in lost)
  )
  return tmp_path


def test_examples_show_where_selection_helped_and_where_it_hurt(run):
  helped, hurt = comparison.examples(run).split("## Where selection hurt")
  assert "helped (1 of 3 problems)" in helped and hurt.startswith(" (1 of 3 problems)")
  assert "**problem a** Answer: 7." in helped and "random wrote: `text wrong` (wrong)." in helped
  assert "1. `second draw` 2.00 · **`kept` 0.50**" in helped  # candidates of the last resample
  assert "first draw" not in helped and "problem c" not in helped + hurt
  assert "gen_ssd (wrong, pruned):" in hurt
  assert "2. none suitable: `too hard` 9.00 · `end` invalid" in hurt
