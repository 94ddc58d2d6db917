"""What answers and traces say beside accuracy: pass@k, majority votes, diversity, picks, ways.

A row is a record of a trace; several rows of one problem are its samples, in the order of `attempt`.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.report import statistics

Row = Mapping[str, Any]
Seeds = Sequence[Sequence[Row]]  # for every training seed the rows of its answers
SUBSETS = 64  # that estimate the vote of fewer samples than there are
WORDS, TEXTS, GRAM = 5000, 256, 4  # what diversity looks at: equally much of every model and arm
WORD = re.compile(r"\d+(?:[.,]\d+)*|\\?[^\W\d_]+|[^\w\s]")


def sampled(seeds: Seeds, total: int, grader: answers.Grader) -> dict[str, Any]:
  """Figures of the answers to `total` problems, for results.json; see `statistics.accuracy`.

  Returns {"samples", "last_number", "pass_at_k", "maj_at_k"}. `samples` is the number of answers per
  problem. `last_number` is the accuracy when the last number of a text counts where it has no boxed
  one, over the `n` problems whose answer is a number; None without any. The other two, {k: {"value",
  "ci"}} for k = 1, 2, 4, ... and all samples, are there when a problem has several samples: the
  unbiased estimate of Chen et al. (2021), and the share of problems whose most frequent answer is
  right. For fewer than all samples, that is the mean of 64 random subsets. Intervals resample
  problems and seeds.
  """
  groups = [_by_problem(rows) for rows in seeds]
  most = max((len(group) for by in groups for group in by.values()), default=0)
  found: dict[str, Any] = {"samples": most, "last_number": _last_number(groups)}
  if most < 2:
    return found
  sizes = sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})
  classes = [{u: _classes(group, grader) for u, group in by.items()} for by in groups]
  found["pass_at_k"], found["maj_at_k"] = {}, {}
  for k in sizes:
    passed = [{u: _passed(group, k) for u, group in by.items()} for by in groups]
    voted = [{u: _voted(*ids, k) for u, ids in by.items()} for by in classes]
    for name, shares in (("pass_at_k", passed), ("maj_at_k", voted)):
      value, ci, _ = statistics.estimate(shares, total)
      found[name][str(k)] = {"value": value, "ci": ci}
  return found


def _by_problem(rows):
  found: dict[str, list[Row]] = {}
  for r in sorted(rows, key=lambda r: r["attempt"]):
    found.setdefault(r["uuid"], []).append(r)
  return found


def _last_number(groups):
  """Accuracy by boxed or last number, over the problems whose answer is a number."""
  shares = []
  for by in groups:
    share = {}
    for uuid, group in by.items():
      verdicts = [answers.last_number_right(r["answer"], r["text"]) for r in group]
      if None not in verdicts:
        share[uuid] = float(np.mean(verdicts))
    shares.append(share)
  if not (total := len({uuid for share in shares for uuid in share})):
    return None
  value, ci, _ = statistics.estimate(shares, total)
  return {"value": value, "ci": ci, "n": total}


def _passed(group, k):
  right = sum(r["verdict"] == "right" for r in group)
  return answers.pass_at_k(len(group), right, min(k, len(group)))


def _classes(group, grader):
  """(class of each sample, None without an answer; is each class right?): classes are equal answers."""
  seen, ids, right = [], [], []
  for r in group:
    answer = answers.extract_boxed(r["text"])
    if answer is None:
      ids.append(None)
      continue
    at = next((i for i, other in enumerate(seen) if grader.equivalent(other, answer)), len(seen))
    if at == len(seen):
      seen.append(answer)
      right.append(r["verdict"] == "right")
    ids.append(at)
  return ids, right


def _voted(ids, right, k):
  """Share of subsets of k samples whose most frequent answer is right; the first seen wins a tie."""
  n = len(ids)
  rng = np.random.default_rng(0)
  subsets = (
    [range(n)] if k >= n else (np.sort(rng.permutation(n)[:k]).tolist() for _ in range(SUBSETS))
  )
  wins = []
  for subset in subsets:
    votes = Counter(ids[i] for i in subset if ids[i] is not None)
    wins.append(bool(votes) and right[max(votes, key=votes.get)])
  return float(np.mean(wins))


# ---------------------------------------------------------------- diversity


def diversity(rows: Iterable[Row]) -> dict[str, float | None]:
  """How much the texts of rows differ from each other; numbers in them count as equal.

  Returns {"distinct_ngrams": distinct word 4-grams / all (distinct-n of Li et al., arXiv 1510.03055),
  "distinct_texts": distinct texts / all, "shared_ngrams": the share of a sample's 4-grams that
  another sample of the same problem has, mean over samples}. A narrow choice lowers the first two
  and raises the third, which is None without several samples of a problem. The first looks at 5,000
  words and the second at 256 texts, drawn at random, because both fall with the size of what they
  look at.
  """
  rows = [*rows]
  order = np.random.default_rng(0).permutation(len(rows)).tolist()
  texts = [_words(rows[i]["text"]) for i in order]
  grams, seen = [], 0
  for words in texts:
    grams += _grams(words)
    seen += len(words)
    if seen >= WORDS:
      break
  some = texts[:TEXTS]
  return {
    "distinct_ngrams": len({*grams}) / len(grams) if grams else None,
    "distinct_texts": len({*map(tuple, some)}) / len(some) if some else None,
    "shared_ngrams": _shared(rows),
  }


def _words(text):
  return ["#" if word[0].isdigit() else word for word in WORD.findall(text)]


def _grams(words):
  return [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def _shared(rows):
  shares = []
  for group in _by_problem(rows).values():
    sets = [{*_grams(_words(r["text"]))} for r in group] if len(group) > 1 else []
    counts = Counter(gram for grams in sets for gram in grams)
    shares += [sum(counts[gram] > 1 for gram in grams) / len(grams) for grams in sets if grams]
  return float(np.mean(shares)) if shares else None


# ---------------------------------------------------------------- picks


def picks(rows: Iterable[Row], lost: Iterable[Row]) -> dict[str, Any] | None:
  """How often the kept chunk was the longest, the shortest, or a repetition, and how often by chance.

  rows: traces. lost: their candidates that were not kept. A round counts when the texts of its
  candidates differ; a repetition has the text of an earlier chunk of its trace. A rule that picks
  by form and not by content is far from chance here. Returns {"rounds", "longest", "shortest",
  "repeated", "chance": {the same three: means over all candidates}}, shares of rounds; None
  without such a round.
  """
  others: dict[tuple, list[Row]] = {}
  for x in lost:
    others.setdefault((x["uuid"], x["attempt"], x["chunk"], x["resample"]), []).append(x)
  chosen, chance = [], []
  for r in rows:
    before: set[str] = set()
    for i, chunk in enumerate(r["chunks"]):
      all_of = [chunk, *others.get((r["uuid"], r["attempt"], i, chunk["resamples"]), ())]
      texts = [x["text"].strip() for x in all_of]
      if len({*texts}) > 1:
        counts = np.array([x["count"] for x in all_of])
        is_so = [counts == counts.max(), counts == counts.min(), [t in before for t in texts]]
        chosen.append([of[0] for of in is_so])
        chance.append([np.mean(of) for of in is_so])
      before.add(texts[0])
  if not chosen:
    return None
  names = ("longest", "shortest", "repeated")
  shares = lambda x: dict(zip(names, np.mean(x, axis=0).tolist()))
  return {"rounds": len(chosen), **shares(chosen), "chance": shares(chance)}


# ---------------------------------------------------------------- ways


def ways(rows: Iterable[Row]) -> dict[str, float] | None:
  """The ways in which texts of the bundled family are written: see bundled.ways.

  Returns {"steps": their number, "fine", "coarse", "detour", "other": shares of them}; None where
  there is no step of that family.
  """
  found = [bundled.ways(r["problem"], r["text"]) or [] for r in rows]
  counts = Counter(way for each in found for way in each)
  if not (steps := counts.total()):
    return None
  return {"steps": steps, **{way: counts[way] / steps for way in (*bundled.WAYS, "other")}}
