"""A sample of the traces of all arms, problem by problem, which the page lists with filters."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any
import zlib

from markupsafe import escape

from gen_ssd.folders import Path
from gen_ssd.report import reading
from gen_ssd.report import traces
from gen_ssd.report import tree
from gen_ssd.report import values
from gen_ssd.report import words

MOST = 320  # traces that are listed
EACH = 4  # traces of every arm, outcome and stop cause that come before the others
LONG = 4000  # characters that are shown of a problem, of its reasoning, and of its solution
TITLE = 90  # characters of a problem that stand in its heading
OPEN = 3  # problems that are unfolded
Key = tuple[str, int]  # uuid of the problem, attempt


def pick(outcomes: Mapping[str, Mapping[Key, Any]], most: int) -> list[Key]:
  """Up to `most` traces to list. outcomes: {arm: {trace: what became of it}}.

  Half of them are traces that became different things in different arms. Then come EACH of every arm
  and outcome, and then any. All are in an order that is random, and the same every time.
  """
  of_key: dict[Key, list[Any]] = {}
  groups: dict[Any, list[Key]] = {}
  keys = sorted({key for found in outcomes.values() for key in found}, key=_place)
  for key in keys:
    for arm, found in outcomes.items():
      if key in found:
        of_key.setdefault(key, []).append(found[key])
        group = groups.setdefault((arm, found[key]), [])
        if len(group) < EACH:
          group.append(key)
  differ = [key for key in keys if len({outcome for outcome, _ in of_key[key]}) > 1]
  each = [key for turn in itertools.zip_longest(*groups.values()) for key in turn if key]
  return list(dict.fromkeys([*differ[: most // 2], *each, *differ, *keys]))[:most]


def _place(key):
  return zlib.crc32(repr(key).encode("utf-8", "replace")), key


def listed(run: reading.Run, most_bytes: int) -> dict[str, Any] | None:
  """What the page lists: problems, each with the trace of every arm; None where there is no trace.

  The texts take at most `most_bytes`, as they stand in the page.
  """
  arms = [a for a in run.arms if a.collected and a.collected.outcomes and a.folder]
  outcomes = {a.name: a.collected.outcomes for a in arms if a.collected}
  keys = pick(outcomes, max(MOST // max(len(arms), 1), 5))
  if not keys:
    return None
  found = read({a.name: a.folder for a in arms if a.folder}, keys, run.notes)
  cases, size = [], 0
  for key in keys:
    case = _case(key, arms, found)
    size += len(str(escape(words.visible(repr(case)))).encode("utf-8", "replace"))
    if cases and size > most_bytes:
      break
    cases.append({**case, "is_open": len(cases) < OPEN})
  sides = [side for case in cases for side in case["sides"]]
  return {
    "cases": cases,
    "shown": len(sides),
    "all": sum(map(len, outcomes.values())),
    "arms": [(str(a.look), a.label) for a in arms],
    "verdicts": [(v, tree.OUTCOMES.get(v, v)) for v in _kinds(sides, "verdict")],
    "stops": [(v, v) for v in _kinds(sides, "stop")],
  }


def _kinds(sides, field):
  return sorted({side[field] for side in sides})


def read(
  folders: Mapping[str, Path], keys: Sequence[Key], notes: list[str]
) -> dict[str, dict[Key, dict[str, Any]]]:
  """{arm: {trace: what is shown of it}} of those `keys` that the arms have in their `folders`.

  What is shown: `reasoning`, `length` in characters of all of it, `text` without it, and `trace`.
  Two arms may share a folder.
  """
  wanted, by_folder = set(keys), {}
  for folder in dict.fromkeys(folders.values()):
    rows = by_folder[folder] = {}
    for row in reading.rows(folder, "traces-*.jsonl", notes):
      try:
        key = traces.key(row)
        if key in wanted and key not in rows:
          rows[key] = {**_texts(row), "trace": traces.trace(row)}
      except traces.ODD:
        continue
  return {arm: by_folder[folder] for arm, folder in folders.items()}


def _texts(row):
  """The reasoning of a trace, which <think> tags surround, and the rest."""
  text = str(row.get("text") or "")
  before, tag, after = text.partition("</think>")
  if not tag and not text.lstrip().startswith("<think>"):
    before, after = "", text
  reasoning = before.strip().removeprefix("<think>").strip()
  return {
    "reasoning": words.cut(reasoning, LONG),
    "length": len(reasoning),
    "text": words.cut(after.strip(), LONG),
  }


def _case(key, arms, found):
  """A problem and the trace of every arm that has one."""
  sides, some = [], None
  for arm in arms:
    row = found[arm.name].get(key)
    if row is not None:
      trace = some = row["trace"]
      sides.append(
        {
          "arm": arm.label,
          "look": arm.look,
          "verdict": trace.outcome,
          "class": trace.outcome if trace.outcome in tree.OUTCOMES else "unverifiable",
          "badge": tree.OUTCOMES.get(trace.outcome, trace.outcome),
          "sign": tree.OUTCOMES.get(trace.outcome, "?").split()[0],
          "stop": words.cut(trace.stop, values.SHORT),
          "tokens": trace.length,
          "false": trace.false.text if trace.false else "",
          **{name: row[name] for name in ("reasoning", "length", "text")},
        }
      )
  problem = some.problem if some else ""
  title = " ".join(problem.split())
  attempt = f" (attempt {key[1] + 1})" if key[1] else ""
  return {
    "title": title[:TITLE] + "…" * (len(title) > TITLE) + attempt,
    "problem": problem,
    "answer": some.answer if some else "",
    "sides": sides,
  }
