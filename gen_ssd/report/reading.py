"""Reads the files of a run for its page. Every file is untrusted and may be half written.

Nothing that a file holds raises here. What cannot be read is left out, and a sentence about it is
appended to `notes`, which the page shows in its footer. Files are read one shard at a time, so that a
run of any size fits in memory.
"""

from collections.abc import Iterator
import dataclasses
import json
from typing import Any

from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.folders import Path
from gen_ssd.report import looks
from gen_ssd.report import traces as traces_lib
from gen_ssd.report import values
from gen_ssd.report.words import cut

FEW_ROUNDS = 10  # a tree of at most this many rounds is easy to read
MODELS = {"teacher": "teacher", "base": "base student", "cold_start": "cold-started student"}
MOST_ARMS = 64  # on a page
MOST_SEEDS, MOST_POINTS = 10, 200  # lines of losses of an arm, and points of a line


@dataclasses.dataclass(kw_only=True)
class Collected:
  """What one arm's trace files hold."""

  traces: int = 0
  kept: int = 0
  pruned: int = 0
  problems: int = 0  # problems with at least one trace
  teacher_tokens: float | None = None
  nlls: list[float] = dataclasses.field(default_factory=list)  # kept traces, nats per token
  lengths: list[float] = dataclasses.field(default_factory=list)  # kept traces, tokens
  # {trace: (outcome, stop cause)}
  outcomes: dict[tuple[str, int], tuple[str, str]] = dataclasses.field(default_factory=dict)
  examples: dict[str, list[traces_lib.Trace]] = dataclasses.field(
    default_factory=dict
  )  # by outcome


@dataclasses.dataclass(kw_only=True, frozen=True)
class Arm:
  name: str
  look: int  # number of its colour and shape
  results: dict  # its part of results.json
  changes: dict  # settings that differ from the config's `select`
  folder: Path | None  # of its traces
  collected: Collected | None
  losses: list[list[tuple[float, float]]]  # of every seed: (update, loss in nats per token)

  @property
  def label(self) -> str:
    """The name, of bounded length."""
    return cut(self.name, values.SHORT)

  @property
  def seeds(self) -> int:
    """Training seeds on which its accuracy rests; 0: not known."""
    return len(values.numbers(self.results.get("seeds")))


@dataclasses.dataclass(kw_only=True, frozen=True)
class Run:
  config: dict
  results: dict
  arms: list[Arm]  # in ascending order of accuracy, then those that were not evaluated
  notes: list[str]

  @property
  def models(self) -> dict[str, dict]:
    """{label: accuracy and more} of the models that no arm trained, as far as they were evaluated."""
    found = values.as_dict(self.results.get("models"))
    return {label: its for key, label in MODELS.items() if (its := values.as_dict(found.get(key)))}


def read_run(workdir: Path, trees: int) -> Run:
  """Everything the page says about `workdir`, with at least `trees` traces of each outcome to draw.

  Raises UserError when config.json is missing or is not a JSON object.
  """
  notes: list[str] = []
  config = _config(workdir)
  results = values.as_dict(read_json(workdir / "results.json", notes))
  evaluated, settings = values.as_dict(results.get("arms")), values.as_dict(config.get("arms"))
  homes = {p.name: p for p in sorted(workdir.glob("arms/*")) if p.is_dir()}
  names = {*evaluated, *homes, *settings}
  look = looks.looks(names)
  if len(look) > MOST_ARMS:
    notes.append(f"{len(look) - MOST_ARMS:,} of {len(look):,} arms")
  shown = set([*look][:MOST_ARMS])
  ordered = looks.order(
    {
      name: values.number(values.as_dict(evaluated.get(name)).get("accuracy"))
      for name in dict.fromkeys([*evaluated, *settings, *homes])
      if name in shown
    }
  )
  folders = {name: _traces_folder(homes[name], notes) for name in ordered if name in homes}
  collected = {
    name: _collected(homes[name], folder, trees, notes) for name, folder in folders.items()
  }
  arms = [
    Arm(
      name=name,
      look=look[name],
      results=values.as_dict(evaluated.get(name)),
      changes=_changes(config, values.as_dict(settings.get(name))),
      folder=folders.get(name),
      collected=collected.get(name),
      losses=_losses(homes[name], notes) if name in homes else [],
    )
    for name in ordered
  ]
  return Run(config=config, results=results, arms=arms, notes=notes)


def _changes(config, arm):
  """What the settings of an arm change in `select` and, as train.FIELD, in `train`."""
  changed = lambda its, shared: {k: v for k, v in its.items() if k not in shared or shared[k] != v}
  train = changed(values.as_dict(arm.get("train")), values.as_dict(config.get("train")))
  select = {k: v for k, v in arm.items() if k != "train"}
  return {
    **changed(select, values.as_dict(config.get("select"))),
    **{f"train.{k}": v for k, v in train.items()},
  }


def _config(workdir):
  path = workdir / "config.json"
  if not workdir.is_dir():
    what = "is not a folder" if workdir.exists() else "does not exist"
    raise UserError(f"--workdir={clip(str(workdir))} {what}: it must be the workdir of a run")
  remedy = "it must be the one that a run wrote; the command of the run writes it"
  config = workdir_lib.read_json(path, remedy)
  if not isinstance(config, dict):
    raise UserError(f"{path} is damaged (it is {clip(repr(config))}, not an object): {remedy}")
  return config


def lost_candidates(
  folder: Path, keys: list[tuple[str, int]], notes: list[str]
) -> dict[tuple[str, int], dict[tuple[int, int], traces_lib.Lost]]:
  """{trace: {(round, branch): candidate}} of the lost candidates of the traces `keys`.

  Where a round was resampled, its last candidates are returned.
  """
  found: dict = {key: {} for key in keys}
  for row in rows(folder, "candidates-*.jsonl", notes):
    try:
      candidates = found.get((str(row["uuid"]), int(row.get("attempt", 0))))
      if candidates is not None:
        place = int(row["chunk"]), int(row["branch"])
        candidates[place] = traces_lib.Lost(
          text=cut(row["text"], traces_lib.CANDIDATE),
          count=values.number(row.get("count")),
          score=values.number(row.get("score")),
          resample=values.number(row.get("resample")),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
      continue
  return found


# ---------------------------------------------------------------- files


def read_json(path: Path, notes: list[str]) -> Any:
  """The JSON value of a file; None where it is missing or, which is noted, damaged."""
  try:
    return workdir_lib.read_json(path, "") if path.exists() else None
  except (OSError, UserError):
    notes.append(f"{path.name}: not readable as JSON, left out")


def rows(folder: Path, pattern: str, notes: list[str]) -> Iterator[dict]:
  """Rows of the files of a folder; what cannot be read is noted."""
  for path in sorted(folder.glob(pattern)):
    name = "/".join(path.parts[-3:])
    try:
      rows, bad = workdir_lib.read_jsonl(path)
    except OSError as error:
      notes.append(f"{name}: {error.strerror}")
      continue
    yield from rows
    if bad:
      notes.append(f"{name}: {bad} broken line{'s' * (bad > 1)} skipped")


def _traces_folder(arm, notes):
  """The folder of an arm's traces, which several arms may share; it may not exist."""
  name = values.as_dict(read_json(arm / "traces.json", notes)).get("collection")
  if not workdir_lib.is_collection(name):
    return arm / "traces"
  return arm.parent.parent / "traces" / name


def _kept_keys(arm, notes):
  """{(uuid, attempt)} of the traces an arm keeps; None: not known."""
  pairs = read_json(arm / "kept.json", notes)
  if pairs is None:
    return None
  try:
    return {(str(uuid), int(attempt)) for uuid, attempt in pairs}
  except (TypeError, ValueError, OverflowError):
    notes.append(f"{arm.name}/kept.json: not pairs of uuid and attempt; right traces are counted")


def _losses(arm, notes):
  """The losses of the training of each of the first MOST_SEEDS seeds, at most MOST_POINTS of each."""
  found = []
  for home in sorted(arm.glob("seed-*"))[:MOST_SEEDS]:
    log, points, bad = home / "checkpoints" / "metrics.jsonl", [], 0
    for line in _lines(log, notes):
      try:
        row = values.as_dict(json.loads(line))
      except (ValueError, RecursionError):
        row = {}
      step, loss = values.number(row.get("step")), values.number(row.get("loss"))
      if step is None or loss is None:
        bad += 1
      else:
        points.append((step, loss))
    if bad:
      name = "/".join(log.parts[-4:])
      notes.append(f"{name}: {bad} line{'s' * (bad > 1)} without a step and a loss skipped")
    every = -(-len(points) // MOST_POINTS) or 1
    found.append(points[::-1][::every][::-1])  # with the last one
  return [points for points in found if points]


def _lines(path, notes):
  """The lines of a file; none where it is missing or cannot be read, which is noted."""
  try:
    return [line for line in path.read_bytes().splitlines() if line.strip()]
  except FileNotFoundError:
    return []
  except OSError as error:
    notes.append(f"{path.name}: {error.strerror}")
    return []


# ---------------------------------------------------------------- traces


def _collected(arm, folder, trees, notes):
  kept, found, bad = _kept_keys(arm, notes), Collected(), 0
  problems, known = set(), {}
  for row in rows(folder, "traces-*.jsonl", notes):
    try:
      trace = traces_lib.trace(row)
    except traces_lib.ODD:
      bad += 1
      continue
    if trace.key in found.outcomes:  # a resumed run may write a trace twice
      continue
    became = trace.outcome, cut(trace.stop, values.SHORT)
    found.outcomes[trace.key] = known.setdefault(became, became)  # one pair for all that are equal
    problems.add(trace.key[0])
    found.traces += 1
    found.pruned += trace.outcome == "pruned"
    if (spent := values.number(row.get("teacher_tokens"))) is not None:
      found.teacher_tokens = (found.teacher_tokens or 0) + spent
    if trace.key in kept if kept is not None else row.get("verdict") == "right":
      found.kept += 1
      found.nlls += [] if trace.nll is None else [trace.nll]
      found.lengths += [] if trace.length is None else [trace.length]
    if any(len(r.scores) > 1 for r in trace.rounds):
      _add_example(found.examples, trace, max(trees, 1))
  if bad:
    notes.append(f"{arm.name}: {bad} trace{'s' * (bad > 1)} without usable uuid or chunks skipped")
  found.problems = len(problems)
  return found


def _contrast(trace):
  """Range of the student's scores within a round, mean over rounds; long traces count 0.4 of it."""
  ranges = []
  for r in trace.rounds:
    valid = [s for s in r.scores if s is not None]
    ranges.append(max(valid) - min(valid) if len(valid) > 1 else 0.0)
  return (1.0 if 2 <= len(ranges) <= FEW_ROUNDS else 0.4) * sum(ranges) / max(len(ranges), 1)


def _add_example(examples, trace, count):
  """Keeps the `count` traces of each outcome with the most contrast, one per problem."""
  group = examples.get(trace.outcome, [])
  same = [t for t in group if t.key[0] == trace.key[0]]
  others = [t for t in group if t.key[0] != trace.key[0]]
  others.append(max([*same, trace], key=_contrast))
  examples[trace.outcome] = sorted(others, key=_contrast, reverse=True)[:count]
