"""All settings: names, types, defaults and meanings, as frozen dataclasses.

`parse` turns an ml_collections ConfigDict into a Config. checks.py says which values are valid.
"""

import dataclasses
import difflib
import json
import types
import typing

import ml_collections

from gen_ssd.errors import UserError
from gen_ssd.errors import encodable
from gen_ssd.errors import fail


@dataclasses.dataclass(frozen=True)
class Model:
  """A Hugging Face model and how to run it."""

  path: str = ""  # a directory, a .gguf file, or on the hub: ORG/NAME[@REVISION][:FILE.gguf]
  dtype: str = "float32"  # of weights and caches in generation: float32 or bfloat16
  quantization: str = "off"  # int8: weight matrices take a byte per number in generation; or off
  unroll: bool = False  # compile each layer separately: faster on a CPU, slower to compile
  chat_template: str = ""  # a Jinja file that replaces the tokenizer's chat template
  thinking: str = ""  # on or off, if the chat template has this switch; empty: its default


@dataclasses.dataclass(frozen=True)
class Problems:
  """Where problems come from and how many there are; problems/sets.py describes sources."""

  source: str = "bundled"  # of the training problems
  cold_start_source: str = ""  # empty: source; the cold start then gets the first problems drawn
  test_source: str = ""  # empty: source, which must then be bundled; see also Config.tests
  train: int = 512  # training problems; 0: all that a file has
  cold_start: int = 128  # problems of the cold start
  held_out: int = 32  # how many of them are not trained on, but calibrate the threshold
  held_out_samples: int = 4  # traces of each by the teacher: students read right and wrong ones
  test: int = 320  # test problems; 0: all that a file has
  overlap: float = 0.5  # leave out what has more of a test problem's 8-grams; 1: only equal words
  seed: int = 0  # which problems are drawn when a source has more
  system: str = ""  # system message of every prompt; empty: none


@dataclasses.dataclass(frozen=True)
class Select:
  """How traces are collected.

  Scores are those of `scorer`: lower is better. The winner of a round is the candidate that the
  selector chooses. A round without a suitable winner prunes its trace, after `resamples` new draws.
  """

  k: int = 4  # candidates per slot
  c: int = 8  # maximum tokens per candidate
  slots: int = 32  # traces that are generated at the same time
  prompt: int = 64  # maximum prompt tokens
  max_tokens: int = 128  # maximum tokens per trace
  block: int = 0  # ring slots that attention reads at a time; 0: the whole ring
  temperature: float = 1.0  # of the teacher; 0 is greedy, for k = 1 only
  top_k: int = 0  # sample from the k most likely tokens; 0 is off
  top_p: float = 1.0  # nucleus sampling; 1 is off
  delimiters: tuple = ()  # texts that end a candidate early, for example "\n\n"; () for none
  granularity: str = "chunk"  # chunk: choose in each round. trace: best of k whole traces
  writer: str = "teacher"  # who writes: teacher, base, cold_start, or an arm (its first student)
  after: str = ""  # go on from the traces of this arm: all that it wrote, `attempts` times each
  cut: tuple = (0.5, 1.0)  # with `after`, the given part: uniform between these shares of a trace
  chooser: str = "cold_start"  # the student that scores: cold_start, base, or an arm (its first)
  scorer: str = "perplexity"  # the name of a function in engine/scores.py
  step_delimiters: tuple = ()  # texts that end a step, for drop_first and teacher_*; (): chunks
  context: int = 0  # the scorer sees the prompt and this many chunks of c tokens; 0: everything
  scoring_prompt: str = "student"  # or teacher: whose chat template the scoring student reads
  covers: str = "everything"  # or thinking: after </think>, nothing is chosen or pruned
  selector: str = "argmin"  # or softmin: sample with probability proportional to exp(-beta * score)
  beta: float = 1.0  # of softmin, per nat; 0 is uniform
  teacher_share: float = 1.0  # only this share, the likeliest to the teacher, may win; 1 is off
  branch_entropy: float = 0.0  # one candidate up to this teacher entropy, in nats; 0: always k
  threshold: str | float = "off"  # the winner's highest score: off, calibrated, or a number in nats
  quantile: float = 0.99  # of cold-start chunk scores; gives the calibrated threshold
  margin: str | float = "off"  # nats by which the winner must be below the candidates' mean; or off
  running_margin: str | float = "off"  # m: at most (1 + m) times the trace's mean score; or off
  resamples: int = 0  # new draws of a chunk before its trace is pruned
  pruned: str = "drop"  # pruned traces. drop: discard. retry: again. keep: train on the prefix
  retries: int = 1  # new starts of a pruned trace, with pruned = retry
  refresh: int = 0  # problems between trainings of the student on what is kept so far; 0: never
  attempts: int = 1  # traces per problem (times k with granularity = trace)
  keep: str = "right"  # right: traces with a verified answer. all: every trace that ended
  loop_window: int = 32  # newest tokens searched for repetitions, which make a candidate invalid
  shard_rounds: int = 64  # rounds per output file; a killed run loses at most this much work
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Term:
  """One part of the loss: an objective, for some tokens. See training/objectives.py and terms.py."""

  objective: str = "nll"  # the name of a function in training/objectives.py
  scale: float = 1.0  # factor of this term
  whom: str = "teacher"  # the second model: teacher, base, start (the arm's own start) or lagged
  beta: float = 0.5  # of jsd: the second model's share of the mixture; 0 is fkl, and 1 is rkl
  normalize: bool = True  # jsd over beta (1 - beta), so that beta does not scale it; papers: False
  temperature: tuple = (1.0, 1.0)  # divides both models' logits, from the first update to the last
  top_k: int = 0  # tokens that rank and pld order; of divergences: others are one category; 0: off
  where: str = "all"  # tokens that count: all, opener or uncertain
  share: float = 0.1  # of opener: of a trace's entropy; of uncertain: of its tokens
  gate: str = "off"  # factor of every token: off or entropy_gap


@dataclasses.dataclass(frozen=True)
class Train:
  """One fine-tuning run: AdamW, linear warm-up, cosine decay. See training/train.py."""

  steps: int = 200  # updates
  batch_size: int = 32  # packed sequences per micro-batch, over all devices
  length: int = 128  # tokens per packed sequence
  too_long: str = "cut"  # examples longer than that: cut, drop or refuse
  accumulate: int = 1  # micro-batches per update
  terms: tuple = dataclasses.field(  # the loss: ((name, Term), ...)
    default=(("sft", Term()),), metadata={"named": Term}
  )
  lag: int = 5  # updates between copies of the student that `lagged` terms compare it with
  credit: str = "one"  # what every token counts: the name of a function in training/credit.py
  alpha: float = 0.8  # of the credit `signed`: how much a wrong trace repels
  discount: float = 0.0  # of the credit `gap`: what the next token counts; 1: all that follow
  samples: float = 0.0  # share of examples that the student writes itself, while it learns
  every: int = 20  # updates until it writes anew
  asked: int = 0  # problems that it then answers, in turn; 0: all
  answers: int = 1  # to each of them
  learning_rate: float = 1e-3  # at the end of the warm-up
  warmup_steps: int = 20  # updates in which the learning rate rises from 0
  final_rate: float = 0.1  # learning rate after the last update, as a fraction of learning_rate
  weight_decay: float = 0.1  # of weight matrices; norms and biases do not decay
  clip: float = 1.0  # largest global norm of the gradient
  beta1: float = 0.9  # AdamW's decay rate of the first moment
  beta2: float = 0.95  # and of the second moment
  block: int = 1024  # positions whose attention keys or logits are in memory at a time
  remat: bool = False  # recompute each layer in the backward pass: less memory, more time
  dtype: str = "float32"  # of activations: float32 or bfloat16; weights and optimizer are float32
  split_sequences: bool = False  # devices that share a teacher share each sequence, too
  unroll: bool = False  # a separate copy of the program for each layer: faster on a CPU
  save_every: int = 200  # updates between checkpoints
  log_every: int = 10  # updates between lines of metrics.jsonl
  start: str = "base"  # initial weights: base, cold_start, or an arm (its student of the same seed)
  cold_traces: bool = False  # train on the traces of the cold start too
  also: str = ""  # an arm whose kept traces are mixed with the arm's own; "": none
  also_share: float = 0.5  # share of `also` among the examples that the student does not write
  given: str = "learn"  # the given part of traces, for arms with `after`: learn or mask
  seed: int = 0  # of the order of the examples


@dataclasses.dataclass(frozen=True)
class Arm:
  """What one arm does: `select` and `train` of the config, with the changes of arms.NAME.

  The changes of `select` stand there directly, and those of `train` under `train`.
  """

  select: Select = Select()
  train: Train = Train()


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """How students answer one set of test problems."""

  source: str = ""  # see Problems.source; empty: problems.test_source
  limit: int = 0  # problems to use; 0: all of `source`, or problems.test when `source` is empty
  max_tokens: int = 0  # maximum tokens per answer; 0: select.max_tokens
  slots: int = 64  # answers that are generated at the same time
  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0  # nucleus sampling; 1 is off
  samples: int = 1  # answers per problem; accuracy is their mean
  examples: str = ""  # a JSONL file of solved problems that every prompt shows; empty: none
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """How to make a bundled model from random weights: see configs/bundled.py."""

  documents: str = "lessons"  # texts to train on: lessons (a teacher) or plain (a base student)
  out: str = ""  # folder for the model; empty: model, in the workdir
  width: int = 128  # of the residual stream
  layers: int = 4
  heads: int = 4  # attention heads, each with its own keys and values
  head: int = 32  # width of a head
  hidden: int = 256  # width of the MLP


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run."""

  name: str = "run"
  stages: tuple = ("cold_start", "collect", "train", "evaluate", "report")
  trackers: tuple = ()  # where metrics go besides files: tensorboard, wandb, trackio
  model_parallel: int = 1  # devices that share one copy of the teacher
  split_student: bool = False  # share one copy of the student, too; False: each device has one
  attention: str = "auto"  # einsum; kernel (GPU, TPU); cudnn (GPU); auto: the kernel there is
  teacher: Model = Model()
  student: Model = Model()
  translate: bool = False  # allow different tokenizers: text is converted on the host, slower
  problems: Problems = Problems()
  select: Select = Select()
  cold_start: Select = Select(k=1, temperature=0.6)  # how the cold-start traces are sampled
  arms: tuple = ()  # ((name, Arm), ...)
  seeds: int = 1  # students per arm; each sees the training rows in another order
  warm_up: Train = Train()  # the student's training in the cold start
  train: Train = Train()  # of the arms, each of which may change it
  evaluate: Evaluate = Evaluate()  # the test set when `tests` is empty, else the defaults of tests
  tests: tuple = ()  # ((name, Evaluate), ...): several test sets
  references: tuple = ("teacher", "base", "cold_start")  # models that evaluate measures beside arms
  pretrain: Pretrain = Pretrain()


def default():
  """The default Config as a ConfigDict. Config files change it, and flags override it."""
  # Not type-safe, because a threshold of "off" may become a number. `parse` checks the types.
  return ml_collections.ConfigDict(
    {**plain(Config()), "arms": {"gen_ssd": {}}, "tests": {}}, type_safe=False
  )


def plain(value):
  """A dataclass as a dict, recursively; other values as they are."""
  if dataclasses.is_dataclass(value):
    return {
      f.name: {name: plain(x) for name, x in getattr(value, f.name)}
      if f.metadata
      else plain(getattr(value, f.name))
      for f in dataclasses.fields(value)
    }
  return value


def parse(config):
  """Converts a ConfigDict or dict to a Config. checks.check validates the values.

  Raises UserError, with the name of the field, for an unknown field or a wrong type.
  """
  raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
  arms, tests = raw.pop("arms", {}), raw.pop("tests", {})
  built = _build(Config, raw, "config")
  return dataclasses.replace(
    built,
    arms=tuple((name, _arm(name, x, built)) for name, x in _named("arms", arms, "select")),
    tests=tuple(
      (name, _changed(built.evaluate, x, f"tests.{name}"))
      for name, x in _named("tests", tests, "evaluate")
    ),
  )


def _named(field, named, of):
  """The items of a dict of changes by name."""
  if not isinstance(named, dict):
    fail(field, named, f"a dict of name to changed {of} fields")
  for name, changes in named.items():
    if not isinstance(changes, dict):
      fail(f"{field}.{name}", changes, f"a dict of changed {of} fields")
  return named.items()


def _arm(name, changes, config):
  train = changes.get("train", {})
  if not isinstance(train, dict):
    fail(f"arms.{name}.train", train, "a dict of changed train fields")
  select = {field: x for field, x in changes.items() if field != "train"}
  return Arm(
    select=_changed(config.select, select, f"arms.{name}"),
    train=_changed(config.train, train, f"arms.{name}.train"),
  )


def _changed(base, changes, where):
  """The dataclass `base` with some fields changed; `where` is its path for errors."""
  return _build(type(base), {**plain(base), **changes}, where)


def _build(kind, raw, where):
  """The dataclass `kind` from the dict `raw`; `where` is the field's path for errors."""
  known = {f.name: f for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  out = {}
  for name, value in raw.items():
    path = name if where == "config" else f"{where}.{name}"
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
      raise UserError(f"{path} is not a field{hint}")
    hint = hints[name]
    if of := known[name].metadata.get("named"):
      named = _named(path, value, of.__name__.lower())
      out[name] = tuple((n, _build(of, changes, f"{path}.{n}")) for n, changes in named)
    elif dataclasses.is_dataclass(hint):
      if not isinstance(value, dict):
        fail(path, value, "a dict of fields")
      out[name] = _build(hint, value, path)
    else:
      out[name] = _typed(value, hint, path)
  return kind(**out)


def _typed(value, hint, path):
  """The value as its annotated type, after the conversions that flags and JSON need."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  if isinstance(value, list) and tuple in options:
    value = tuple(value)
  if isinstance(value, int) and not isinstance(value, bool) and float in options:
    value = float(value)
  if isinstance(value, str) and {str, float} <= {*options}:
    try:
      value = float(value)  # flags give numbers as text
    except ValueError:
      pass
  texts = value if isinstance(value, tuple) else (value,)
  if any(isinstance(t, str) and not encodable(t) for t in texts):
    fail(path, value, "text that UTF-8 can write, without half of a surrogate pair")
  if not any(type(value) is o for o in options):
    fail(path, value, "of type " + " or ".join(o.__name__ for o in options))
  return value


def references(arm):
  """{field: the model or arm that it names} of an Arm's settings that may name another arm."""
  select, train = arm.select, arm.train
  models = {"writer": select.writer, "chooser": select.chooser, "train.start": train.start}
  return {**models, "after": select.after, "train.also": train.also}


def ordered(arms):
  """((name, Arm), ...) with every arm after those that it names.

  Raises UserError where arms wait for each other.
  """
  left, done = dict(arms), {}
  while left:
    free = {n: a for n, a in left.items() if not {*references(a).values()} & left.keys()}
    if not free:
      name, arm = next(iter(left.items()))
      field, other = next((f, x) for f, x in references(arm).items() if x in left)
      fail(f"arms.{name}.{field}", other, "an arm that does not need this one first")
    done |= free
    left = {n: a for n, a in left.items() if n not in free}
  return tuple(done.items())


def trained_early(arms):
  """Names of the arms whose students write or choose for other arms, and of those they start from."""
  known, found = dict(arms), set()
  todo = [x for _, a in arms for x in (a.select.writer, a.select.chooser)]
  while todo:
    if (name := todo.pop()) in known and name not in found:
      found.add(name)
      todo.append(known[name].train.start)
  return found


def train_field(config, name, arm):
  """Where the Train of an arm stands in the config: `train`, or arms.NAME.train if it is changed."""
  return "train" if arm.train == config.train else f"arms.{name}.train"


def trainings(config):
  """{field: Train} of the arms' trainings that differ: `train`, and those that arms changed."""
  found = {}
  for name, arm in config.arms:
    if arm.train not in found.values():
      found[train_field(config, name, arm)] = arm.train
  return found


def collection(s):
  """The Select that collects the traces of arm `s`. Arms with an equal one share their traces.

  Fields that do not affect the traces are at their defaults. Best of k whole traces needs plain
  sampling with k times as many attempts. With `refresh`, `keep` does affect the traces, because
  the student is trained on the kept ones.
  """
  plain = {} if s.refresh else {"keep": Select.keep}
  if s.granularity == "trace":
    plain |= dict(granularity="chunk", k=1, attempts=s.k * s.attempts)
  if s.threshold != "calibrated":
    plain |= dict(quantile=Select.quantile)
  if s.pruned != "retry" and not s.refresh:
    plain |= dict(pruned=Select.pruned, retries=Select.retries)
  if s.selector != "softmin":
    plain |= dict(beta=Select.beta)
  if not s.after:
    plain |= dict(cut=Select.cut)
  if s.k == 1 or s.granularity == "trace":
    plain |= dict(teacher_share=Select.teacher_share, branch_entropy=Select.branch_entropy)
  if (s.k == 1 or s.granularity == "trace") and s.threshold == s.running_margin == "off":
    plain |= dict(scorer=Select.scorer, selector=Select.selector, beta=Select.beta, context=0)
  return dataclasses.replace(s, **plain)


def attempts(s, arms):
  """Traces of a problem in the collection of Select `s`, at most and without those written again.

  arms: as in Config.
  """
  source = dict(arms).get(s.after)
  if not source:
    return collection(s).attempts
  again = source.select.retries if source.select.pruned == "retry" else 0
  return s.attempts * attempts(source.select, arms) * (1 + again)


def alone(s, **changes):
  """Select `s` with `changes`, for a model that writes alone: nothing is chosen, pruned or cut."""
  plain = dict(
    granularity="chunk",
    k=1,
    after="",
    threshold="off",
    margin="off",
    running_margin="off",
    teacher_share=1.0,
    branch_entropy=0.0,
    context=0,
    delimiters=(),
    step_delimiters=(),
    resamples=0,
    pruned="drop",
    covers="everything",
    refresh=0,
    cut=Select.cut,
  )
  return dataclasses.replace(s, **plain | changes)


def ring_slots(s):
  """Ring slots for the prompt, the trace, chunks drawn again, and chunks that end early."""
  early = bool(s.delimiters) + (s.branch_entropy > 0)  # before a peak; what starts there is long
  spare = s.resamples * s.c + s.max_tokens * early
  slots = s.prompt + s.max_tokens + spare
  return slots if not s.block else -(-slots // s.block) * s.block


def arm_settings(arm):
  """All settings of an Arm as a dict: those of `select`, and `train`."""
  return {**plain(arm.select), "train": plain(arm.train)}


def settings(config):
  """A Config as plain JSON values."""
  return json.loads(
    json.dumps(
      {
        **plain(config),
        "arms": {name: arm_settings(arm) for name, arm in config.arms},
        "tests": {n: plain(e) for n, e in config.tests},
      }
    )
  )
