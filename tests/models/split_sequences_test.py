"""Attention in sequences that devices share is attention in whole ones, with its gradients."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.models import attention
from gen_ssd.models import split_sequences
from tests import tiny

B, T, H = 4, 32, 8


def attended(n, g, window, spec, wrap=lambda call: call):
  """(output, its gradients) of attention with random arrays that lie on the mesh as `spec` says."""
  rng = np.random.default_rng(n)
  place = lambda x: mesh.place(x, jax.P(*spec, *[None] * (x.ndim - len(spec))))
  draw = lambda *dims: place(rng.normal(size=(B, 1, T, *dims)).astype(np.float32))
  q, k, v, weight = draw(n, g, H), draw(n, H), draw(n, H), draw(n, g, H)
  segments = np.repeat([[1] * 20 + [2] * 9 + [0] * 3], B, 0)
  whole = mesh.place(segments.astype(np.int32), jax.P(spec[0], None))

  @jax.jit
  def found(q, k, v, weight, segments):
    call = wrap(functools.partial(attention.attend_packed, segments=segments, block=8))
    read = lambda *x: call(*x, **({"window": window} if window else {}))
    out, back = jax.vjp(read, q, k, v)
    assert jax.typeof(out).sharding.spec == jax.typeof(q).sharding.spec
    return out, back(weight)

  return mesh.host(found(q, k, v, weight, whole))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("n,g,devices", [(2, 2, 2), (4, 1, 4), (2, 6, 4), (1, 4, 4), (6, 2, 4)])
def test_devices_that_share_sequences_compute_the_same(n, g, devices, window):
  mesh.start(1, jax.devices()[:1])
  want = attended(n, g, window, ("data",))
  mesh.start(devices, jax.devices())
  apart = lambda call: functools.partial(split_sequences.attend, call, "model")
  got = attended(n, g, window, ("data", None, "model"), apart)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
  "heads,groups,devices,able",
  [
    (8, 8, 4, True),
    (2, 6, 4, True),
    (2, 7, 4, False),
    (2, 6, 8, False),
    (6, 2, 4, True),
    (1, 4, 1, True),
  ],
)
def test_which_models_devices_can_share(heads, groups, devices, able):
  arch = dataclasses.replace(tiny.STUDENT, kv_heads=heads, groups=groups)
  assert split_sequences.divides(arch, devices) is able
