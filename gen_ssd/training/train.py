"""Fine-tuning: an optax step over packed sequences and a loop with Orbax that continues exactly."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped
import numpy as np
import optax

from gen_ssd import config as config_lib
from gen_ssd import errors
from gen_ssd import folders
from gen_ssd import mesh as mesh_lib
from gen_ssd import progress
from gen_ssd import times
from gen_ssd import trackers
from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models import architecture
from gen_ssd.models import decoder
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from gen_ssd.training import checkpoints
from gen_ssd.training import objectives
from gen_ssd.training import packing
from gen_ssd.training import reading
from gen_ssd.training import terms as terms_lib

AXES = mesh_lib.AXES  # training splits sequences and weights over every device
Others = Mapping[str, decoder.Transformer]


@pytree
class TrainState:
  """Everything that an update changes; its buffers are donated to `train_step`."""

  model: decoder.Transformer  # weights in float32
  lagged: decoder.Transformer | None  # a copy from up to `lag` updates ago; None: no term wants it
  optimizer: optax.OptState
  step: Int[Array, ""]  # updates made so far


def fsdp_axes(arch: Architecture) -> tuple[str, ...] | None:
  """The mesh axes that split the width of the weights, or None when they do not divide it."""
  return AXES if arch.width % jax.sharding.get_mesh().size == 0 else None


def optimizer(config: config_lib.Train) -> optax.GradientTransformation:
  """AdamW with linear warm-up and cosine decay, after clipping by global norm.

  AdamW: Loshchilov and Hutter, 2019 (arXiv:1711.05101). The leaf table says which weights decay.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    max(config.steps, config.warmup_steps + 1),
    config.learning_rate * config.final_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      schedule,
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=_decay_mask,
    ),
  )


def _decay_mask(params):
  """A bool for each leaf of a Transformer, whose paths end in (leaf name, "value")."""
  return jax.tree.map_with_path(lambda path, _: architecture.LEAVES[path[-2].name].decay, params)


def loss_sum(
  model: decoder.Transformer,
  batch: dict[str, Shaped[Array, "b t"]],
  others: Others,
  numbers: terms_lib.Knobs,
  progress: Float[Array, ""],
  config: config_lib.Train,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, " n"]]]:
  """(loss in nats, (number of targets, each term's part)) of one packed batch: see packing.batches.

  `others` are the second models by Term.whom; `progress` is 0 at the first update and 1 at the last.
  Raises UserError when an objective needs a column that the batch does not have.
  """
  columns = {
    name: objectives.shift_columns(objectives.OBJECTIVES[term.objective], batch)
    for name, term in config.terms
  }
  targets, live = objectives.shift_targets(batch["tokens"], batch["mask"], batch["segments"])
  block = min(config.block, config.length)

  def read(model, remat):
    if config.split_sequences:
      split = dict(zip(("batch_axes", "sequence_axis"), AXES))
      model = decoder.replace(model, layout=dataclasses.replace(model.layout, **split))
    where = batch["positions"], batch["segments"]
    return reading.reader(model, batch["tokens"], *where, block=block, remat=remat)

  frozen = {whom: jax.lax.stop_gradient(read(other, False)) for whom, other in others.items()}
  parts, count = terms_lib.sums(
    config.terms,
    numbers,
    progress,
    read(model, config.remat),
    frozen,
    targets,
    live,
    batch["segments"],
    columns,
    block=block,
  )
  return jnp.sum(parts), (count, parts)


@functools.partial(jax.jit, static_argnames="config")
def start(model: decoder.Transformer, *, config: config_lib.Train) -> TrainState:
  """TrainState before the first update, built in one jit so that every leaf is committed."""
  lagged = jax.tree.map(jnp.copy, model) if "lagged" in terms_lib.models(config) else None
  moments = optimizer(config).init(model)
  return TrainState(model=model, lagged=lagged, optimizer=moments, step=jnp.int32(0))


@functools.partial(jax.jit, static_argnames="config", donate_argnums=0)
def train_step(
  state: TrainState,
  batch: dict[str, Shaped[Array, "a b t"]],
  others: Others,
  numbers: terms_lib.Knobs,
  *,
  config: config_lib.Train,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """One update from `accumulate` micro-batches. Returns (state, metrics).

  The gradient is that of the summed terms divided by the *global* number of targets, so micro-
  batches, sequences and processes with more targets weigh more, as in one large batch. `others` are the
  second models of terms, by Term.whom, without `lagged`. Metrics: `loss` in nats per target, `targets`,
  `gradient_norm` before clipping, and each term's part of the loss where there are several.
  """
  progress = jnp.float32(state.step) / max(config.steps - 1, 1)
  others = others if state.lagged is None else {**others, "lagged": state.lagged}
  read = lambda m, part: loss_sum(m, part, others, numbers, progress, config)
  grad = jax.value_and_grad(read, has_aux=True)

  def add_part(carry, part):
    return jax.tree.map(jnp.add, carry, grad(state.model, part)), None

  if config.accumulate == 1:
    found = grad(state.model, jax.tree.map(lambda x: x[0], batch))
  else:
    zero = jnp.float32(0), (jnp.float32(0), jnp.zeros(len(config.terms), jnp.float32))
    none = zero, jax.tree.map(jnp.zeros_like, state.model)
    found, _ = lax.scan(add_part, none, batch)
  (total, (count, parts)), grads = found
  divisor = jnp.maximum(count, 1)
  grads = jax.tree.map(lambda g: g / divisor, grads)
  updates, moments = optimizer(config).update(grads, state.optimizer, state.model)
  metrics = {"loss": total / divisor, "targets": count, "gradient_norm": optax.global_norm(grads)}
  if len(config.terms) > 1:
    metrics |= {f"loss_{name}": parts[i] / divisor for i, (name, _) in enumerate(config.terms)}
  model, step = optax.apply_updates(state.model, updates), state.step + 1
  lagged = state.lagged
  if lagged is not None:
    lagged = jax.tree.map(
      lambda new, old: jnp.where(step % config.lag == 0, new, old), model, lagged
    )
  return TrainState(model=model, lagged=lagged, optimizer=moments, step=step), metrics


def static(config: config_lib.Train) -> config_lib.Train:
  """The settings that the compiled program depends on; all others are at their defaults."""
  plain = config_lib.Train()
  host = ("seed", "save_every", "log_every", "start", "cold_traces", "also", "also_share")
  host += ("too_long", "credit", "alpha", "discount", "samples", "every", "asked", "answers")
  others = {name: getattr(plain, name) for name in host}
  return dataclasses.replace(config, terms=terms_lib.static(config.terms), **others)


def layout(
  arch: Architecture, dtype: str = "float32", unroll: bool = False, attention: str = "einsum"
) -> Layout:
  """How training places a model: its weights are split over every device where they can be."""
  split = dict(batch_axes=AXES, tensor_axis=None, fsdp_axes=fsdp_axes(arch))
  return Layout(**split, dtype=dtype, unroll=unroll, attention=attention)


def second_layout(
  arch: Architecture, model: config_lib.Model, unroll: bool, attention: str
) -> Layout:
  """How training places a second model of the loss, with the dtype and quantization of `model`."""
  own = layout(arch, model.dtype, unroll, attention)
  return dataclasses.replace(own, quantization=model.quantization)


def batch_spec(config: config_lib.Train) -> P:
  """How the columns [a,b,t] of a batch lie on the mesh; a device has whole sequences of them."""
  return P(None, AXES[0] if config.split_sequences else AXES, None)


def shapes(
  arch: Architecture,
  config: config_lib.Train,
  others: Mapping[str, Spec] | None = None,
  attention: str = "einsum",
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], Others, terms_lib.Knobs]:
  """The arguments of `train_step` as shapes on the current mesh, for a student without weights.

  `others` are the second models, placed as `second_layout` says, by Term.whom; `attention` is that of
  Layout.
  """
  model = weights.shapes(arch, layout(arch))
  own = layout(arch, config.dtype, config.unroll, attention)
  state = mesh_lib.shapes(start, decoder.replace(model, layout=own), config=static(config))
  dims = (config.accumulate, config.batch_size, config.length)
  part = mesh_lib.shape(dims, jnp.int32, batch_spec(config))
  names = "tokens", "mask", "segments", "positions"
  batch: dict[str, jax.ShapeDtypeStruct] = {name: part for name in names}
  if config.credit != "one":
    batch["weights"] = mesh_lib.shape(dims, jnp.float32, batch_spec(config))
  read = {whom: weights.shapes(*spec) for whom, spec in (others or {}).items()}
  numbers = jax.tree.map(lambda x: mesh_lib.shape(x.shape, x.dtype), terms_lib.knobs(config.terms))
  return state, batch, read, numbers


def fit(
  model: decoder.Transformer,
  source: packing.Source | Callable[[int, decoder.Transformer], packing.Source],
  config: config_lib.Train,
  folder: folders.Path,
  *,
  others: Others | None = None,
  vocab: int = 0,
  title: str = "train",
  field: str = "train",
) -> decoder.Transformer:
  """Trains `model` on `source` for `config.steps` updates and returns it.

  With `config.samples`, `source` makes the examples of every round of `config.every` updates from the
  number of the round and the model as it is then. When a run goes on within a round, it must return
  what it returned before.

  Checkpoints (weights, optimizer, data position) go to `folder`: every `config.save_every` updates,
  at the end of a round, and before SIGTERM ends all processes. Calling it again continues to the same
  result as if it had never stopped. `others` are the second models that `config.terms` name, by
  Term.whom and without `lagged`, placed as `layout` says; `vocab` is the number of ids that they and
  the student know. `field` is where the settings stand in a Config, for messages.

  Raises FloatingPointError, naming the update, when a metric or a weight is not finite: before every
  checkpoint, so that none holds such weights. Raises UserError when `source` is empty or lacks a
  column of the objective, when an update has no token to learn, and when no checkpoint of `folder` can
  be read. Raises OSError with `folder` when the machine is at fault, such as a full disk.
  """
  if model.layout.quantization != "off":
    raise ValueError("a quantised model cannot be trained: load it with quantization off")
  own = dataclasses.replace(
    model.layout, batch_axes=AXES, tensor_axis=None, dtype=config.dtype, unroll=config.unroll
  )
  model = decoder.replace(model, layout=own)
  program = static(config)
  numbers = jax.tree.map(mesh_lib.place, terms_lib.knobs(config.terms, vocab))
  update = functools.partial(train_step, others=others or {}, numbers=numbers, config=program)
  state, line = start(model, config=program), progress.Progress(title, config.steps)
  if not callable(source):
    return _updates(state, source, config, update, folder, folder, config.steps, line, field).model
  ends = [*range(config.every, config.steps, config.every), config.steps]
  homes = [folder / f"round-{r:04d}" for r in range(len(ends))]
  saved = [r for r, home in enumerate(homes) if checkpoints.any_in(home)]
  mesh_lib.barrier("rounds looked for")  # before anybody saves
  for r in range(max(saved, default=0), len(ends)):
    fresh = dataclasses.replace(config, seed=config.seed + 1000 * r)  # in another order
    rows = source(r, state.model)
    state = _updates(state, rows, fresh, update, folder, homes[r], ends[r], line, field)
    if r and jax.process_index() == 0:
      folders.remove(homes[r - 1])
  return state.model


def _updates(state, source, config, update, folder, home, end, line, field):
  """The state after update `end`: `fit` with checkpoints in `home` and metrics in `folder`."""
  batches = packing.batches(
    source, batch_size=config.batch_size, length=config.length, seed=config.seed
  )
  begun = int(mesh_lib.host(state.step))
  with mesh_lib.stoppable() as stopping, checkpoints.keeper(home, config.save_every) as saver:
    first, state = checkpoints.restore(saver, state, batches)
    first = first or begun
    log, clock = progress.Metrics(folder / "metrics.jsonl", first), times.Times(folder)
    pending = None  # metrics of the step before: the host never waits for the step it just sent
    for i in range(first + 1, end + 1):
      batch = _next_batch(batches, config)
      stop = stopping()  # several processes wait here for the update before, not for this one
      state, metrics = update(state, batch)
      _report(pending, i - 1, config, log, line, field)
      pending = metrics
      if jax.default_backend() == "cpu":
        jax.block_until_ready(metrics)  # collectives of two steps at once can dead-lock
      if stop or i == end or i % config.save_every == 0:
        _check_finite({**metrics, "weights": _finite_sum(state.model)}, i, field)
        _report(pending, i, config, log, line, field)  # no run makes this line after the save
        pending = None
        log.flush()
        checkpoints.save(saver, i, state, batches)
        clock.write((i - first) * config.accumulate * config.batch_size * config.length)
      if stop:
        break
  log.flush()
  return state


def _next_batch(batches, config):
  """The next `accumulate` micro-batches: arrays [a,b,t] on the mesh, which splits the sequences."""
  parts = [next(batches) for _ in range(config.accumulate)]
  return jax.tree.map(lambda *xs: mesh_lib.place(np.stack(xs), batch_spec(config)), *parts)


def _report(metrics, i, config, log, line, field):
  """Logs and shows the metrics of update i, which _check_finite checks, if it is one to log."""
  last = i == config.steps
  if metrics is None or (i % config.log_every and not last):
    return
  row = _check_finite(metrics, i, field)
  log.write(step=i, **row)
  trackers.write(line.title, i, row)
  line.show(i, f"loss {row['loss']:.3f}", final=last)


def _check_finite(metrics, i, field):
  """The metrics as floats. Raises if one is not finite, or if the update had nothing to learn."""
  row = {name: float(x) for name, x in mesh_lib.host(metrics).items()}
  if wrong := [name for name, x in row.items() if not np.isfinite(x)]:
    raise FloatingPointError(
      f"{field}: {' and '.join(wrong)} not finite at update {i}; lower {field}.learning_rate or "
      "look at the data"
    )
  if row["targets"] == 0:
    raise errors.UserError(
      f"{field}.length: update {i} has no token to learn; make it longer than the prompts"
    )
  return row


@jax.jit
def _finite_sum(model):
  """A number that is finite when every weight is."""
  return sum(jnp.sum(jnp.abs(x) * 0) for x in jax.tree.leaves(model))
