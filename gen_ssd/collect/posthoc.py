"""Choosing among whole traces, after they are written: the same scorers, from what rows hold."""

from collections.abc import Sequence
import functools
import math
import typing

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
import numpy as np

from gen_ssd.collect.traces import Row
from gen_ssd.engine import scores
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import texts as texts_lib
from gen_ssd.models import tokenization
from gen_ssd.problems import problem as problem_lib

BATCH = 64  # traces scored at a time

Difficulty = dict[tuple[str, int], float]  # by (uuid, attempt)


def reads_again(scorer: str) -> bool:
  """Does the student read whole traces again before this scorer can judge them?"""
  rule = scores.SCORERS[scorer]
  return rule.short_context or "difficulty" in rule.needs


def best(
  rows: list[Row],
  scorer: str,
  *,
  seed: int = 0,
  difficulty: Difficulty | None = None,
  beta: float | None = None,
) -> list[Row]:
  """The trace of lowest score of each problem, ties to the first attempt: post-hoc best-of-n.

  With `beta`, as with the softmin selector, a trace is drawn with probability proportional to
  exp(-beta score): the lowest of beta score - g wins, with independent Gumbel variables g. See
  `score` for the other arguments. Returns one row per problem, ordered by problem.
  """
  found = {}
  rows = sorted(rows, key=lambda r: (r["uuid"], r["attempt"]))
  scored = score(rows, scorer, seed=seed, difficulty=difficulty)
  if beta is not None:
    u = [problem_lib.uniform(f"softmin {seed} {r['uuid']} {r['attempt']}") for r in rows]
    with np.errstate(divide="ignore"):  # a uniform of 0 never wins
      scored = beta * np.float64(scored) + np.log(-np.log(u))
  for r, s in zip(rows, scored):
    if r["uuid"] not in found or s < found[r["uuid"]][0]:
      found[r["uuid"]] = (s, r)
  return [r for _, r in found.values()]


def score(
  rows: list[Row], scorer: str, *, seed: int = 0, difficulty: Difficulty | None = None
) -> Float[np.ndarray, " n"]:
  """The scores of whole traces, lower is better.

  Args:
    rows: traces as traces.row makes them, of collections with a student.
    scorer: a name of scores.SCORERS.
    seed: of the scorer `random`.
    difficulty: Rationale Difficulty of every trace, for `morsd`: see `difficulties`.
  """
  longest = max((r["num_tokens"] for r in rows), default=0)
  run = jax.jit(scores.SCORERS[scorer].rule)  # one shape, so one compilation
  found = [
    np.asarray(run(*_candidates(rows[i : i + BATCH], longest, seed, difficulty)))[0]
    for i in range(0, len(rows), BATCH)
  ]
  return np.concatenate([np.zeros(0, np.float32), *found])[: len(rows)]


def _candidates(rows, longest, seed, difficulty):
  """(Statistics, live, noise) of at most BATCH traces, as arrays [1,n,t] and [1,n]."""

  def table(values, dtype=np.float32):
    x = np.zeros((1, BATCH, longest), dtype)
    for i, r in enumerate(rows):
      x[0, i, : r["num_tokens"]] = values(r)
    return x

  per_trace = lambda value, dtype=np.float32: np.array(
    [[value(r) for r in rows] + [0] * (BATCH - len(rows))], dtype
  )
  statistics = scores.Statistics(
    nll=table(lambda r: r["student_nlls"]),
    rank=table(lambda r: r["student_ranks"]),
    teacher_nll=table(lambda r: r["teacher_nlls"]),
    step_start=table(lambda r: np.isin(np.arange(r["num_tokens"]), r["step_starts"]), bool),
    long=per_trace(lambda r: problem_lib.uniform(r["uuid"]) < 0.2, bool),
    difficulty=difficulty and per_trace(lambda r: difficulty[r["uuid"], r["attempt"]]),
  )
  noise = per_trace(lambda r: problem_lib.uniform(f"{seed} {r['uuid']} {r['attempt']}"))
  return statistics, table(lambda r: True, bool), noise


def difficulties(
  student: decoder.Transformer,
  tokenizer: typing.Any,
  rows: list[Row],
  *,
  batch: int,
  system: str | None = None,
) -> Difficulty:
  """{(uuid, attempt): PPL(answer | q, r) / PPL(answer | q)}: MoRSD's Rationale Difficulty.

  The answer is the sentence of the trace with the last box, in the teacher's ids; the rationale r
  is what stands before it. Below 1, the rationale makes the answer likelier to the student.

  Args:
    student: stacked, on the current mesh.
    tokenizer: the one whose chat template the student reads.
    rows: traces as traces.row makes them.
    batch: texts read at a time; a multiple of the devices.
  """
  texts, tails = [], []
  for r in rows:
    prompt, body = _read(tokenizer, r, system)
    while body and body[-1] in tokenizer.all_special_ids:
      body = body[:-1]
    at = answer_start(tokenizer, body)
    texts += [[*prompt, *body[:n], *body[at:]] for n in (at, 0)]
    tails += 2 * [len(body) - at]
  found = [nll[-n:].mean() if n else 0.0 for nll, n in zip(_nlls(student, texts, batch), tails)]
  return {
    (r["uuid"], r["attempt"]): math.exp(min(found[2 * i] - found[2 * i + 1], 80))
    for i, r in enumerate(rows)
  }


def short_context(
  student: decoder.Transformer,
  tokenizer: typing.Any,
  rows: list[Row],
  *,
  context: int,
  batch: int,
  system: str | None = None,
) -> list[Row]:
  """The rows with `student_nlls` of shortened texts, for the scorer `local`: LALP (2510.03988).

  Each step (or chunk, see traces.row) is read after the prompt and the `context` tokens before it,
  and after nothing else. The other arguments are those of `difficulties`.
  """
  texts, tails = [], []
  for r in rows:
    prompt, body = _read(tokenizer, r, system)
    opened = len(body) - r["num_tokens"]  # what the prompt had opened
    for at, end in zip(r["step_starts"], [*r["step_starts"][1:], r["num_tokens"]]):
      texts.append([*prompt, *body[:opened], *body[opened + max(at - context, 0) : opened + end]])
      tails.append(end - at)
  found = (nll[-n:].tolist() for nll, n in zip(_nlls(student, texts, batch), tails))
  return [{**r, "student_nlls": sum((next(found) for _ in r["step_starts"]), [])} for r in rows]


def nlls(
  model: decoder.Transformer, pairs: Sequence[tuple[list[int], list[int]]], *, batch: int
) -> list[np.ndarray]:
  """nll in nats of every token of each response, of (prompt ids, response ids) of the model.

  model: stacked, on the current mesh. batch: texts read at a time; a multiple of the devices.
  """
  found = _nlls(model, [[*prompt, *response] for prompt, response in pairs], batch)
  return [nll[-len(response) :] for nll, (_, response) in zip(found, pairs)]


def mean_nlls(
  student: decoder.Transformer, pairs: Sequence[tuple[list[int], list[int]]], *, batch: int
) -> list[float]:
  """The mean of `nlls` for each response, in nats per token."""
  return [float(nll.mean()) for nll in nlls(student, pairs, batch=batch)]


def _read(tokenizer, r, system):
  """(prompt ids, ids that follow it) of a trace row, as the student reads it."""
  text, begin = tokenization.render_row(
    tokenizer, r["problem"], r["ids"], system, r["opened"], check=False
  )
  return text[:begin], text[begin:]


def _nlls(student, texts, batch):
  """The student's nll of the tokens of each text, f32[len], in order; the first token's is 0."""
  forward = functools.partial(_forward_nll, student)
  return texts_lib.read(forward, texts, batch=batch, axes=student.layout.batch_axes)


def answer_start(tokenizer: typing.Any, ids: list[int]) -> int:
  """Index where the sentence with the last box begins (the last sentence when there is no box)."""
  box = len(ids) - 1
  for i in range(len(ids) - 1, -1, -1):
    if "\\boxed" in tokenizer.decode(ids[i:]):
      box = i
      break
  ends = (".", "!", "?", "\n", "</think>")
  while box > 0 and not tokenizer.decode([ids[box - 1]]).rstrip(" ").endswith(ends):
    box -= 1
  return max(box, 0)


@jax.jit
def _forward_nll(student, tokens, length):
  """Student nll f32[b,t] of tokens int32[b,t], of which the first `length` int32[b] are text."""
  b, t = tokens.shape
  index = jnp.arange(t)
  seen = (index < length[:, None]).astype(jnp.int32)
  hidden = decoder.forward_packed(
    student,
    tokens,
    jnp.broadcast_to(index, (b, t)),
    functools.partial(
      attention.attend_packed,
      segments=seen,
      block=min(t, 1024),
      implementation=student.layout.attention,
    ),
  )
  nll = scores.token_statistics(student, hidden, jnp.roll(tokens, -1, 1)[:, None]).nll[:, 0]
  return jax.sharding.reshard(jnp.roll(nll, 1, 1).at[:, 0].set(0), P(None, None))
