"""`gen-ssd report --text`: what it prints of a run, and what it says of wrong flags."""

import json
import random
import sys

import pytest

from gen_ssd.report import __main__ as command
from gen_ssd.report import terminal
from tests.report import made_run
from tests.report.made_run import RESULTS

ODD = "\x1b[2J \u202e \x00"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose arms have three traces each, and one with odd characters."""
  path = tmp_path_factory.mktemp("run")
  made_run.make(path, problems=4)
  verdicts = {"gen_ssd": "right wrong right", "random": "right right wrong"}
  for arm, words in verdicts.items():
    folder = path / "traces" / arm.replace("_", "")
    for old in folder.iterdir():
      old.unlink()
    rows = []
    for i, verdict in enumerate(words.split()):
      row, _ = made_run.trace(random.Random(i), arm, i, made_run.K, 0.5)
      stop = "length" if i == 2 else "ended"
      text = f"<think>why</think>{arm} {i}"
      rows.append({**row, "verdict": verdict, "stop": stop, "text": text, "problem": f"p{i} {ODD}"})
    made_run.write_lines(folder / "traces-00000.jsonl", rows)
  return path


def _said(path, **wanted):
  return terminal.text(path, terminal.Wanted(**wanted))


def test_the_table_has_the_arms_in_ascending_order_and_the_differences(run):
  lines = _said(run, limit=0).splitlines()
  assert lines[0].startswith("arm ") and "accuracy" in lines[0]
  arms = [line.split()[0] for line in lines[1:5]]
  assert arms == ["random", "standard_kd", "posthoc", "gen_ssd"]
  assert len({len(line) for line in lines[:5]}) == 1  # columns
  assert lines[5].startswith("gen_ssd − posthoc: +3.5 includes 0 (−0.1 to +7.0 points)")


@pytest.mark.parametrize(
  "wanted,shown",
  [
    (dict(arm="gen_ssd"), ["gen_ssd 0", "gen_ssd 1", "gen_ssd 2"]),
    (dict(arm="gen_ssd", verdict="wrong"), ["gen_ssd 1"]),
    (dict(arm="random", stop="length"), ["random 2"]),
    (dict(arm="gen_ssd", stop="length", verdict="wrong"), []),
    (dict(arm="gen_ssd", limit=1), ["gen_ssd 0"]),
    (dict(arm="gen_ssd", against="random"), ["gen_ssd 1", "random 1", "gen_ssd 2", "random 2"]),
    (dict(arm="gen_ssd", against="random", verdict="right"), ["gen_ssd 2", "random 2"]),
  ],
)
def test_the_traces_that_fit_the_flags_are_printed(run, wanted, shown):
  text = _said(run, **wanted)
  printed = [
    x for x in text.splitlines() if x in {f"{a} {i}" for a in RESULTS["arms"] for i in "012"}
  ]
  assert printed == shown
  assert text.count("<think>\nwhy\n</think>") == len(shown)


def test_control_characters_are_shown(run):
  text = _said(run)
  assert r"\x1b[2J \u202e \x00" in text and not any(c in text for c in "\x1b\u202e\x00")


def _call(monkeypatch, capsys, *flags):
  monkeypatch.setattr(sys, "argv", ["gen-ssd report", *flags])
  code = 0
  try:
    command.main()
  except SystemExit as stop:
    code = stop.code
  return code, *capsys.readouterr()


@pytest.mark.parametrize(
  "flags,said",
  [
    (["--arm=gen_ssd"], "--arm is 'gen_ssd': it needs --text"),
    (
      ["--text", "--arm=no"],
      "--arm is 'no': it must be one of random, standard_kd, posthoc, gen_ssd",
    ),
    (["--text", "--verdict=bad"], "--verdict is 'bad': it must be one of "),
    (["--text", "--stop=bad"], "--stop is 'bad': it must be one of "),
    (["--text", "--against=random"], "--against is 'random': it needs --arm"),
    (["--text", "--arm=random", "--against=random"], "must not be the same as --arm"),
    (["--text", "--limit=-1"], "--limit is '-1': it must be a whole number from 0 to 10,000"),
    (["--text", "--limit=²"], "--limit is '²': it must be"),
    (["--text", "--limit="], "--limit is '': it must be"),
  ],
)
def test_a_wrong_flag_is_one_message(run, monkeypatch, capsys, flags, said):
  code, out, err = _call(monkeypatch, capsys, f"--workdir={run}", *flags)
  assert code == 2 and not out and said in err and err.count("\n") == 1


def test_the_command_prints_and_draws_nothing(run, monkeypatch, capsys):
  code, out, _ = _call(monkeypatch, capsys, f"--workdir={run}", "--text", "--arm=gen_ssd")
  assert code == 0 and "3 of 3 traces that fit" in out and not (run / "report.html").exists()


def test_an_unfinished_run_has_a_table_too(tmp_path):
  made_run.make(tmp_path, problems=4)
  (tmp_path / "results.json").unlink()
  text = _said(tmp_path, limit=1)
  assert "* counted from the trace files written so far" in text and "gen_ssd" in text
  (tmp_path / "results.json").write_text(json.dumps({"arms": 3}))
  assert "1 of 16 traces that fit" in _said(tmp_path, limit=1)
