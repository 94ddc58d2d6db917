"""What goes into a round, between its halves, and out: settings, state, candidates, report."""

import dataclasses
import typing

import jax.numpy as jnp
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key
from jaxtyping import UInt32

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores as scores_lib
from gen_ssd.engine import selectors
from gen_ssd.models import attention

IDLE, RUNNING, ENDED, PRUNED, LENGTH = range(5)  # State.status
STOPS = {ENDED: "ended", PRUNED: "pruned", LENGTH: "length"}
CONTINUES, DELIMITER, EOS = range(3)  # Knobs.token_kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """What is static of a round: sizes and rules. Another Round is another compiled program."""

  k: int  # candidates per slot
  c: int  # most tokens of a candidate
  block: int  # ring slots attended to at a time; divides the ring
  window: int  # tokens looked at for repetitions: see selectors.loops
  scorer: scores_lib.Scorer
  selector: typing.Callable = selectors.argmin
  short_context: bool = False  # score after the prompt and the newest knobs.context tokens only


@pytree
class Knobs:
  """What a sweep may change without compiling again."""

  filters: sampling.Filters
  limits: selectors.Limits
  branch_entropy: Float[Array, ""]  # nats at which a chunk has k candidates: see step._going_on
  resamples: Int[Array, ""]  # how often a chunk is drawn again before its trace is pruned
  context: Int[Array, ""]  # newest tokens seen when scoring; read by short-context rounds only
  closing: Int[Array, ""]  # id after which nothing is chosen or pruned; -1 for none
  token_kind: Int[Array, " v"]  # int8: CONTINUES, DELIMITER or EOS
  step_end: Bool[Array, " v"]  # does a step end with this token? All false: steps are chunks


@pytree
class State:
  """Everything a round needs and returns; donated. One batch slot holds one trace under way."""

  teacher: ring_lib.Ring
  student: ring_lib.Ring | None
  key: Key[Array, " b"]  # of (seed, problem, attempt)
  chunk: Int[Array, " b"]  # chunks kept so far
  resample: Int[Array, " b"]  # how often the coming chunk was drawn and found unsuitable
  budget: Int[Array, " b"]  # tokens the trace may still grow
  recent: Int[Array, "b w"]  # newest window - 1 tokens of the trace, -1 before its start
  score_sum: Float[Array, " b"]  # of the kept chunks
  prompt_length: Int[Array, " b"]  # tokens of the student's prompt
  after_thinking: Bool[Array, " b"]  # the teacher goes on alone: knobs.closing was kept
  status: Int[Array, " b"]  # IDLE, RUNNING, or why the trace stopped


@pytree
class Admission:
  """Traces that start, or go on: r entries. An entry lies on the device of its slot."""

  slot: Int[Array, " r"]  # where it goes; the number of slots, b, if the entry is not used
  teacher: ring_lib.Text  # in the teacher's template
  student: ring_lib.Text  # in the student's
  key: UInt32[Array, "r 2"]  # key data
  chunk: Int[Array, " r"]
  resample: Int[Array, " r"]
  budget: Int[Array, " r"]
  recent: Int[Array, "r w"]
  score_sum: Float[Array, " r"]
  prompt_length: Int[Array, " r"]
  after_thinking: Bool[Array, " r"]


@pytree
class Candidates:
  """Chunks to be scored."""

  tokens: Int[Array, "b k c"]
  count: Int[Array, "b k"]  # tokens of each
  teacher_nll: Float[Array, "b k c"]  # nats at temperature 1, before filters
  step_start: Bool[Array, "b k c"]  # first token of a step
  noise: Float[Array, "b k"]  # uniform in [0,1), for scorers

  @property
  def live(self) -> Bool[Array, "b k c"]:
    return jnp.arange(self.tokens.shape[2]) < self.count[..., None]


@pytree
class Proposal:
  """The teacher's half of a round."""

  candidates: Candidates
  ended: Bool[Array, "b k"]  # by an end token
  cache: attention.Cache  # keys and values that the candidates left
  noise: Float[Array, " b"]  # uniform in [0,1), for selectors
  not_finite: Bool[Array, " b"]  # a logit was not finite
  decoded: Int[Array, ""]  # teacher tokens decoded one after another; fewer than c: early exit


@pytree
class Scored:
  """The student's half of a round."""

  nll: Float[Array, "b k c"]  # nats
  rank: Int[Array, "b k c"]  # 1 is the student's first choice; at most 100
  score: Float[Array, "b k"]
  cache: attention.Cache | None  # None without a student, or where another keeps its ring


@pytree
class Report:
  """What the host reads of a round; small and replicated."""

  tokens: Int[Array, "b k c"]  # all candidates
  count: Int[Array, "b k"]  # their lengths
  score: Float[Array, "b k"]  # the scorer's, lower is better
  valid: Bool[Array, "b k"]  # not empty, not a repetition; False where nothing is chosen
  student_nll: Float[Array, "b k c"]  # nats; zeros without a student
  student_rank: Int[Array, "b k c"]  # 1 is the student's first choice; at most 100
  step_start: Bool[Array, "b k c"]  # first token of a step
  teacher_nll: Float[Array, "b k c"]  # nats at temperature 1, before filters
  choice: Int[Array, " b"]  # the winner, -1 when nothing was kept
  score_sum: Float[Array, " b"]  # State.score_sum after the round
  status: Int[Array, " b"]  # State.status after the round
  full: Bool[Array, " b"]  # no room in a ring for another chunk: the slot must be read again
  not_finite: Bool[Array, " b"]
  decoded: Int[Array, ""]  # see Proposal
