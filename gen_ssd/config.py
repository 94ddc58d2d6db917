"""ml_collections ConfigDict -> frozen dataclasses. checks.py says which values make sense.

The dataclasses are the whole list of settings: name, type, default and meaning stand here.
"""

import dataclasses
import difflib
import json
import types
import typing

import ml_collections


@dataclasses.dataclass(frozen=True)
class Model:
  """A Hugging Face model and how to run it."""

  path: str = ""  # a directory, or a name on the hub: ORG/NAME or ORG/NAME@REVISION
  dtype: str = "float32"  # of weights and caches while generating: float32 or bfloat16
  unroll: bool = False  # separate layers: faster on a CPU, slower to compile
  chat_template: str = ""  # a Jinja file in place of the tokenizer's template
  thinking: str = ""  # on or off, for templates that have the switch; empty: theirs to decide


@dataclasses.dataclass(frozen=True)
class Problems:
  """Where problems come from and how many there are; problems/sets.py describes sources."""

  source: str = "bundled"  # of the training problems
  cold_start_source: str = ""  # empty: source; the cold start then gets the first problems drawn
  test_source: str = ""  # empty: source, which must then be bundled; see also Config.tests
  train: int = 512  # training problems; 0: all that a file has
  cold_start: int = 128  # problems of the cold start
  held_out: int = 32  # how many of them are not trained on, but calibrate the threshold
  test: int = 320  # test problems; 0: all that a file has
  seed: int = 0  # which problems are drawn when a source has more
  system: str = ""  # system message of every prompt; empty: none


@dataclasses.dataclass(frozen=True)
class Select:
  """One way of collecting traces. Arms are this with some fields changed."""

  k: int = 4  # candidates a row
  c: int = 8  # most tokens of a candidate
  slots: int = 32  # traces written at a time
  prompt: int = 64  # most prompt tokens
  max_tokens: int = 128  # most tokens of a trace
  block: int = 0  # ring slots attended at a time; 0: the whole ring
  temperature: float = 1.0
  top_k: int = 0  # 0 is off
  top_p: float = 1.0  # 1 is off
  delimiters: tuple = ()  # texts that end a candidate early, such as "\n\n"; () for none
  granularity: str = "chunk"  # chunk: chosen while writing. trace: the best of k whole traces
  chooser: str = "cold_start"  # the student that scores: cold_start, or base (no cold start)
  scorer: str = "perplexity"  # see scores.py
  step_delimiters: tuple = ()  # texts that end a step, for drop_first and teacher_gap; (): chunks do
  context: int = 0  # chunks of c tokens, beside the prompt, a scorer sees; 0: everything
  scoring_prompt: str = "student"  # or teacher: whose chat template a scoring student reads
  covers: str = "everything"  # or thinking: nothing is chosen or pruned after </think>
  selector: str = "argmin"  # or softmin: by lot, likelier the lower the score (see beta)
  beta: float = 1.0  # of softmin; 0 chooses at random
  threshold: str | float = "off"  # off, calibrated (see quantile), or nats: a winner's worst score
  quantile: float = 0.99  # of cold-start chunk scores, for a calibrated threshold
  margin: str | float = "off"  # off, or nats a winner must be below the mean of the candidates
  running_margin: str | float = (
    "off"  # off, or m: a winner's score is at most 1 + m times its trace's mean
  )
  resamples: int = 0  # times a chunk is drawn again before its trace is pruned
  pruned: str = "drop"  # such a trace. retry: its problem is too. keep: its prefix is kept
  retries: int = 1  # times a pruned trace is written anew, when pruned is retry
  refresh: int = 0  # problems after which the student is trained anew; 0: never
  attempts: int = 1  # traces a problem (times k when whole traces are chosen)
  keep: str = "right"  # right: answers verified. all: every trace that ended
  loop_window: int = 32  # tokens looked at for repetitions
  shard_rounds: int = 64  # rounds between files, which is the work lost when killed
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Train:
  """One fine-tuning run: AdamW, linear warm-up, cosine decay. See training/train.py."""

  steps: int = 200  # updates
  batch_size: int = 32  # packed rows per micro-batch, over all devices
  length: int = 128  # tokens per packed row; longer examples are cut
  accumulate: int = 1  # micro-batches per update
  objective: str = "nll"  # the loss: the name of a function in training/objectives.py
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
  unroll: bool = False  # a separate copy of the program for each layer: faster on a CPU
  save_every: int = 200  # updates between checkpoints
  log_every: int = 10  # updates between lines of metrics.jsonl
  start: str = "base"  # initial weights: base, or cold_start for the student that warm_up trained
  cold_traces: bool = False  # train on the traces of the cold start too
  seed: int = 0  # of the order of the examples


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """How students are measured, on one set of problems."""

  source: str = ""  # empty: problems.test_source
  limit: int = 0  # problems of a source named here; 0: all of a file
  max_tokens: int = 0  # most tokens of an answer; 0: select.max_tokens
  slots: int = 64
  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0
  samples: int = 1  # answers a problem; accuracy is their mean
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
  name: str = "run"
  stages: tuple = ("cold_start", "collect", "train", "evaluate", "report")
  model_parallel: int = 1  # devices that share one copy of the teacher
  teacher: Model = Model()
  student: Model = Model()
  translate: bool = False  # tokenizers may differ: text goes between them on the host, slower
  problems: Problems = Problems()
  select: Select = Select()
  cold_start: Select = Select(k=1, temperature=0.6)  # how cold-start traces are written
  arms: tuple = ()  # ((name, Select), ...)
  seeds: int = 1  # students trained an arm, each with another order of the rows
  warm_up: Train = Train()  # the student's cold start
  train: Train = Train()
  evaluate: Evaluate = Evaluate()
  tests: tuple = ()  # ((name, Evaluate), ...): several sets; empty: one, by evaluate
  pretrain: Pretrain = Pretrain()


def fail(field, value, right):
  """The one form of an error about a setting."""
  raise ValueError(f"{field} is {value!r}: it must be {right}")


def default():
  """The Config as an ml_collections ConfigDict, for config files to change and flags to override."""
  # parse checks types; a type-safe ConfigDict would not let a threshold of "off" become a number.
  return ml_collections.ConfigDict(
    {**plain(Config()), "arms": {"gen_ssd": {}}, "tests": {}}, type_safe=False
  )


def plain(value):
  if dataclasses.is_dataclass(value):
    return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
  return value


def parse(config):
  """Config of a ConfigDict or dict; checks.check says whether its values make sense.

  Raises ValueError, naming the field, for an unknown name or a value of another type.
  """
  raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
  arms, tests = raw.pop("arms", {}), raw.pop("tests", {})
  built = _build(Config, raw, "config")
  built = dataclasses.replace(
    built,
    arms=_variants("arms", arms, "select", built.select),
    tests=_variants("tests", tests, "evaluate", built.evaluate),
  )
  return built


def _variants(field, named, of, base):
  """((name, base with changed fields), ...) of a dict."""
  if not isinstance(named, dict):
    fail(field, named, f"a dict of name to changed {of} fields")
  for name, changes in named.items():
    if not isinstance(changes, dict):
      fail(f"{field}.{name}", changes, f"a dict of changed {of} fields")
  return tuple(
    (name, _build(type(base), {**plain(base), **changes}, f"{field}.{name}"))
    for name, changes in named.items()
  )


def _build(kind, raw, where):
  known = {f.name: f for f in dataclasses.fields(kind)}
  hints = typing.get_type_hints(kind)
  out = {}
  for name, value in raw.items():
    path = name if where == "config" else f"{where}.{name}"
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
      raise ValueError(f"{path} is not a field{hint}")
    hint = hints[name]
    if dataclasses.is_dataclass(hint):
      if not isinstance(value, dict):
        fail(path, value, "a dict of fields")
      out[name] = _build(hint, value, path)
    else:
      out[name] = _typed(value, hint, path)
  return kind(**out)


def _typed(value, hint, path):
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  if isinstance(value, list) and tuple in options:
    value = tuple(value)
  if isinstance(value, int) and not isinstance(value, bool) and float in options:
    value = float(value)
  if isinstance(value, str) and {str, float} <= {*options}:
    try:
      value = float(value)  # a flag's number
    except ValueError:
      pass
  if not any(type(value) is o for o in options):
    fail(path, value, "of type " + " or ".join(o.__name__ for o in options))
  return value


def collection(s):
  """The Select that writes the traces of an arm `s`: equal ones are collected once.

  Choosing among whole traces is plain sampling of k times as many; what changes no trace is at its
  default. A student that is refreshed learns from what is kept.
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
  if (s.k == 1 or s.granularity == "trace") and s.threshold == s.running_margin == "off":
    plain |= dict(scorer=Select.scorer, selector=Select.selector, beta=Select.beta, context=0)
  return dataclasses.replace(s, **plain)


def ring_slots(s):
  """Slots of the prefix ring: prompt, trace and room for the chunks that are drawn again."""
  spare = s.resamples * s.c + (s.max_tokens if s.delimiters else 0)
  slots = s.prompt + s.max_tokens + spare
  return slots if not s.block else -(-slots // s.block) * s.block


def settings(config):
  """A Config as JSON has it."""
  return json.loads(
    json.dumps(
      {
        **plain(config),
        "arms": {n: plain(s) for n, s in config.arms},
        "tests": {n: plain(e) for n, e in config.tests},
      }
    )
  )
