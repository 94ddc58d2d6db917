"""Traces in which selection helped and in which it hurt, with all candidates, as Markdown."""

import collections

from gen_ssd import workdir as workdir_lib
from gen_ssd.folders import Path
from gen_ssd.report import words

TEXT = 2000  # characters that are shown of a text


def examples(workdir: Path, mine: str = "gen_ssd", other: str = "random", count: int = 3) -> str:
  """Markdown: traces of arm `mine` in which selection helped, and in which it hurt, round by round.

  Selection helped where the trace is right and that of arm `other` for the same problem, which
  starts from the same candidates, is wrong; it hurt the other way round. The first `count` problems
  of each kind are shown, in the order of the run.
  """
  traces = lambda arm: {(r["uuid"], r["attempt"]): r for r in workdir_lib.arm_rows(workdir, arm)[0]}
  chosen, plain, lost = traces(mine), traces(other), collections.defaultdict(dict)
  for r in workdir_lib.lost_candidates(workdir_lib.collection(workdir, mine)):
    place = r["chunk"], r["resample"], r["branch"]
    lost[r["uuid"], r["attempt"]][place] = r["text"], r["score"]
  parts = []
  for title, good, bad in (("helped", chosen, plain), ("hurt", plain, chosen)):
    keys = [
      key
      for key in chosen
      if key in plain and good[key]["verdict"] == "right" and bad[key]["verdict"] == "wrong"
    ]
    parts.append(f"## Where selection {title} ({len(keys)} of {len(chosen)} problems)\n")
    for key in keys[:count]:
      row, its = chosen[key], plain[key]
      problem, answer = (words.markdown(row[name], TEXT) for name in ("problem", "answer"))
      parts.append(f"**{problem}** Answer: {answer}.\n")
      parts.append(f"{other} wrote: {words.code(its['text'], TEXT)} ({its['verdict']}).\n")
      parts.append(f"{mine} ({row['verdict']}, {row['stop']}):\n")
      parts += _rounds(row, lost[key])
      parts.append("")
  return "\n".join(parts)


def _rounds(row, lost):
  """A numbered line per round of a trace. lost: {(chunk, resample, branch): (text, score)}."""
  lines = []
  for i, chunk in enumerate(row["chunks"]):
    candidates = [
      (chunk["text"], score)
      if branch == chunk["choice"]
      else lost.get((i, chunk["resamples"], branch), ("", score))
      for branch, score in enumerate(chunk["scores"])
    ]
    lines.append(f"{i + 1}. {_candidates(candidates, chunk['choice'])}")
  if row["stop"] == "pruned":
    end = len(row["chunks"])
    last = [candidate for (chunk, _, _), candidate in sorted(lost.items()) if chunk == end]
    lines.append(f"{end + 1}. none suitable: {_candidates(last)}")
  return lines


def _candidates(candidates, choice=None):
  """(text, score or None) of every candidate on one line, the kept one bold."""
  missing = lambda i: "not scored" if i == choice else "invalid"
  shown = [
    f"{words.code(text.strip() or 'end', TEXT)} {missing(i) if score is None else f'{score:.2f}'}"
    for i, (text, score) in enumerate(candidates)
  ]
  return " · ".join(f"**{w}**" if i == choice else w for i, w in enumerate(shown))
