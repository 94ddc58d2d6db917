"""Fine-tuning: an optax step over packed sequences and a loop with Orbax that continues exactly."""

import dataclasses
import functools
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
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
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.training import checkpoints
from gen_ssd.training import objectives
from gen_ssd.training import packing

AXES = mesh_lib.AXES  # training splits sequences and weights over every device


@pytree
class TrainState:
  """Everything that an update changes; its buffers are donated to `train_step`."""

  model: decoder.Transformer  # weights in float32
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
  model: decoder.Transformer, batch: dict[str, Shaped[Array, "b t"]], config: config_lib.Train
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """(sum of the objective in nats, number of targets) of one packed batch; see packing.batches.

  Raises UserError when the objective needs a column that the batch does not have.
  """
  objective = objectives.OBJECTIVES[config.objective]
  columns = objectives.shift_columns(objective, batch)
  targets, live = objectives.shift_targets(batch["tokens"], batch["mask"], batch["segments"])
  block = min(config.block, config.length)
  hidden = decoder.forward_packed(
    model,
    batch["tokens"],
    batch["positions"],
    functools.partial(attention.attend_packed, segments=batch["segments"], block=block),
    gather=functools.partial(_replicated, dtype=model.layout.dtype),
    remat=config.remat,
  )
  return objectives.objective_sum(
    objective, _with_replicated_head(model), hidden, targets, live, columns, block=block
  )


def _replicated(weights, dtype):
  """Weights cast to `dtype` and gathered from all devices."""
  return jax.tree.map(lambda x: reshard(x.astype(dtype), P()), weights)


def _with_replicated_head(model):
  """The model with the weights of its output layer replicated, which is the embedding if tied."""
  name = "embed" if model.arch.tied else "head"
  head = getattr(model, name)
  model = decoder.replace(model)
  setattr(model, name, type(head)(_replicated(head[...], model.layout.dtype)))
  return model


@functools.partial(jax.jit, static_argnames="config")
def start(model: decoder.Transformer, *, config: config_lib.Train) -> TrainState:
  """TrainState before the first update, built in one jit so that every leaf is committed."""
  return TrainState(model=model, optimizer=optimizer(config).init(model), step=jnp.int32(0))


@functools.partial(jax.jit, static_argnames="config", donate_argnums=0)
def train_step(
  state: TrainState, batch: dict[str, Shaped[Array, "a b t"]], *, config: config_lib.Train
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """One update from `accumulate` micro-batches. Returns (state, metrics).

  The gradient is that of the summed objective divided by the *global* number of targets, so micro-
  batches, sequences and processes with more targets weigh more, as in one large batch. Metrics: `loss`
  in nats per target, `targets`, and `gradient_norm` before clipping.
  """
  grad = jax.value_and_grad(lambda m, part: loss_sum(m, part, config), has_aux=True)

  def add_part(carry, part):
    total, count, grads = carry
    (loss, n), g = grad(state.model, part)
    return (total + loss, count + n, jax.tree.map(jnp.add, grads, g)), None

  (total, count), grads = grad(state.model, jax.tree.map(lambda x: x[0], batch))
  if config.accumulate > 1:
    rest = jax.tree.map(lambda x: x[1:], batch)
    (total, count, grads), _ = lax.scan(add_part, (total, count, grads), rest)
  divisor = jnp.maximum(count, 1)
  grads = jax.tree.map(lambda g: g / divisor, grads)
  updates, moments = optimizer(config).update(grads, state.optimizer, state.model)
  metrics = {"loss": total / divisor, "targets": count, "gradient_norm": optax.global_norm(grads)}
  state = dataclasses.replace(
    state,
    model=optax.apply_updates(state.model, updates),
    optimizer=moments,
    step=state.step + 1,
  )
  return state, metrics


def static(config: config_lib.Train) -> config_lib.Train:
  """The settings that the compiled program depends on; those that only the host reads are default."""
  return dataclasses.replace(
    config, seed=0, save_every=1, log_every=1, start="base", cold_traces=False
  )


def shapes(
  arch: Architecture, config: config_lib.Train
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
  """(state, batch) of `train_step` as shapes on the current mesh, for a student without weights."""
  layout = Layout(batch_axes=AXES, tensor_axis=None, fsdp_axes=fsdp_axes(arch))
  model = weights.shapes(arch, layout)
  layout = dataclasses.replace(layout, dtype=config.dtype, unroll=config.unroll)
  state = mesh_lib.shapes(start, decoder.replace(model, layout=layout), config=static(config))
  dims = (config.accumulate, config.batch_size, config.length)
  part = mesh_lib.shape(dims, jnp.int32, P(None, AXES, None))
  return state, dict.fromkeys(("tokens", "mask", "segments", "positions"), part)


def fit(
  model: decoder.Transformer,
  source: typing.Any,
  config: config_lib.Train,
  folder: folders.Path,
  *,
  title: str = "train",
  field: str = "train",
) -> decoder.Transformer:
  """Trains `model` on `source` (see packing.batches) for `config.steps` updates and returns it.

  Checkpoints (weights, optimizer, data position) go to `folder`: every `config.save_every` updates,
  and before SIGTERM ends all processes. Calling it again continues to the same result as if it had
  never stopped. `field` is where the settings stand in a Config, for messages.

  Raises FloatingPointError, naming the update, when a metric or a weight is not finite: before every
  checkpoint, so that none holds such weights. Raises UserError when `source` is empty or lacks a
  column of the objective, when an update has no token to learn, and when no checkpoint of `folder` can
  be read. Raises OSError with `folder` when the machine is at fault, such as a full disk.
  """
  layout = dataclasses.replace(
    model.layout, batch_axes=AXES, tensor_axis=None, dtype=config.dtype, unroll=config.unroll
  )
  model = decoder.replace(model, layout=layout)
  program = static(config)
  state = start(model, config=program)
  batches = packing.batches(
    source, batch_size=config.batch_size, length=config.length, seed=config.seed
  )
  line = progress.Progress(title, config.steps)
  with mesh_lib.stoppable() as stopping, checkpoints.keeper(folder, config.save_every) as saver:
    first, state = checkpoints.restore(saver, state, batches)
    log, clock = progress.Metrics(folder / "metrics.jsonl", first), times.Times(folder)
    pending = None  # metrics of the step before: the host never waits for the step it just sent
    for i in range(first + 1, config.steps + 1):
      batch = _next_batch(batches, config.accumulate)
      stop = stopping()  # several processes wait here for the update before, not for this one
      state, metrics = train_step(state, batch, config=program)
      _report(pending, i - 1, config, log, line, field)
      pending = metrics
      if jax.default_backend() == "cpu":
        jax.block_until_ready(metrics)  # collectives of two steps at once can dead-lock
      if stop or i == config.steps or i % config.save_every == 0:
        _check_finite({**metrics, "weights": _finite_sum(state.model)}, i, field)
        _report(pending, i, config, log, line, field)  # no run makes this line after the save
        pending = None
        log.flush()
        checkpoints.save(saver, i, state, batches)
        clock.write((i - first) * config.accumulate * config.batch_size * config.length)
      if stop:
        break
  log.flush()
  return state.model


def _next_batch(batches, accumulate):
  """The next `accumulate` micro-batches: arrays [a,b,t] on the mesh, which splits the sequences."""
  parts = [next(batches) for _ in range(accumulate)]
  return jax.tree.map(lambda *xs: mesh_lib.place(np.stack(xs), P(None, AXES, None)), *parts)


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
