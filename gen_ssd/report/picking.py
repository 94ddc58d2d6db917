"""Which traces the page draws as trees."""

from typing import Any

from gen_ssd.report import reading
from gen_ssd.report import tree
from gen_ssd.report import values
from gen_ssd.report.words import cut


def _picked(examples, count):
  """Up to `count` traces: one pruned, one wrong, the others those whose scores differ most."""
  ranked = {outcome: list(group) for outcome, group in examples.items()}
  chosen = [ranked[o].pop(0) for o in ("wrong", "pruned") if ranked.get(o)][: max(count - 1, 0)]
  for outcome in ("right", *ranked):
    while ranked.get(outcome) and len(chosen) < count:
      chosen.append(ranked[outcome].pop(0))
  order = list(tree.OUTCOMES)
  return sorted(chosen, key=lambda t: order.index(t.outcome) if t.outcome in order else 9)


def trees(run: reading.Run, count: int) -> dict[str, Any] | None:
  """Up to `count` trees of the first arm that has candidates to show: gen_ssd where it does."""
  arms = [a for a in run.arms if a.collected and a.collected.examples]
  arm = min(arms, key=lambda a: a.name != "gen_ssd", default=None)
  if arm is None or count < 1:
    return None
  chosen = _picked(arm.collected.examples, count)
  lost = reading.lost_candidates(arm.folder, [t.key for t in chosen], run.notes)
  cuts = tree.score_cuts(s for t in chosen for r in t.rounds for s in r.scores if s is not None)
  settings = {**values.as_dict(run.config.get("select")), **arm.changes}
  outcomes = dict.fromkeys(t.outcome for t in chosen if t.outcome in tree.OUTCOMES)
  return {
    "arm": arm.label,
    "look": arm.look,
    "scorer": cut(settings.get("scorer", "perplexity"), values.SHORT),
    "bins": tree.bin_names(cuts),
    "outcomes": [(outcome, tree.OUTCOMES[outcome]) for outcome in outcomes],
    "drawn": [tree.tree(i, t, lost[t.key], cuts) for i, t in enumerate(chosen, 1)],
  }
