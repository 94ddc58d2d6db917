"""What the page says of results.json: rows, verdict, order of arms, and figures."""

import json
import re

from gen_ssd.report import comparison_figures
from gen_ssd.report import figures
from gen_ssd.report import looks
from gen_ssd.report import statistics
from tests.report import made_run
from tests.report.made_run import RESULTS
from tests.report.made_run import page_of

MODELS = {
  "teacher": {"accuracy": 0.9, "ci": [0.86, 0.93], "n": 320, "mean_tokens": 41.0, "truncated": 0.0},
  "base": {"accuracy": 0.123, "ci": [0.09, 0.16], "n": 320, "mean_tokens": 40.0, "truncated": 0.1},
  "cold_start": {"accuracy": 0.4, "ci": [0.35, 0.45], "n": 320, "mean_tokens": 40.0},
}


def _results(path, **more):
  """The page of a small run whose results.json has `more`, and what is in it per arm."""
  made_run.make(path, problems=4)
  (path / "results.json").write_text(json.dumps({**RESULTS, **more}))
  return page_of(path)


def _arms(**changes):
  """RESULTS["arms"] where every arm has its part of `changes`: {field: {arm: value}}."""
  return {
    name: {**arm, **{f: its[name] for f, its in changes.items() if name in its}}
    for name, arm in RESULTS["arms"].items()
  }


def _rows(text):
  """The rows of the table of arms, as lists of their words."""
  table = re.search("<tbody>(.*?)</tbody>", text, re.DOTALL)[1]
  words = lambda row: [w for w in re.sub("<[^>]*>", "\n", row).split("\n") if w.strip()]
  return [[w.strip() for w in words(row)] for row in table.split("</tr>") if words(row)]


def test_models_that_no_arm_trained_have_rows_above_the_arms_and_lines_in_the_figure(tmp_path):
  text = _results(tmp_path, models=MODELS)
  rows = _rows(text)
  assert [row[0] for row in rows[:4]] == [
    "teacher",
    "base student",
    "cold-started student",
    "random",
  ]
  assert rows[1] == ["base student", "12.3%", "[9.0, 16.0]", "320", "40.0", "10.0%", *"––––"]
  assert rows[2][5] == "–"  # nobody counted how many were truncated
  assert text.count('class="against"') == 3
  assert text.count("★") == 0 and "<b>teacher</b> is best" not in text


def test_models_may_be_missing_or_no_models(tmp_path):
  without = _results(tmp_path)
  for models in ({}, [], {"teacher": 3, "base": {}, "other": {"accuracy": 1}}):
    assert len(_rows(_results(tmp_path, models=models))) == len(_rows(without)) == 4


def test_the_verdict_names_the_seeds_it_rests_on(tmp_path):
  seeds = lambda n: {name: [0.5] * n for name in RESULTS["arms"]}
  ci = {"gen_ssd": [0.73, 0.75]}
  one = _results(tmp_path, arms=_arms(seeds=seeds(1), ci={**ci, "posthoc": [0.69, 0.71]}))
  assert "<b>gen_ssd</b> is best on one training seed: its 95%" in one
  assert "This is said of this run alone" in one
  three = _results(tmp_path, arms=_arms(seeds={**seeds(5), "gen_ssd": [0.5] * 3}))
  assert "(73.8% over 3 training seeds), but" in three and "this run alone" not in three
  assert "training seed" not in _results(tmp_path)  # not known


def test_one_order_of_arms_everywhere_and_it_is_that_of_accuracy(tmp_path):
  text = _results(tmp_path)
  ascending = ["random", "standard_kd", "posthoc", "gen_ssd"]
  assert [row[0] for row in _rows(text)] == ascending
  figure = text[text.index("<title>Accuracy</title>") :]
  assert re.findall('class="name"[^>]*>([^<]*)<', figure)[:4] == ascending
  found = {"arms": _arms(seeds={n: [0.5] for n in ascending}), "paired": {}}
  found["arms"] = {name: found["arms"][name] for name in ascending}
  drawn = comparison_figures.draw({**found, "items": {}, "sweeps": {}})["arms.svg"]
  assert re.findall('class="name"[^>]*>([^<]*)<', drawn)[1:] == ascending


def test_an_arm_has_the_same_look_in_every_run():
  assert looks.looks(["zeta", "gen_ssd", "alpha"]) == {
    "gen_ssd": looks.KNOWN_ARMS.index("gen_ssd"),
    "alpha": len(looks.KNOWN_ARMS),
    "zeta": len(looks.KNOWN_ARMS) + 1,
  }
  assert looks.looks(["random"])["random"] == looks.looks(["random", "a", "gen_ssd"])["random"]


def test_arms_without_an_accuracy_come_last_in_their_order():
  given = {"d": None, "b": 0.5, "a": 0.5, "c": 0.1, "e": None}
  assert looks.order(given) == ["c", "b", "a", "d", "e"]


def test_differences_from_the_arms_of_the_same_cost_are_in_results_and_first_on_the_page(tmp_path):
  answers = [{"uuid": "p", "verdict": "right", "stop": "ended", "num_tokens": 3, "graded_by": "x"}]
  names = ("gen_ssd", "random", "posthoc", "standard_kd")
  arms = {name: statistics.accuracy([answers], 1) for name in names}
  paired = lambda *names: [
    *statistics.results({n: arms[n] for n in names}, {n: [answers] for n in names})["paired"]
  ]
  assert paired(*names)[-2:] == ["gen_ssd-posthoc", "gen_ssd-random"]
  assert paired("gen_ssd", "posthoc") == ["posthoc-gen_ssd", "gen_ssd-posthoc"]
  assert paired("random", "standard_kd") == ["random-standard_kd"]
  text = _results(tmp_path)
  figure = text[text.index("<title>Paired difference") :]
  assert re.findall('class="name"[^>]*>([^<]*)<', figure)[0] == "gen_ssd − posthoc"


def test_pass_at_k_is_drawn_for_several_k_only(tmp_path):
  at = lambda *ks: {str(k): {"value": 0.1 * k, "ci": [0, 0.2 * k]} for k in ks}
  both = {"pass_at_k": {"gen_ssd": at(4, 1, 2), "random": at(1, 4)}}
  text = _results(tmp_path, arms=_arms(**both, maj_at_k={"gen_ssd": at(1)}))
  figure = text[text.index("<title>pass@k</title>") :]
  assert "<title>maj@k</title>" not in text
  ticks = re.findall('text-anchor="middle">([^<]*)<', figure)
  assert ticks[:3] == ["1", "2", "4"] and "gen_ssd, 2: 20%" in figure
  for odd in ({"x": at(1)}, {"1": 3, "²": {"value": 1}}, [1], {"1": {"value": "a"}}):
    assert "pass@k" not in _results(tmp_path, arms=_arms(pass_at_k={"gen_ssd": odd}))


def test_the_last_number_and_diversity_are_shown_where_known(tmp_path):
  assert "last number" not in _results(tmp_path) and "Diversity" not in _results(tmp_path)
  diversity = {"kept": {"distinct_ngrams": 0.25}, "answers": {"distinct_texts": 0.5}}
  arms = _arms(
    last_number={"gen_ssd": {"value": 0.75}, "random": None}, diversity={"gen_ssd": diversity}
  )
  text = _results(tmp_path, arms=arms)
  assert "right by last number" in text
  assert [row[7] for row in _rows(text) if row[0] == "random"] == ["–"]
  assert "75.0%" in next(row for row in _rows(text) if row[0] == "gen_ssd")
  table = text[text.index("Diversity:") :]
  assert "<td>0.250</td>" in table and "<td>0.500</td>" in table


def test_instruments_are_shown_with_what_they_are_and_a_dash_where_not_measured(tmp_path):
  assert "What the students learned" not in _results(tmp_path)
  ways = lambda *shares: dict(zip(("fine", "coarse", "detour"), shares), steps=9, other=0.0)
  arms = _arms(
    kl_own={"gen_ssd": {"value": 0.1234, "ci": [0, 1], "n": 4}},
    wrong_minus_right={"gen_ssd": {"value": -0.25}, "random": {"value": 1.5}},
    pass_at_k={"random": {"1": {"value": 0.25}, "8": {"value": 0.625}}},
    student_tokens={"gen_ssd": 1234, "random": 0},
  )
  head, end = "Table of instruments", "How the student chose"
  cut = lambda text: text[text.index(head) : text.index(end)]
  table = cut(_results(tmp_path, arms=arms))
  rows = {row[0]: row[1:] for row in _rows(table)}
  assert rows["gen_ssd"] == ["0.123", "-0.250", "–", "1,234"]
  assert rows["random"] == ["–", "1.500", "62.5% (k = 8)", "0"]
  assert all(f"<b>{name}</b>: " in table for name in ("KL(S‖T)", "wrong − right", "pass@k"))
  assert "KL(T‖S)" not in table  # no model has it
  arms = _arms(ways={"gen_ssd": {"kept": ways(0.5, 0.25, 0.25), "answers": None}})
  rows = {row[0]: row[1:] for row in _rows(cut(_results(tmp_path, arms=arms)))}
  assert rows["gen_ssd"][0] == "50 / 25 / 25%" and {*rows["random"]} == {"–"}
  for odd in ([1], {"kept": 3}, {"kept": {"fine": "x"}}):
    assert head not in _results(tmp_path, arms=_arms(ways={"gen_ssd": odd}, kl_own={"random": odd}))


def test_picks_are_shown_beside_chance_where_something_was_chosen(tmp_path):
  assert "Picks:" not in _results(tmp_path)
  shares = {"longest": 0.25, "shortest": 0.5, "repeated": 0.0}
  found = {"rounds": 40, **shares, "chance": {**shares, "longest": 0.375}}
  text = _results(tmp_path, arms=_arms(picks={"gen_ssd": found, "random": None}))
  table = text[text.index("Picks:") :]
  assert "<td>25.0% (37.5%)</td>" in table and "<td>50.0% (50.0%)</td>" in table
  for odd in ([1], {"rounds": "many"}, {"rounds": 3, "longest": "x", "chance": [2]}):
    _results(tmp_path, arms=_arms(picks={"gen_ssd": odd}))


def test_many_rows_are_a_line_of_text_high():
  rows = [figures.Estimate(i, f"arm {i}", 0.1 * i, (0, 0.2 * i), f"{i}") for i in range(46)]
  few, many = (figures.intervals("", "", rows[:n], str).height for n in (12, 46))
  assert few > 12 * 40 and many < 46 * 24 + 40


def test_the_loss_of_every_seed_is_one_line_of_at_most_200_points(tmp_path):
  made_run.make(tmp_path, problems=2)
  assert "Loss of the student" not in page_of(tmp_path)
  for seed in (0, 1):
    home = tmp_path / "arms" / "gen_ssd" / f"seed-{seed}" / "checkpoints"
    rows = [{"step": i, "loss": 3 / i, "targets": 9.0} for i in range(1, 1002)]
    made_run.write_lines(home / "metrics.jsonl", [*rows, {"step": "x", "loss": 1}, [3]])
  text = page_of(tmp_path)
  figure = text[text.index("<title>Loss of the student") :]
  lines = re.findall('class="curve thin [^"]*" points="([^"]*)"', figure)
  assert [len(line.split()) for line in lines] == [167, 167]
  assert "gen_ssd: 0.003 at 1,001" in figure  # the last update is among the points
  assert figure[: figure.index("</figure>")].count(">gen_ssd</text>") == 1
  assert "seed-1/checkpoints/metrics.jsonl: 2 lines without a step and a loss skipped" in text


def test_times_of_the_parts_of_a_run(tmp_path):
  made_run.make(tmp_path, problems=2)
  assert "<h2>Time</h2>" not in page_of(tmp_path)  # no time is known

  def took(folder, *rows):
    lines = ["begun,seconds,tokens", *(f"2026-01-01T00:00:00+00:00,{row}" for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "times.csv").write_text("\n".join(lines))

  arms = tmp_path / "arms"
  took(tmp_path / "cold_start" / "traces", "10,100")
  took(tmp_path / "cold_start" / "calibration-1", "10,20")
  took(tmp_path / "models" / "teacher" / "answers", "2,300")
  took(tmp_path / "traces" / "genssd", "100,1000", "50,2000", "damaged")  # stopped once
  for seed in (0, 1):
    took(arms / "gen_ssd" / f"seed-{seed}" / "checkpoints", "30,6000")
  took(arms / "gen_ssd" / "seed-0" / "answers-hard", "3600,7200")
  text = page_of(tmp_path)
  text = " ".join(re.sub("<[^>]+>", " ", text[text.index("<h2>Time</h2>") :]).split())
  assert "All parts together: 1 h 3 min, compilation included." in text
  assert "cold start 20.0 s 6 – – – –" in text
  assert "teacher – – – – 2.0 s 150" in text
  assert "gen_ssd 2 min 30 s 20 1 min 0 s 200 1 h 0 min 2" in text


def test_what_made_the_results_stands_beside_what_drew_the_page(tmp_path):
  made = {
    "commit": "abc-dirty",
    "packages": {"jax": "0.9.9", "flax": None, "<b>": "1"},
    "python": "3.11.7",
    "device": "TPU v5e",
    "devices": 8,
    "command": "gen-ssd run --config=<x>",
  }
  text = _results(tmp_path, made_by=made)
  assert "versions: python 3.11.7, jax 0.9.9, &lt;b&gt; 1</li>" in text
  assert "commit: abc-dirty" in text and "devices: 8 × TPU v5e" in text
  assert "<code>gen-ssd run --config=&lt;x&gt;</code>" in text
  assert "Versions on the machine that drew it: python" in text
  for odd in (None, [], {}, {"packages": [], "devices": "x", "python": None}):
    assert "The results were made by" not in _results(tmp_path, made_by=odd)
