"""Fine-tuning: an optax step over packed rows and a loop with Orbax that continues exactly."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

from gen_ssd import mesh as mesh_lib
from gen_ssd import progress
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.training import objectives
from gen_ssd.training import packing

AXES = mesh_lib.AXES  # training splits rows and weights over every device


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """Everything a step changes; donated. `model` in f32, `optimizer` is optax's state."""

  model: decoder.Transformer
  optimizer: optax.OptState
  step: jax.Array


def fsdp_axes(arch):
  """The mesh axes that split the width of the weights, or None when they do not divide it."""
  return AXES if arch.width % jax.sharding.get_mesh().size == 0 else None


def optimizer(config):
  """AdamW with warm-up and cosine, clipped by global norm; no decay on norms and biases."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    max(config.steps, config.warmup_steps + 1),
    config.learning_rate * config.final_rate,
  )
  decay = lambda params: jax.tree.map_with_path(
    lambda path, x: (
      path[0].name in ("embed", "head")
      or path[-2].name in ("q", "k", "v", "o", "gate", "up", "down")
      if len(path) > 1
      else False
    ),
    params,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(
      schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decay
    ),
  )


def loss_sum(model, batch, config):
  """(sum of response nll, number of targets) of one packed batch of int32[b,t] arrays."""
  dtype = model.layout.dtype
  whole = lambda w: jax.tree.map(lambda x: reshard(x.astype(dtype), P()), w)
  block = min(config.block, config.length)
  hidden = decoder.forward_packed(
    model,
    batch["tokens"],
    batch["positions"],
    functools.partial(attention.attend_packed, segments=batch["segments"], block=block),
    gather=whole,
    remat=config.remat,
  )
  targets, weights = objectives.shift_targets(batch["tokens"], batch["mask"], batch["segments"])
  head = "embed" if model.arch.tied else "head"
  top = decoder.replace(model)
  setattr(top, head, type(getattr(model, head))(whole(getattr(model, head)[...])))
  return objectives.nll_sum(top, hidden, targets, weights, block=block)


@functools.partial(jax.jit, static_argnames="config")
def start(model, *, config):
  """TrainState of a model that has not been trained; one jit, so that nothing is uncommitted."""
  return TrainState(model, optimizer(config).init(model), jnp.int32(0))


@functools.partial(jax.jit, static_argnames="config", donate_argnums=0)
def train_step(state, batch, *, config):
  """One update from `accumulate` micro-batches: int32[a,b,t] arrays. Returns (state, metrics).

  The gradient is that of the summed nll over the *global* number of target tokens, so micro-
  batches, rows and processes with more targets weigh more, as in one large batch.
  """
  grad = jax.value_and_grad(lambda m, part: loss_sum(m, part, config), has_aux=True)

  def body(carry, part):
    total, count, grads = carry
    (loss, n), g = grad(state.model, part)
    return (total + loss, count + n, jax.tree.map(jnp.add, grads, g)), None

  (total, count), grads = grad(state.model, jax.tree.map(lambda x: x[0], batch))
  if config.accumulate > 1:
    rest = jax.tree.map(lambda x: x[1:], batch)
    (total, count, grads), _ = lax.scan(body, (total, count, grads), rest)
  count = jnp.maximum(count, 1)
  grads = jax.tree.map(lambda g: g / count, grads)
  updates, opt = optimizer(config).update(grads, state.optimizer, state.model)
  norm = optax.global_norm(grads)
  state = TrainState(optax.apply_updates(state.model, updates), opt, state.step + 1)
  return state, {"loss": total / count, "targets": count, "gradient_norm": norm}


def fit(model, source, config, folder, *, title="train"):
  """Trains `model` on `source` for `config.steps` updates and returns it.

  Checkpoints (weights, optimizer, data position) go to `folder`; running it again continues to
  the same result as if it had never stopped. Raises FloatingPointError when the loss is not
  finite, naming the step.
  """
  layout = dataclasses.replace(
    model.layout, batch_axes=AXES, tensor_axis=None, dtype=config.dtype, unroll=config.unroll
  )
  model = decoder.replace(model, layout=layout)
  # What only the host reads must not compile the step again.
  static = dataclasses.replace(
    config, seed=0, save_every=1, log_every=1, start="base", cold_traces=False
  )
  state = start(model, config=static)
  batches = packing.batches(source, rows=config.batch_size, length=config.length, seed=config.seed)
  when, keep = ocp.training.save_decision_policies, ocp.training.preservation_policies
  log = progress.Metrics(folder / "metrics.jsonl")
  line = progress.Progress(title, config.steps)
  with ocp.training.Checkpointer(
    str(folder.absolute()),
    save_decision_policy=when.AnySavePolicy(
      [when.FixedIntervalPolicy(config.save_every), when.PreemptionCheckpointingPolicy()]
    ),
    preservation_policy=keep.LatestN(1),
  ) as saver:
    begin = 0
    if saver.latest is not None:
      abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
      )
      state = saver.load_checkpointables(None, {"state": abstract, "data": batches})["state"]
      begin = saver.latest.step
    pending = None
    for i in range(begin, config.steps):
      state, now = train_step(state, _next(batches, config), config=static)
      _report(
        pending, i, config, log, line
      )  # of the step before: the host never waits for this one
      pending = now
      if jax.default_backend() == "cpu":
        jax.block_until_ready(now)
      saver.save_checkpointables_async(
        i + 1, {"state": state, "data": batches}, force=i + 1 == config.steps
      )
    _report(pending, config.steps, config, log, line, final=True)
  log.close()
  return state.model


def _next(batches, config):
  """The next `accumulate` micro-batches as int32[a,b,t] on the mesh."""
  parts = [next(batches) for _ in range(config.accumulate)]
  return jax.tree.map(lambda *xs: mesh_lib.place(np.stack(xs), P(None, AXES, None)), *parts)


def _report(pending, i, config, log, line, final=False):
  if pending is None or not (final or i % config.log_every == 0):
    return
  row = {k: float(v) for k, v in mesh_lib.host(pending).items()}
  if not all(v == v and abs(v) != float("inf") for v in row.values()):
    raise FloatingPointError(
      f"training step {i}: {row}; lower train.learning_rate or look at the data"
    )
  log.write(step=i, **row)
  line.show(i, f"loss {row['loss']:.3f}", final=final)
