"""The list of traces of the page: which are listed, how much, and what can be told of them."""

import json
import random
import re
import shutil
import subprocess

import pytest

from gen_ssd.report import page
from gen_ssd.report import sample
from tests.report import made_run
from tests.report.made_run import CONFIG
from tests.report.made_run import page_of


def _traces(path, arm, rows):
  """Replaces the traces of an arm by rows that have `changes` of a made-up one."""
  folder = path / "traces" / arm.replace("_", "")
  for old in folder.iterdir():
    old.unlink()
  whole = []
  for i, changes in enumerate(rows):
    row, _ = made_run.trace(random.Random(i), arm, i, made_run.K, 0.5)
    whole.append({**row, "stop": "ended", "verdict": "right", **changes})
  made_run.write_lines(folder / "traces-00000.jsonl", whole)


def _list(text):
  return text[text.index("<h2>Traces</h2>") :]


def test_a_page_of_ten_thousand_traces_stays_under_5_mb(tmp_path):
  made_run.make(tmp_path, problems=1)
  rng = random.Random(0)
  long = "<\x00\u202e'&\"日本 " * 120
  for arm in CONFIG["arms"]:
    _traces(
      tmp_path,
      arm,
      [
        {
          "text": f"<think>{long}</think>{long}",
          "verdict": rng.choice(["right", "wrong", "unverifiable"]),
          "stop": rng.choice(["ended", "length"]),
          "chunks": [],
        }
        for _ in range(2500)
      ],
    )
  path = page.write_report(tmp_path)
  assert 1_000_000 < path.stat().st_size < 5_000_000
  assert "of 10,000 traces" in path.read_text(encoding="utf-8")


def test_traces_that_differ_come_first_and_every_outcome_has_its_share():
  keys = [(f"p{i}", 0) for i in range(400)]
  right = {key: ("right", "ended") for key in keys}
  other = {**right, **{key: ("wrong", "ended") for key in keys[:300]}}
  other[keys[350]] = ("right", "length")
  other[keys[351]] = ("unverifiable", "loop")
  found = sample.pick({"a": right, "b": other}, 40)
  assert len(found) == len({*found}) == 40
  assert all(key in keys[:300] or key == keys[351] for key in found[:20])
  assert {keys[350], keys[351]} <= {*found}  # the only ones of their kind
  assert found == sample.pick({"a": right, "b": other}, 40)
  assert sample.pick({}, 5) == sample.pick({"a": {}}, 5) == []


def test_the_traces_of_a_problem_stand_side_by_side_in_the_order_of_the_arms(tmp_path):
  made_run.make(tmp_path, problems=2)
  text = _list(page_of(tmp_path))
  assert text.count('<details class="case"') == 2 and text.count('<div class="side"') == 8
  first = text[: text.index("</details>")]
  arms = re.findall(r"<b>(\w+)</b>", first)
  assert arms[-4:] == ["random", "standard_kd", "posthoc", "gen_ssd"]
  assert "8 of 8 traces" in text


def test_reasoning_is_folded_and_everything_is_escaped(tmp_path):
  made_run.make(tmp_path, problems=1)
  texts = {
    "gen_ssd": "<think>\nfirst <b> 1 + 1 = 3\n</think>\n\nso <i>2</i>",
    "random": "no tag before</think>the end",
    "posthoc": "<think> never ends",
    "standard_kd": "plain",
  }
  for arm, text in texts.items():
    chunk = {"text": text, "count": 1, "choice": 0, "score": 1, "scores": [1], "resamples": 0}
    _traces(tmp_path, arm, [{"text": text, "verdict": "wrong", "chunks": [chunk]}])
  text = _list(page_of(tmp_path))
  folded = re.findall(r"reasoning, (\d+) characters</summary>\s*<p[^>]*>([^<]*)</p>", text)
  assert sorted(folded) == [
    ("10", "never ends"),
    ("13", "no tag before"),
    ("19", "first &lt;b&gt; 1 + 1 = 3"),
  ]
  for said in ("so &lt;i&gt;2&lt;/i&gt;", "the end", "plain"):
    assert f'dir="auto">{said}</p>' in text
  assert text.count("first false equation: <b>1 + 1 = 3</b>") == 1


def test_filters_offer_what_there_is(tmp_path):
  made_run.make(tmp_path, problems=30)
  text = _list(page_of(tmp_path))
  options = {
    what: re.findall('<option value="([^"]*)">([^<]*)<', block)
    for what, block in re.findall(
      '<select data-what="(\\w+)" [^>]*>(.*?)</select>', text, re.DOTALL
    )
  }
  assert [*options] == ["verdict", "arm", "stop", "first", "second"]
  assert [v for v, _ in options["verdict"]] == ["", "pruned", "right", "wrong"]
  assert [v for v, _ in options["stop"]] == ["", "ended", "pruned"]
  assert [label for _, label in options["arm"]][1:] == [
    "random",
    "standard_kd",
    "posthoc",
    "gen_ssd",
  ]
  looks = {v for v, _ in options["arm"] if v}
  assert {*re.findall('data-arm="([^"]*)"', text)} == looks


def test_a_run_without_traces_has_no_list(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  assert "<h2>Traces</h2>" not in page_of(tmp_path)


FAKE = """
const make = (verdict, arm, stop) => ({dataset: {verdict, arm, stop}, hidden: false});
const cases = [
  [make('right', '0', 'ended'), make('wrong', '1', 'length')],
  [make('right', '0', 'ended'), make('right', '1', 'ended')],
  [make('wrong', '0', 'ended')],
].map(sides => ({sides, hidden: false, querySelectorAll: () => sides}));
const selects = ['verdict', 'arm', 'stop', 'first', 'second']
  .map(what => ({dataset: {what}, value: ''}));
const output = {textContent: ''};
let listener;
const filters = {hidden: true, querySelector: () => output, querySelectorAll: () => selects,
  addEventListener: (_, f) => { listener = f; }};
globalThis.document = {
  querySelector: what => what === '.filters' ? filters : null,
  querySelectorAll: what => what === '.case' ? cases : [],
};
"""


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
@pytest.mark.parametrize(
  "chosen,shown",
  [
    ({}, ["11", "11", "1"]),
    ({"verdict": "wrong"}, ["01", "00", "1"]),
    ({"arm": "0", "verdict": "right"}, ["10", "10", "0"]),
    ({"stop": "length"}, ["01", "00", "0"]),
    ({"first": "0", "second": "1"}, ["11", "00", "0"]),
    ({"first": "1", "second": "0", "stop": "length"}, ["11", "00", "0"]),
    ({"first": "0", "second": "0"}, ["00", "00", "0"]),
  ],
)
def test_the_script_shows_what_the_filters_ask_for(chosen, shown):
  ask = f"""
for (const select of selects) select.value = {json.dumps(chosen)}[select.dataset.what] || '';
listener();
console.log(JSON.stringify([filters.hidden, output.textContent,
  cases.map(c => c.sides.map(s => s.hidden ? '0' : '1').join('')), cases.map(c => c.hidden)]));
"""
  script = FAKE + "{" + page.SCRIPT + "}" + ask
  said = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
  hidden, words, sides, whole = json.loads(said.stdout)
  assert not hidden and sides == shown and whole == ["1" not in s for s in shown]
  count = sum("1" in s for s in shown)
  assert words == f"{count} {'problem' if count == 1 else 'problems'}"
