"""Divergences, entropy and nll of tiny models, against sums over the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.models import decoder
from gen_ssd.training import fidelity
from gen_ssd.training import reading
from gen_ssd.training import train
from tests import tiny

VOCAB = 180
PAIRS = [(text[:2], text[2:]) for text in tiny.prompts(9, seed=3) if len(text) > 3]
PAIRS.append(([7, 8], np.random.default_rng(0).integers(6, 180, 90).tolist()))  # several blocks


def model(arch):
  return tiny.stacked(arch, train.layout(arch))


def read(student, other, **changes):
  batch = 4 * jax.sharding.get_mesh().size
  return fidelity.read(student, other, PAIRS, **dict(dict(vocab=VOCAB, batch=batch), **changes))


def directly(net, text):
  """Log-probabilities [len(text), VOCAB] of each next token, of the ids that both models know."""
  ids = jnp.array([text])
  place = jnp.arange(len(text))[None]
  own = reading.reader(net, ids, place, jnp.ones_like(ids), block=len(text))
  logits = np.float64(decoder.logits(own.model, own.hidden)[0, 0, :, :VOCAB])
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def found():
  mesh.start(devices=jax.devices()[:1])
  return read(model(tiny.STUDENT), model(tiny.TEACHER))


def test_figures_are_means_over_the_response_of_sums_over_the_vocabulary(found):
  student, teacher = model(tiny.STUDENT), model(tiny.TEACHER)
  for (prompt, response), figures in zip(PAIRS, found, strict=True):
    p, q = (directly(net, prompt + response)[len(prompt) - 1 : -1] for net in (student, teacher))
    kl = lambda a, b: np.mean(np.sum(np.exp(a) * (a - b), -1))
    wanted = fidelity.Figures(
      nll=-np.mean([row[i] for row, i in zip(p, response)]),
      entropy=-np.mean(np.sum(np.exp(p) * p, -1)),
      forward=kl(q, p),
      reverse=kl(p, q),
    )
    np.testing.assert_allclose(figures, wanted, rtol=1e-4)
    assert min(figures) > 0.1 and abs(figures.forward - figures.reverse) > 1e-3


def test_a_model_does_not_diverge_from_itself_and_may_be_read_alone(found):
  mesh.start(devices=jax.devices()[:1])
  student = model(tiny.STUDENT)
  for other in (student, None):
    for mine, with_teacher in zip(read(student, other), found, strict=True):
      np.testing.assert_allclose((mine.forward, mine.reverse), 0, atol=1e-6)
      np.testing.assert_allclose(mine[:2], with_teacher[:2], rtol=1e-5)


def test_eight_devices_find_the_same(found):
  mesh.start(2)
  assert jax.sharding.get_mesh().size == 8
  np.testing.assert_allclose(read(model(tiny.STUDENT), model(tiny.TEACHER)), found, rtol=1e-4)


def test_no_whole_array_of_logits_is_in_memory():
  mesh.start(devices=jax.devices()[:1])
  nets = model(tiny.STUDENT), model(tiny.TEACHER)
  tokens, length = np.ones((4, 512), np.int32), np.full(4, 512, np.int32)
  vocab = mesh.place(np.int32(VOCAB))
  text = fidelity._figures.lower(*nets, vocab, tokens, length).compile().as_text()
  assert f"[4,{fidelity.BLOCK},{tiny.STUDENT.vocab}]" in text.replace("[4,1,", "[4,")
  for size in (tiny.STUDENT.vocab, tiny.TEACHER.vocab):
    assert f"512,{size}]" not in text
