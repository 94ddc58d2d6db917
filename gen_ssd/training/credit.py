"""Credit: how much every token of a trace counts in training, decided before the first update.

A credit is a function

  credit(rows, train) -> [weights of row 0, weights of row 1, ...]

of the traces that an arm keeps and its Train. Weights are one number for a whole trace, or one for
each of its tokens. They multiply the nll of the tokens: 1 is supervised fine-tuning, a negative number
makes a token less likely, and 0 pulls on nothing. `train.credit` names one of CREDITS. To add one,
write the function and add it there.
"""

from collections.abc import Callable
from collections.abc import Sequence
import itertools

import numpy as np

from gen_ssd.config import Train
from gen_ssd.rows import Row

Weights = Sequence[float | np.ndarray]
Credit = Callable[[Sequence[Row], Train], Weights]


def one(rows: Sequence[Row], train: Train) -> Weights:
  """Every token counts 1: supervised fine-tuning."""
  del train
  return [1.0] * len(rows)


def signed(rows: Sequence[Row], train: Train) -> Weights:
  """REDI (arXiv:2505.24850, eq. 5): right traces attract, wrong ones repel `train.alpha` times as much.

  Both losses are means over the tokens of a trace, as in the paper. So that learning rates compare with
  those of other credits, weights are relative to the mean length. The right traces of a problem share
  one vote and so do its wrong ones; traces of a problem without both count 0.
  """
  weights, both = [0.0] * len(rows), []
  for group in _by_problem(rows):
    sides = [[i for i in group if _reward(rows[i]) == value] for value in (1, 0)]
    if all(sides):
      both += sides[0] + sides[1]
      for side, sign in zip(sides, (1.0, -train.alpha)):
        for i in side:
          weights[i] = sign / (len(side) * rows[i]["num_tokens"])
  mean = float(np.mean([rows[i]["num_tokens"] for i in both])) if both else 0.0
  return [w * mean for w in weights]


def advantage(rows: Sequence[Row], train: Train) -> Weights:
  """GRPO's advantage (arXiv:2402.03300, section 4.1.2): (reward - mean) / deviation within a problem.

  The reward is 1 for a right answer and 0 for a wrong one. Where all rewards are equal the advantage is
  0. With one update for each batch of traces, the gradient is that of GRPO without its KL penalty.
  """
  del train
  weights = [0.0] * len(rows)
  for group in _by_problem(rows):
    judged = [i for i in group if _reward(rows[i]) is not None]
    rewards = np.array([_reward(rows[i]) for i in judged], float)
    if len({*rewards.tolist()}) > 1:
      for i, x in zip(judged, (rewards - rewards.mean()) / rewards.std()):
        weights[i] = float(x)
  return weights


def support(rows: Sequence[Row], train: Train) -> Weights:
  """Traces count by how likely they are to the student: exp(-mean nll), scaled to a mean of 1.

  After CoPeD (arXiv:2509.05602), whose formula is not published: this one is ours. A trace that no
  student read counts 0.
  """
  del train
  likely = np.array([0.0 if r["student_nll"] is None else np.exp(-r["student_nll"]) for r in rows])
  return (likely / max(float(likely.mean()), 1e-30)).tolist() if rows else []


def gap(rows: Sequence[Row], train: Train) -> Weights:
  """log p_T - log p_S of every token that the student wrote: minus what it adds to KL(p_S || p_T).

  `teacher_nlls` of these rows are of the student, who wrote them, and `student_nlls` of the teacher,
  who read them. The weighted nll has the gradient of the reverse divergence in expectation (on-policy
  distillation). With `train.discount` g, token t counts gap_t + g gap_(t+1) + g^2 gap_(t+2) ..., as in
  MiniLLM (arXiv:2306.08543) with g = 1.
  """
  found = []
  for r in rows:
    gaps = np.subtract(r["teacher_nlls"], r["student_nlls"])
    for t in range(len(gaps) - 2, -1, -1):
      gaps[t] += train.discount * gaps[t + 1]
    found.append(gaps)
  return found


CREDITS: dict[str, Credit] = {f.__name__: f for f in (one, signed, advantage, support, gap)}
VERDICTS = ("signed", "advantage")  # they compare the right and wrong traces of a problem


def _reward(row: Row) -> int | None:
  """1 for a right answer, 0 for a wrong one or none, None where nobody can tell."""
  if row["stop"] == "length":
    return 0
  return {"right": 1, "wrong": 0}.get(row["verdict"]) if row["stop"] == "ended" else None


def _by_problem(rows):
  """The places of the rows of each problem."""
  problem = lambda i: rows[i]["uuid"]
  return [
    [*group] for _, group in itertools.groupby(sorted(range(len(rows)), key=problem), problem)
  ]


def columns(weights: Weights, responses: Sequence[Sequence[int]]) -> list[np.ndarray]:
  """Weights f32 of every response token, for packing.Rows.

  A response may begin with tokens that the prompt wrote for the trace; where weights are one a token,
  these count 0.
  """
  found = []
  for w, response in zip(weights, responses, strict=True):
    column = np.full(len(response), w if np.ndim(w) == 0 else 0.0, np.float32)
    if np.ndim(w):
      column[len(response) - len(w) :] = w
    found.append(column)
  return found
