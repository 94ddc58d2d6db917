"""The table of a run and some of its traces, as text for a terminal."""

from typing import NamedTuple

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.report import durations
from gen_ssd.report import panels
from gen_ssd.report import reading
from gen_ssd.report import sample
from gen_ssd.report import table
from gen_ssd.report import words


class Wanted(NamedTuple):
  """The traces that are asked for; an empty text stands for any."""

  arm: str = ""
  verdict: str = ""  # right, wrong, unverifiable or pruned
  stop: str = ""  # what ended the trace, such as ended, length or pruned
  against: str = ""  # another arm, whose verdict on the same problem must be a different one
  limit: int = 5  # traces, or pairs of them


def text(workdir: folders.Path, wanted: Wanted) -> str:
  """The table of arms of the run in `workdir`, paired differences, and the traces that are wanted.

  Control characters are shown. Raises UserError when config.json is missing or damaged, and when an
  arm, a verdict or a stop cause is wanted that no trace of the run has.
  """
  run = reading.read_run(workdir, 0)
  _check(run, wanted)
  took = durations.table(workdir, run)
  parts = [_table(run), *panels.differences(run), *([_times(took)] if took else [])]
  parts += _traces(run, wanted)
  parts += [f"left out: {words.cut(note, 300)}" for note in dict.fromkeys(run.notes)]
  return words.visible("\n".join(parts))


def _check(run, wanted):
  """Raises UserError for what is wanted and cannot be."""
  found = [a for a in run.arms if a.collected]
  became = {pair for a in found for pair in a.collected.outcomes.values()}
  known = {
    "arm": [a.name for a in found],
    "against": [a.name for a in found],
    "verdict": sorted({outcome for outcome, _ in became}),
    "stop": sorted({stop for _, stop in became}),
  }
  for flag, names in known.items():
    value = getattr(wanted, flag)
    if value and value not in names:
      options = clip(", ".join(names)) or "no trace has been written yet"
      raise UserError(f"--{flag} is {clip(repr(value))}: it must be one of {options}")
  if wanted.against and not wanted.arm:
    raise UserError(f"--against is {clip(repr(wanted.against))}: it needs --arm, the other arm")
  if wanted.against and wanted.against == wanted.arm:
    raise UserError(f"--against is {clip(repr(wanted.against))}: it must not be the same as --arm")


def _table(run):
  """The table of the page, in columns."""
  found = table.table(run)
  rows = [[words.line(head, 30) for head in found["heads"]]]
  for row in found["rows"]:
    cells = [cell["words"] + "*" * cell["counted"] for cell in row["cells"]]
    rows.append([words.line(row["name"], 60), row["accuracy"], row["interval"] or "–", *cells])
  lines = words.columns(rows)
  lines += ["* counted from the trace files written so far"] * found["counted"]
  return "\n".join([*lines, *found["unfinished"]])


def _times(took):
  rows = [("part", *took["heads"][1:]), *((row["name"], *row["cells"]) for row in took["rows"])]
  return "\n".join(["", *words.columns(rows), f"all parts together: {took['total']}"])


def _traces(run, wanted):
  """The traces that are wanted, each after its problem."""
  arms = {a.name: a for a in run.arms if a.collected and a.folder}
  pairs = []
  for name, arm in arms.items():
    others = arms[wanted.against].collected.outcomes if wanted.against else {}
    for key, (outcome, stop) in arm.collected.outcomes.items():
      fits = wanted.arm in ("", name) and wanted.verdict in ("", outcome)
      fits = fits and wanted.stop in ("", stop)
      if fits and (not wanted.against or others.get(key, (outcome,))[0] != outcome):
        pairs.append((key, [name, *([wanted.against] if wanted.against else [])]))
  shown = pairs[: wanted.limit]
  places = {name: arms[name].folder for _, names in shown for name in names}
  rows = sample.read(places, [key for key, _ in shown], run.notes)
  parts = [f"\n{len(shown):,} of {len(pairs):,} traces that fit"] if wanted.limit else []
  for key, names in shown:
    found = {name: rows[name][key] for name in names if key in rows[name]}
    if not found:  # the run wrote its files anew just now
      continue
    some = next(iter(found.values()))["trace"]
    parts.append(f"\n=== {words.line(key[0], 100)}, attempt {key[1] + 1}\n{some.problem}")
    parts.append(f"Gold answer: {some.answer}")
    parts += [_trace(name, row) for name, row in found.items()]
  return parts


def _trace(name, row):
  trace = row["trace"]
  length = "" if trace.length is None else f", {trace.length:.0f} tokens"
  head = f"--- {words.line(name, 60)}: {trace.outcome}, {words.line(trace.stop, 60)}{length}"
  reasoning = f"<think>\n{row['reasoning']}\n</think>" if row["reasoning"] else ""
  false = f"first false equation: {trace.false.text}" if trace.false else ""
  return "\n".join(filter(None, [head, reasoning, row["text"], false]))
