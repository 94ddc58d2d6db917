"""Models read packed sequences, with weights that FSDP splits over the devices."""

import functools
import typing

import jax
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import quantization
from gen_ssd.models import split_sequences


class Reader(typing.NamedTuple):
  """A model and its normed hidden states of a batch."""

  model: decoder.Transformer
  hidden: Float[Array, "b 1 t _"]

  @property
  def split(self) -> P:
    """How columns [b,t] lie beside the hidden states."""
    batch, _, sequence, _ = jax.typeof(self.hidden).sharding.spec
    return P(batch, sequence)

  @property
  def shards(self) -> int:
    """Parts of a sequence, each on a device of its own."""
    axis = self.split[1]
    return jax.typeof(self.hidden).sharding.mesh.shape[axis] if axis else 1


def reader(
  model: decoder.Transformer,
  tokens: Int[Array, "b t"],
  positions: Int[Array, "b t"],
  segments: Int[Array, "b t"],
  *,
  block: int,
  remat: bool = False,
) -> Reader:
  """A model, placed as `train.layout` says, and its hidden states of packed sequences.

  Attention reads `block` keys at a time, which divides t. With `remat`, layers are computed again in
  the backward pass. Where the layout has a `sequence_axis`, its devices share the tokens of each
  sequence; the columns that come in are whole on each device.
  """
  layout = model.layout
  attend = functools.partial(
    attention.attend_packed, segments=segments, block=block, implementation=layout.attention
  )
  if layout.sequence_axis:
    attend = functools.partial(split_sequences.attend, attend, layout.sequence_axis)
  own = P(layout.batch_axes, layout.sequence_axis)
  hidden = decoder.forward_packed(
    model,
    reshard(tokens, own),
    reshard(positions, own),
    attend,
    gather=functools.partial(_replicated, dtype=layout.dtype),
    remat=remat,
  )
  return Reader(_with_replicated_head(model), hidden)


def _replicated(weights, dtype):
  """Weights cast to `dtype`, unless they are int8, and gathered from all devices."""
  return jax.tree.map(lambda x: reshard(x, P()), quantization.cast(weights, dtype))


def _with_replicated_head(model):
  """The model with the weights of its output layer replicated, which is the embedding if tied."""
  name = "embed" if model.arch.tied else "head"
  head = getattr(model, name)
  model = decoder.replace(model)
  setattr(model, name, type(head)(_replicated(head[...], model.layout.dtype)))
  return model
