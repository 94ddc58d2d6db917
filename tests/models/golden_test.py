"""The engine against torch: the goldens' text is decoded through the ring and scored in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.engine import sampling
from gen_ssd.engine import step as step_lib
from gen_ssd.models import decoder
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from tests import tiny
from tests.models.decoder_test import golden

PROMPTS = np.array([10, 17, 3, 24])  # rows are admitted one round after another


@pytest.fixture
def forced(monkeypatch):
  """`forced(tokens, c)`: rows draw these, from their PROMPTS on; nll stays the model's."""

  def force(tokens, size):

    def uniforms(keys, chunk, resample, k, c):
      # Slot 0 is the scorer's noise; the others carry the token to draw.
      at = (PROMPTS + chunk * size)[:, None] + jnp.arange(-1, c - 1)
      ids = jnp.asarray(tokens).at[at].get(mode="clip", out_sharding=jax.P("data", None))
      return jnp.broadcast_to(ids[:, None, :, None].astype(jnp.float32), (*keys.shape, k, c, 2))

    def draw(u, logits, filters, layout):
      token = u[..., 0].astype(jnp.int32)
      hit = jnp.arange(logits.shape[-1]) == token[..., None]
      return token, -jnp.sum(jnp.where(hit, jax.nn.log_softmax(logits), 0), -1)

    monkeypatch.setattr(sampling, "uniforms", uniforms)
    monkeypatch.setattr(sampling, "draw", draw)
    # A fresh program: the one that other tests compiled draws at random, and must go on to.
    monkeypatch.setattr(
      step_lib,
      "select_step",
      jax.jit(
        step_lib.select_step.__wrapped__,
        donate_argnums=2,
        static_argnames="round",
      ),
    )

  return force


CASES = [
  ("llama", {}),
  ("llama_linear", {}),
  ("mistral", {}),
  ("olmo2", {}),
  ("qwen2_yarn", {}),
  ("qwen3_yarn", {}),
  ("r1_distill_qwen", dict(unroll=True)),
  ("gemma3", dict(c=8, slots=64)),
  ("gemma3_nested", dict(block=12)),
  ("gemma3", dict(unroll=True, block=12, devices=4)),
  ("r1_distill_qwen", dict(unroll=True, outputs_first=True)),
  ("gemma3", dict(unroll=True, outputs_first=True, devices=4)),
]


@pytest.mark.parametrize("name,options", CASES, ids=[f"{n}-{'-'.join(o)}" for n, o in CASES])
def test_decoding_through_the_ring_and_chunk_scoring_are_torchs(name, options, forced, tmp_path):
  """One model is teacher and student: its decoding and its scoring are both held to the golden."""
  count = options.get("devices", 1)
  mesh.start(2 if count > 1 else 1, devices=jax.devices()[:count])
  folder, tokens, want = golden(name, tmp_path)
  c = options.get("c", 4)
  forced(tokens, c)
  form = {name: options.get(name, False) for name in ("unroll", "outputs_first")}
  load = lambda **axes: decoder.unstacked(weights.load(folder, Layout(**form, **axes)))
  vocab = want.shape[1]
  engine = tiny.Engine(
    teacher=load(),
    student=load(batch_axes=("data", "model"), tensor_axis=None),
    b=4,
    k=2,
    c=c,
    slots=options.get("slots", 60),
    block=options.get("block"),
    knob=tiny.knobs(
      vocab=np.int32(vocab), token_kind=np.zeros(vocab, np.int8), step_end=np.zeros(vocab, bool)
    ),
  )
  logp = np.asarray(jax.nn.log_softmax(want))
  nll = -logp[np.arange(len(tokens) - 1), tokens[1:]]  # of tokens[1:]
  for turn in range(32 // c):
    if turn < len(PROMPTS):
      engine.admit({turn: (tokens[: PROMPTS[turn]].tolist(), turn)})
    report = engine.round()
    for row in range(min(turn + 1, len(PROMPTS))):
      start = len(engine.texts[row]) - c
      assert engine.texts[row][start:] == tokens[start : start + c].tolist()
      for found in (report.teacher_nll[row], report.student_nll[row]):
        np.testing.assert_allclose(
          found, np.tile(nll[start - 1 : start + c - 1], (2, 1)), atol=1e-4
        )
