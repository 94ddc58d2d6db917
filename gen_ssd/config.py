"""All settings of a run: their names, types, defaults and meanings.

A config file returns an ml_collections ConfigDict; `parse` turns it into these frozen dataclasses.
checks.py defines which values are valid.
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

  path: str = ""  # a directory, bundled/NAME, or a hub name: ORG/NAME or ORG/NAME@REVISION
  dtype: str = "float32"  # of weights and caches during generation: float32 or bfloat16
  unroll: bool = False  # compile every layer separately: faster on a CPU, slower to compile
  chat_template: str = ""  # a Jinja file that replaces the tokenizer's template
  thinking: str = ""  # on or off, for templates with a thinking switch; empty: their default


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
  """How one collection of traces is written. An arm is `select` with some fields changed."""

  k: int = 4  # candidates per chunk
  c: int = 8  # tokens per candidate, at most
  slots: int = 32  # traces written at the same time
  prompt: int = 64  # tokens per prompt, at most
  max_tokens: int = 128  # tokens per trace, at most
  block: int = 0  # ring slots per attention block; 0: the whole ring at once
  temperature: float = 1.0  # of the teacher; 0 is greedy
  top_k: int = 0  # 0: off
  top_p: float = 1.0  # 1: off
  delimiters: tuple = ()  # strings that end a candidate early, such as "\n\n"
  granularity: str = "chunk"  # select each chunk, or trace: the best of k complete traces
  chooser: str = "cold_start"  # the student that scores: cold_start, or base without the cold start
  scorer: str = "perplexity"  # the name of a scorer in engine/scores.py
  step_delimiters: tuple = ()  # strings that end a step, for scorers of steps; (): a step is a chunk
  context: int = 0  # the scorer sees the prompt and this many times c tokens; 0: the whole trace
  scoring_prompt: str = "student"  # chat template of the scoring prompt: student or teacher
  covers: str = "everything"  # or thinking: after </think>, the teacher writes on without selection
  selector: str = "argmin"  # or softmin: sample with probability proportional to exp(-beta score)
  beta: float = 1.0  # of softmin; 0 selects uniformly at random
  threshold: str | float = "off"  # highest score of a kept chunk, calibrated (see quantile), or off
  quantile: float = 0.99  # calibrated threshold: this quantile of chunk scores on held-out problems
  margin: str | float = "off"  # the score must be this far below the mean of the candidates, or off
  running_margin: str | float = "off"  # m: score at most 1 + m times its trace's mean; or off
  resamples: int = 0  # times a chunk is sampled again before its trace is pruned
  pruned: str = "drop"  # drop pruned traces; retry: write them again; keep: train on their prefixes
  retries: int = 1  # times a pruned trace is written again with pruned="retry"
  refresh: int = 0  # retrain the scoring student after every so many problems; 0: never
  attempts: int = 1  # traces per problem; with granularity="trace", k times as many are written
  keep: str = "right"  # train on traces with a right answer; all: on every trace that ended
  loop_window: int = 32  # newest tokens searched for repetitions
  shard_rounds: int = 64  # rounds between writes to disk; an interrupted run loses at most these
  seed: int = 0  # of sampling


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
  """How students are evaluated on one set of problems."""

  source: str = ""  # empty: problems.test_source
  limit: int = 0  # problems to use of this source; 0: all that a file has
  max_tokens: int = 0  # tokens per answer, at most; 0: select.max_tokens
  slots: int = 64  # answers written at the same time
  temperature: float = 0.0  # 0 is greedy
  top_p: float = 1.0  # 1: off
  samples: int = 1  # answers per problem; accuracy is their mean
  seed: int = 0  # of sampling


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
  """A whole run."""

  name: str = "run"  # title of the report
  stages: tuple = ("cold_start", "collect", "train", "evaluate", "report")  # what to do, in order
  model_parallel: int = 1  # devices that share one copy of the teacher
  teacher: Model = Model()
  student: Model = Model()  # the base student
  translate: bool = False  # allow different tokenizers: text passes through the host (slower)
  problems: Problems = Problems()
  select: Select = Select()  # what all arms have in common
  cold_start: Select = Select(k=1, temperature=0.6)  # how cold-start traces are written
  arms: tuple = ()  # ((name, Select), ...); in a config file: {name: changes of select}
  seeds: int = 1  # students per arm, trained on the same traces in a different order
  warm_up: Train = Train()  # how the student is trained on cold-start traces
  train: Train = Train()  # how the student of every arm is trained
  evaluate: Evaluate = Evaluate()  # what all tests have in common
  tests: tuple = ()  # ((name, Evaluate), ...) as arms; empty: one test, as evaluate says
  pretrain: Pretrain = Pretrain()


def fail(field, value, right):
  """Raises ValueError. Every error about a setting has this form."""
  raise ValueError(f"{field} is {value!r}: it must be {right}")


def default():
  """The default Config as a ConfigDict, which config files change and flags override."""
  # Not type-safe: a threshold of "off" may become a number. `parse` checks types.
  return ml_collections.ConfigDict(
    {**plain(Config()), "arms": {"gen_ssd": {}}, "tests": {}}, type_safe=False
  )


def plain(value):
  """Dataclasses as dicts, at every level; other values as they are."""
  if dataclasses.is_dataclass(value):
    return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
  return value


def parse(config):
  """The Config of a ConfigDict or dict. checks.check says whether its values are valid.

  Raises ValueError, which names the field, for an unknown name or a value of the wrong type.
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
  """((name, `base` with changed fields), ...) from {name: {field: value}}."""
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
      value = float(value)  # a number given as a flag is text
    except ValueError:
      pass
  if not any(type(value) is o for o in options):
    fail(path, value, "of type " + " or ".join(o.__name__ for o in options))
  return value


def collection(s):
  """The Select that writes the traces of arm `s`. Arms with equal ones share their traces.

  Fields that do not affect the traces are at their defaults. Selection among complete traces is
  plain sampling of k times as many traces. `keep` and `pruned` affect the traces only when the
  student is refreshed, because it then learns from what was kept.
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
  """Slots of the prefix ring: prompt and trace, with room for resampled and shorter chunks."""
  spare = s.resamples * s.c + (s.max_tokens if s.delimiters else 0)
  slots = s.prompt + s.max_tokens + spare
  return slots if not s.block else -(-slots // s.block) * s.block


def settings(config):
  """A Config as plain JSON values."""
  return json.loads(
    json.dumps(
      {
        **plain(config),
        "arms": {n: plain(s) for n, s in config.arms},
        "tests": {n: plain(e) for n, e in config.tests},
      }
    )
  )
