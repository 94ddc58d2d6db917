"""Makes results.json of a run from its files: what its models answered, and what its arms cost."""

from collections.abc import Mapping
import json
from typing import Any

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import provenance
from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.problems import answers
from gen_ssd.report import measures
from gen_ssd.report import statistics

Results = dict[str, Any]


def write(
  workdir: folders.Path,
  config: config_lib.Config,
  tests: Mapping[str, int],
  together: int,
  training: int,
) -> Results:
  """Writes and returns results.json of a run whose models have answered every test.

  tests: {name of a test: number of problems}. together: number of problems of all tests, each counted
  once. training: number of training problems.

  It holds `models` (the references), `arms` and `paired` (differences between arms), over the problems
  of all tests; with several tests also `tests`, the same for each; and `made_by`. `held_out_nll` is
  the student's mean nll, in nats per token, of right answers that the teacher gave to test problems;
  instruments.py says what `kl_own`, `kl_data`, `own_entropy` and `wrong_minus_right` are,
  and measures.ways what `ways` are.
  Raises UserError where files of the run are missing or damaged.
  """
  rows = {
    (kind, name, test): [workdir_lib.finished_rows(workdir_lib.answers(h, test)) for h in homes]
    for kind, name, homes in _homes(workdir, config)
    for test in tests
  }
  costs = {name: _cost(workdir, name, arm.select, training) for name, arm in config.arms}
  with answers.Grader() as grader:
    each = {t: _of({k[:2]: x for k, x in rows.items() if k[2] == t}, n, costs, grader)
            for t, n in tests.items()}  # fmt: skip
    found = next(iter(each.values()))
    if len(tests) > 1:
      pooled = {
        (kind, name): [sum(seeds, []) for seeds in zip(*(rows[kind, name, t] for t in tests))]
        for kind, name, _ in rows
      }
      found = {**_of(pooled, together, costs, grader), "tests": each}
  for kind, name, homes in _homes(workdir, config):
    if nlls := _figure(_files(homes, "held_out.json", _numbers)):
      found[kind][name]["held_out_nll"] = nlls
    read = _files(homes, "instruments.json", lambda x: all(map(_numbers, x.values())))
    for what in sorted({what for each in read for what in each}):
      if figure := _figure([each.get(what, {}) for each in read]):
        found[kind][name][what] = figure
  found = {**found, "made_by": provenance.provenance()}
  folders.write(workdir / "results.json", json.dumps(found, indent=1))
  return found


def _homes(workdir, config):
  """(models or arms, name, folders of its seeds) of all that has answered."""
  for name in config.references:
    if (home := workdir / "models" / name).exists():
      yield "models", name, [home]
  for name, _ in config.arms:
    yield "arms", name, [workdir / "arms" / name / f"seed-{i}" for i in range(config.seeds)]


def _cost(workdir, name, select, training):
  """What arm `name` collected: costs, thresholds, what was picked, how much its kept traces differ."""
  rows, kept = workdir_lib.arm_rows(workdir, name)
  lost = workdir_lib.lost_candidates(workdir_lib.collection(workdir, name))
  own = (workdir / "arms" / name).glob("seed-*/rounds/*/traces")
  written = sum(r["num_tokens"] for home in own for r in workdir_lib.finished_rows(home))
  return {
    **statistics.collected(rows, kept, training, whole=select.granularity == "trace"),
    "student_tokens": written,
    "thresholds": workdir_lib.thresholds(workdir, name),
    "diversity": {"kept": measures.diversity(kept)},
    "ways": {"kept": measures.ways(kept)},
    "picks": measures.picks(rows, lost),
  }


def _files(homes, name, fits):
  """The JSON objects of a file of every seed; none where a seed has no such file."""
  files, remedy = [home / name for home in homes], "remove it and evaluate again"
  if not all(file.exists() for file in files):
    return []
  found = [workdir_lib.read_json(file, remedy) for file in files]
  for file, x in zip(files, found):
    if not (isinstance(x, dict) and fits(x)):
      raise UserError(f"{clip(str(file))} is damaged (it must hold figures by problem): {remedy}")
  return found


def _numbers(x):
  return isinstance(x, dict) and all(type(v) in (int, float) for v in x.values())


def _figure(seeds):
  """{"value", "ci", "n"} of {uuid: figure} of every seed, over what all have; None without any."""
  common = set.intersection(*map(set, seeds)) if seeds else set()
  if not common:
    return None
  value, ci, _ = statistics.estimate([{u: x[u] for u in common} for x in seeds], len(common))
  same = len({x[u] for x in seeds for u in common}) == 1
  return {"value": value, "ci": [value, value] if same else ci, "n": len(common)}


def _of(rows, total, costs, grader):
  """The entries of results.json on `total` problems. rows: {(kind, name): rows of every seed}."""
  figures = {
    key: {
      **statistics.accuracy(seeds, total),
      **measures.sampled(seeds, total, grader),
      "diversity": {
        "answers": measures.diversity(sum(seeds, [])),
        **(costs[key[1]]["diversity"] if key[0] == "arms" else {}),
      },
      "ways": {
        "answers": measures.ways(sum(seeds, [])),
        **(costs[key[1]]["ways"] if key[0] == "arms" else {}),
      },
    }
    for key, seeds in rows.items()
  }
  arms = {name: {**costs[name], **x} for (kind, name), x in figures.items() if kind == "arms"}
  return {
    "models": {name: x for (kind, name), x in figures.items() if kind == "models"},
    **statistics.results(arms, {name: x for (kind, name), x in rows.items() if kind == "arms"}),
  }


def tables(found: Results, config: config_lib.Config) -> str:
  """results.json as text for a terminal: a table for every test, and for all together."""
  names = {} if config.arms else {"base": config.name}  # an evaluation has the name of its model
  table = lambda one: statistics.table(one, names)
  parts = [f"{test}\n{table(one)}" for test, one in found.get("tests", {}).items()]
  return "\n".join([*parts, "all tests\n" * bool(parts) + table(found)])
