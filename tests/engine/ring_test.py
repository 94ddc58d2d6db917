"""The ring that a model reads into: order, wrapping, reading again."""

import numpy as np
import pytest

from gen_ssd.collect import writer as writer_lib
from tests import tiny
from tests.engine.step_test import full_nll
from tests.engine.step_test import play
from tests.engine.step_test import reference
from tests.engine.step_test import start
from tests.tiny import PROMPT


def test_the_ring_wraps():
  start()
  engine = play(stagger=True, slots=40, block=8)
  assert engine.texts == reference().texts


def test_reading_a_half_written_trace_again_continues_it():
  """Kill and resume: caches are never saved, a trace is its tokens."""
  want = reference().texts
  start()
  half = play(rounds=2)
  engine = tiny.Engine()
  entries = {7 - i: (half.texts[name], name) for i, name in enumerate(half.names)}
  engine.admit(entries, kept=2)
  for _ in range(3):
    engine.round()
  assert all(engine.texts[n] == want[n] for n in want if len(half.texts[n]) < len(want[n]))


def test_caches_after_rounds_are_those_of_a_fresh_prefill():
  start()
  engine = play(rounds=3)
  fresh = tiny.Engine()
  fresh.admit({i: (engine.texts[n], n) for i, n in enumerate(engine.names)})
  for mine, theirs in (
    (engine.state.teacher, fresh.state.teacher),
    (engine.state.student, fresh.state.student),
  ):
    np.testing.assert_array_equal(mine.length, theirs.length)
    np.testing.assert_array_equal(mine.last, theirs.last)
    for slot in range(8):

      def tokens(p):  # keys and values in the order of admission, oldest first
        held = np.roll(np.asarray(p.position >= 0)[slot], -int(p.cursor))
        k, v = np.asarray(p.kv.k)[:, slot], np.asarray(p.kv.v)[:, slot].swapaxes(-1, -2)
        return [np.roll(x, -int(p.cursor), axis=-1)[..., held] for x in (k, v)]

      order = np.roll(np.asarray(mine.position)[slot], -int(mine.cursor))
      np.testing.assert_array_equal(order[order >= 0], np.arange(mine.length[slot]))
      for a, b in zip(tokens(mine), tokens(theirs)):
        assert a.shape[-1] == mine.length[slot]
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("parallel,devices,parts,each", [(1, 1, 1, 3), (1, 4, 4, 1), (2, 8, 8, 1)])
def test_a_few_texts_at_a_time_are_read_into_their_slots(parallel, devices, parts, each):
  want = reference().texts
  start(parallel, devices)
  engine = play(entries=writer_lib.Entries(8, parts, each))
  assert engine.texts == want
  before = tiny.compiled("admit")
  engine.names = [None] * 8
  engine.admit({5: (tiny.prompts(1)[0], 3)})  # others go on
  position = np.asarray(engine.state.teacher.position)
  assert tiny.compiled("admit") == before
  assert (position[5] >= 0).sum() == len(tiny.prompts(1)[0]) - 1
  assert all((position[i] >= 0).sum() > PROMPT for i in range(8) if i != 5)


def test_entries_lie_where_their_slots_do_and_the_longest_come_first():
  entries = writer_lib.Entries(slots=16, parts=2, each=3)
  length = {i: (7 * i) % 16 for i in range(16) if i != 4}
  groups = entries.groups(length)
  assert [len(places) for places in groups] == [6, 6, 3]
  assert sorted(slot for places in groups for slot in places.values()) == sorted(length)
  for part in range(2):
    own = [[s for entry, s in places.items() if entry // 3 == part] for places in groups]
    assert {s // 8 for slots in own for s in slots} == {part}
    found = [length[s] for slots in own for s in slots]
    assert found == sorted(found, reverse=True)
  assert entries.groups({}) == []


def test_a_chunk_drawn_again_leaves_no_hole():
  """After an unsuitable round the row goes on as if nothing had been in the slots."""
  start()
  engine = tiny.Engine(knob=tiny.knobs(threshold=np.float32(5.3), resamples=np.int32(50)), slots=96)
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  rounds = [engine.round() for _ in range(10)]
  choices = np.stack([r.choice for r in rounds])
  assert (choices == -1).any() and (choices >= 0).any()
  want = full_nll(tiny.STUDENT, engine.texts.values(), tiny.prompts(8))
  for name, nll in enumerate(want):
    np.testing.assert_allclose(engine.nll[name], nll, atol=2e-4)
