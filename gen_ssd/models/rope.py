"""Rotary position embeddings: frequencies of every supported type, and the rotation."""

import math

import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Int
import numpy as np

from gen_ssd.arrays import Array
from gen_ssd.models.architecture import Architecture


def frequencies(arch: Architecture) -> tuple[np.ndarray, float]:
  """Inverse frequencies f32[h/2] and the factor on cos and sin, for the config's rope type.

  `default`, `linear`, `llama3` (Llama 3.1) and `yarn` (arXiv 2309.00071), as transformers 5
  computes them. Raises ValueError for another type.
  """
  h, theta = arch.head, arch.theta
  kind, p = arch.rope[0], dict(arch.rope[1:])
  freqs = theta ** -(np.arange(0, h, 2, dtype=np.float64) / h)
  if kind == "default":
    return freqs.astype(np.float32), 1.0
  if kind == "linear":
    return (freqs / p["factor"]).astype(np.float32), 1.0
  if kind == "llama3":
    old, low, high = (
      p["original_max_position_embeddings"],
      p["low_freq_factor"],
      p["high_freq_factor"],
    )
    turns = old * freqs / (2 * np.pi)  # full turns inside the original length
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freqs * (smooth + (1 - smooth) / p["factor"])).astype(np.float32), 1.0
  if kind == "yarn":
    factor, old = p["factor"], p["original_max_position_embeddings"]
    magnitude = lambda m: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0
    scale = p.get("attention_factor")
    if scale is None:
      if p.get("mscale") and p.get("mscale_all_dim"):
        scale = magnitude(p["mscale"]) / magnitude(p["mscale_all_dim"])
      else:
        scale = magnitude(1.0)
    where = lambda turns: h * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = where(p.get("beta_fast") or 32.0), where(p.get("beta_slow") or 1.0)
    if p.get("truncate", True):
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, h - 1)
    ramp = np.clip((np.arange(h // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return (freqs * (1 - ramp) + freqs / factor * ramp).astype(np.float32), float(scale)
  raise ValueError(f"rope type {kind!r} is not supported: default, linear, llama3 or yarn")


def angles(
  arch: Architecture, positions: Int[Array, "b k t"]
) -> tuple[Float[Array, "b k t r"], Float[Array, "b k t r"]]:
  """cos and sin, f32, of the h/2 angles of every position."""
  freqs, scale = frequencies(arch)
  turned = positions.astype(jnp.float32)[..., None] * freqs
  return jnp.cos(turned) * scale, jnp.sin(turned) * scale


def rotate(
  x: Float[Array, "b k t *heads h"], cos: Float[Array, "b k t r"], sin: Float[Array, "b k t r"]
) -> Float[Array, "b k t *heads h"]:
  """Rotary embedding of x, in halves as Hugging Face has it (RoFormer, arXiv 2104.09864)."""
  wide = (*cos.shape[:3], *(1,) * (x.ndim - 4), cos.shape[3])
  cos, sin = cos.reshape(wide), sin.reshape(wide)
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
