"""The invariants of the compiled step. Each fails when its property is broken.

Long, because all invariants of one program stand together.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.engine import sampling
from gen_ssd.engine import scores
from gen_ssd.engine import scoring
from gen_ssd.engine import selectors
from gen_ssd.engine import state as state_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from gen_ssd.training import objectives
from tests import tiny


def start(parallel=1, devices=1):
  mesh.start(parallel, jax.devices()[:devices])


def play(rounds=5, stagger=False, n=8, wanted=None, **kwargs):
  """Texts and nll after `rounds` rounds a trace; `stagger` admits at different times and rows."""
  engine = tiny.Engine(**kwargs)
  todo = [(ids, name) for name, ids in enumerate(tiny.prompts(n))]
  todo = [t for t in todo if wanted is None or t[1] in wanted]
  if not stagger:
    engine.admit(dict(enumerate(todo)))
    for _ in range(rounds):
      engine.round()
    return engine
  todo, age = todo[::-1], {}
  for turn in range(60):
    free = [i for i in range(engine.b) if engine.names[i] is None][::-1]
    new = {i: todo.pop() for i in free[: 1 + turn % 2] if todo}
    if new:
      engine.admit(new)
      age |= dict.fromkeys((name for _, name in new.values()), 0)
    if not any(n is not None for n in engine.names):
      return engine
    engine.round()
    for i, name in enumerate(engine.names):
      if name is not None:
        age[name] += 1
        if age[name] == rounds:
          engine.names[i] = None  # harvested; the row is overwritten by a later admission
  raise AssertionError("traces left over")


@functools.cache
def reference():
  start()
  return play()


@jax.jit
def forced_nll(net, tokens, mask, segments):
  """Teacher-forced nll f32[b,t] of whole texts, from the training forward."""
  b, t = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(t), (b, t))
  hidden = decoder.forward_packed(
    net, tokens, positions, lambda q, k, v: attention.attend_packed(q, k, v, segments, block=t)
  )
  targets, weights = objectives.shift_targets(tokens, mask, segments)
  return objectives.token_nll(decoder.logits(net, hidden)[:, 0], targets) * weights


def full_nll(arch, texts, prompts):
  """Nll of every token after the prompt, without any cache, for a tiny model."""
  net = tiny.build(arch, Layout(batch_axes=None, tensor_axis=None))
  found = []
  for text, prompt in zip(texts, prompts):
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(text)] = text
    live = (np.arange(64) < len(text)).astype(np.int32)[None]
    mask = live * (np.arange(64) >= len(prompt))
    nll = np.asarray(forced_nll(net, *map(mesh.place, (tokens, mask.astype(np.int32), live))))[0]
    found.append(nll[len(prompt) - 1 : len(text) - 1])
  return found


def test_cached_chunk_nll_is_the_teacher_forced_nll_of_the_whole_text():
  start()
  engine = reference()
  want = full_nll(tiny.STUDENT, engine.texts.values(), tiny.prompts(8))
  for name, nll in enumerate(want):
    np.testing.assert_allclose(engine.nll[name], nll, atol=2e-4)


def test_teacher_log_probs_are_of_the_unfiltered_distribution_at_temperature_one():
  start()
  engine = tiny.Engine(
    k=1,
    student=None,
    knob=tiny.knobs(temperature=np.float32(0.7), top_k=np.int32(5), vocab=np.int32(192)),
  )
  engine.admit({0: (tiny.prompts(1)[0], 0)})
  got = np.concatenate(
    [r.teacher_nll[0, 0, : r.count[0, 0]] for r in (engine.round() for _ in range(4))]
  )
  want = full_nll(tiny.TEACHER, [engine.texts[0]], tiny.prompts(1))[0]
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("parallel,devices,unroll", [(2, 4, False), (2, 8, False), (2, 4, True)])
def test_same_tokens_on_every_mesh(parallel, devices, unroll):
  want = reference().texts
  start(parallel, devices)
  before = tiny.compiled("select_step"), tiny.compiled("admit")
  engine = play(unroll=unroll)
  assert engine.texts == want
  assert (tiny.compiled("select_step"), tiny.compiled("admit")) == (before[0] + 1, before[1] + 1)


def test_a_student_that_is_split_like_the_teacher_chooses_the_same_tokens():
  want = reference()
  start(2, 4)
  student = tiny.build(tiny.STUDENT, tiny.SHARED)
  engine = play(student=student)
  assert engine.texts == want.texts
  for name, nll in want.nll.items():
    np.testing.assert_allclose(engine.nll[name], nll, atol=1e-5)
  wide = [x for x in jax.tree.leaves(student) if x.ndim == 3 and x.size > 500]  # matrices of layers
  assert wide and all(2 * x.addressable_data(0).size == x.size for x in wide)


def test_limits_of_teacher_likelihood_and_entropy_are_the_same_on_every_mesh():
  found = []
  for parallel, devices in ((1, 1), (2, 8)):
    start(parallel, devices)
    knob = tiny.knobs(teacher_share=np.float32(0.5), branch_entropy=np.float32(4))
    found.append(play(knob=knob).texts)
  assert found[0] == found[1] != reference().texts


@pytest.mark.parametrize(
  "options",
  [dict(unroll=True), dict(block=8), dict(slots=64, block=16), dict(unroll=True, block=12)],
)
def test_layers_unrolled_and_prefix_in_blocks_change_nothing(options):
  want = reference().texts
  start()
  assert play(**options).texts == want


@pytest.mark.parametrize("tile,unroll,rows", [(1, True, 1), (2, False, 1), (4, True, 96)])
def test_scoring_in_tiles_of_tokens_changes_nothing(monkeypatch, tile, unroll, rows):
  want = reference()
  start()
  slots = 64 + 4 * tile  # not compiled by another test
  few = 1 if rows > 1 else tile  # so that the rows of products decide
  monkeypatch.setattr(scoring, "ATTENTION_SCORES", {unroll: few * 8 * 3 * 2 * slots})
  monkeypatch.setattr(scoring, "ROWS", {unroll: rows})
  spec = Spec(tiny.STUDENT, dataclasses.replace(tiny.ALONE, unroll=unroll))
  assert scoring.tile_size(spec, (8, 3, 4), slots, slots) == tile
  engine = play(slots=slots, unroll=unroll)
  assert engine.texts == want.texts
  for name, nll in want.nll.items():
    np.testing.assert_allclose(engine.nll[name], nll, atol=1e-5)


def test_the_student_reads_no_further_than_the_longest_candidate(monkeypatch):
  read, statistics = [], scoring.scores_lib.token_statistics

  def counted(model, hidden, targets):
    jax.debug.callback(lambda n: read.append(int(n)), jnp.int32(targets.shape[2]))
    return statistics(model, hidden, targets)

  start()
  slots = 80  # not compiled by another test
  monkeypatch.setattr(scoring, "ATTENTION_SCORES", {False: 1 * 8 * 3 * 2 * slots})
  monkeypatch.setattr(scoring.scores_lib, "token_statistics", counted)
  kind = np.full(tiny.TEACHER.vocab, state_lib.DELIMITER, np.int8)
  engine = tiny.Engine(slots=slots, knob=tiny.knobs(token_kind=kind))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  report = engine.round()
  jax.effects_barrier()
  assert report.count.max() == 1 and read == [1]  # and not the 4 tokens of a chunk
  engine.knob = tiny.knobs()
  report = engine.round()
  jax.effects_barrier()
  assert len(read) == 1 + report.count.max() == 5


def test_same_tokens_in_any_row_in_any_company_at_any_time():
  want = reference().texts
  start()
  assert play(stagger=True).texts == want
  alone = play(wanted={3}).texts
  assert alone[3] == want[3]


def test_one_candidate_is_plain_teacher_sampling():
  """The token at each place is the inverse-CDF draw from the teacher's full forward."""
  start()
  engine = tiny.Engine(k=1, knob=tiny.knobs(vocab=np.int32(192)))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  plain = tiny.Engine(k=1, student=None, knob=tiny.knobs(vocab=np.int32(192)))
  plain.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  for _ in range(4):
    engine.round()
    plain.round()
  assert engine.texts == plain.texts
  net = tiny.build(tiny.TEACHER, Layout(batch_axes=None, tensor_axis=None))
  for name, prompt in enumerate(tiny.prompts(8)):
    text, drawn = engine.texts[name], engine.texts[name][len(prompt) :]
    p = np.asarray(full_probabilities(net, text), np.float64)[len(prompt) - 1 : len(text) - 1]
    key = sampling.trace_key(0, f"{name:08x}", 0)[None]
    chunks = [  # the first pair of uniforms of a chunk is the scorer's and the selector's
      sampling.uniforms(key, jnp.int32([i]), jnp.int32([0]), 1, 5)[0, 0, 1:] for i in range(4)
    ]
    want = [by_hand(*u, row) for u, row in zip(np.concatenate(chunks), p)]
    assert drawn == want[: len(drawn)] and len(drawn) > 4


def full_probabilities(net, text):
  """The distributions [t,v] behind each token of a text, from one forward without a cache."""
  tokens = np.zeros((1, 64), np.int32)
  tokens[0, : len(text)] = text
  live = jnp.ones((1, 64), jnp.int32)
  attend = lambda q, k, v: attention.attend_packed(q, k, v, live, block=64)
  hidden = decoder.forward_packed(net, jnp.array(tokens), jnp.arange(64)[None], attend)
  return jax.nn.softmax(decoder.logits(net, hidden)[0, 0], -1)


def by_hand(first, second, p):
  """The id that two uniforms draw from p [v]: a block of 128 ids, then an id inside it."""
  blocks = np.pad(p, (0, -len(p) % 128)).reshape(-1, 128)
  mass = np.cumsum(blocks.sum(-1))
  block = int(np.argmax(mass > first * mass[-1]))
  inside = np.cumsum(blocks[block])
  return 128 * block + int(np.argmax(inside > second * inside[-1]))


def test_the_first_of_k_candidates_does_not_depend_on_k():
  start()
  found = []
  for k in (1, 3, 5):
    engine = tiny.Engine(k=k)
    engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
    found.append(engine.round().tokens[:, 0])
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_array_equal(found[0], found[2])


def test_random_choice_has_the_token_marginals_of_one_candidate():
  """Chi-square on the first kept token over many traces; perplexity's choice must not pass."""
  start()
  prompt = tiny.prompts(1)[0]
  b, draws, edges = 64, 12, None
  counts = {}
  for label, k, scorer in (
    ("one", 1, scores.perplexity),
    ("random", 3, scores.random),
    ("perplexity", 3, scores.perplexity),
  ):
    tokens = []
    for turn in range(draws):
      engine = tiny.Engine(b=b, k=k, scorer=scorer)
      base = turn * b + (1 << 20) * (label != "one")  # other traces: independent samples
      engine.admit({i: (prompt, base + i) for i in range(b)})
      report = engine.round()
      tokens += [report.tokens[i, report.choice[i], 0] for i in range(b)]
    if edges is None:
      edges = np.quantile(tokens, np.linspace(0, 1, 9)[1:-1])
    counts[label] = np.bincount(np.searchsorted(edges, tokens), minlength=8)
  chi = lambda a, b: np.sum((a - b) ** 2 / np.maximum(a + b, 1))
  assert chi(counts["one"], counts["random"]) < 24.3  # 99.9 % of chi-square, 7 degrees
  assert chi(counts["one"], counts["perplexity"]) > 24.3


def test_one_chunk_of_the_whole_trace_is_post_hoc_best_of_k():
  start()
  k, length = 4, 16
  engine = tiny.Engine(k=k, c=length, slots=48, room=length)
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  report = engine.round()
  for i, prompt in enumerate(tiny.prompts(8)):
    traces = [prompt + report.tokens[i, j, : report.count[i, j]].tolist() for j in range(k)]
    nll = [x.mean() for x in full_nll(tiny.STUDENT, traces, [prompt] * k)]
    np.testing.assert_allclose(report.score[i], nll, atol=1e-4)
    assert report.choice[i] == np.argmin(nll)
  assert set(report.status) <= {state_lib.ENDED, state_lib.LENGTH}


def chunks_by_hand(prompt, ids, stop):
  """{chunk: (p_T, p_S)} of all chunks of at most 2 of the first `ids` ids; `stop` ends a chunk."""
  chunks = [(a, b) for a in range(ids) if a != stop for b in range(ids)]
  teacher = tiny.build(tiny.TEACHER, Layout(batch_axes=None, tensor_axis=None))
  found = {(stop,): None, **dict.fromkeys(chunks)}
  for chunk in found:
    p = np.asarray(full_probabilities(teacher, [*prompt, *chunk]), np.float64)[:, :ids]
    p = (p / p.sum(1, keepdims=True))[len(prompt) - 1 :]
    nll = full_nll(tiny.STUDENT, [[*prompt, *chunk]], [prompt])[0]
    found[chunk] = np.prod([p[t, x] for t, x in enumerate(chunk)]), np.exp(-np.sum(nll))
  return found


def test_softmin_over_sums_is_the_tilt_of_the_teacher_by_the_student():
  """With many candidates a kept chunk has p_T p_S^beta / Z; the mean, or another beta, has not."""
  start()
  prompt, ids, beta, b, turns = tiny.prompts(1)[0], 4, 0.5, 64, 16
  by_hand = chunks_by_hand(prompt, ids, stop=0)
  p, q = map(np.array, zip(*by_hand.values()))
  assert abs(p.sum() - 1) < 1e-5
  tilt = lambda beta: p * q**beta / np.sum(p * q**beta)
  ends = np.where(np.arange(192) == 0, state_lib.DELIMITER, state_lib.CONTINUES).astype(np.int8)

  def counts(scorer):
    place, found = {chunk: i for i, chunk in enumerate(by_hand)}, np.zeros(len(by_hand))
    knob = tiny.knobs(vocab=np.int32(ids), beta=np.float32(beta), token_kind=ends)
    for turn in range(turns):
      engine = tiny.Engine(
        b=b, k=64, c=2, scorer=scorer, selector=selectors.softmin, knob=knob, slots=16
      )
      engine.admit({i: (prompt, turn * b + i) for i in range(b)})
      report = engine.round()
      for i in range(b):
        n = report.count[i, report.choice[i]]
        found[place[tuple(report.tokens[i, report.choice[i], :n].tolist())]] += 1
    return found

  def chi(found, want):  # over cells that hold at least five
    want = want * found.sum()
    cells = want >= 5
    assert cells.sum() > 3
    return np.sum((found - want)[cells] ** 2 / want[cells]) / chi_limit(cells.sum() - 1)

  found = counts(scores.perplexity_sum)
  assert chi(found, tilt(beta)) < 1
  assert min(chi(found, tilt(other)) for other in (0, beta / 2, beta * 1.5)) > 1
  assert chi(counts(scores.perplexity), tilt(beta)) > 1


def chi_limit(degrees):
  """About the 99.9th percentile of chi-square: Wilson and Hilferty's cube."""
  return degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_the_student_chooses_among_what_the_teacher_finds_likely():
  start()
  engine = tiny.Engine(k=5, knob=tiny.knobs(teacher_share=np.float32(0.5)))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  others = 0
  for _ in range(3):
    report = engine.round()
    live = np.arange(4) < report.count[..., None]
    teacher = np.where(live, report.teacher_nll, 0).sum(-1) / live.sum(-1)
    assert report.valid.all() and (report.choice >= 0).all()
    better = teacher <= np.median(teacher, 1, keepdims=True)
    assert (better.sum(1) == 3).all()
    assert (report.choice == np.where(better, report.score, np.inf).argmin(1)).all()
    others += (report.choice != report.score.argmin(1)).sum()
  assert others > 3


def test_candidates_are_drawn_where_the_teacher_hesitates():
  """By hand: one candidate goes on to the next entropy peak, and k start there."""
  start()
  net = tiny.build(tiny.TEACHER, Layout(batch_axes=None, tensor_axis=None))
  ends = np.where(np.arange(192) < 60, state_lib.EOS, state_lib.CONTINUES).astype(np.int8)
  prompts, wide = tiny.prompts(16), dict(vocab=np.int32(192), token_kind=ends)

  def entropies(text):
    p = np.asarray(full_probabilities(net, text), np.float64)[: len(text)]
    return -np.sum(p * np.log(p), -1)

  every, one = (
    tiny.Engine(b=16, knob=tiny.knobs(**wide)),
    tiny.Engine(b=16, k=1, knob=tiny.knobs(**wide)),
  )
  for engine in (every, one):
    engine.admit({i: (ids, i) for i, ids in enumerate(prompts)})
  least = np.float32(np.median([entropies(ids)[-1] for ids in prompts]))
  engine = tiny.Engine(b=16, knob=tiny.knobs(**wide, branch_entropy=least))
  engine.admit({i: (ids, i) for i, ids in enumerate(prompts)})
  cut = ended = 0
  for turn in range(3):
    before = {i: len(engine.texts[i]) for i in range(16)}
    running = np.asarray(engine.state.status) == state_lib.RUNNING
    report = engine.round()
    plain, single = (every.round(), one.round()) if not turn else (None, None)
    for i in np.flatnonzero(running):
      n = report.count[i, 0]
      text = engine.texts[i][: before[i]] + report.tokens[i, 0, :n].tolist()
      found = entropies(text)[before[i] - 1 :]  # before each token, and behind the last
      assert np.abs(found - least).min() > 1e-5
      if found[0] >= least:
        assert (report.count[i] > 0).all()
        assert plain is None or (report.tokens[i] == plain.tokens[i]).all()
        continue
      assert report.count[i].tolist() == [n, 0, 0] and report.choice[i] == 0
      assert (found[:-1] < least).all()
      assert report.status[i] == (state_lib.ENDED if text[-1] < 60 else state_lib.RUNNING)
      ended += text[-1] < 60
      if n < 4 and text[-1] >= 60:
        assert found[-1] >= least
        cut += 1
      assert single is None or (report.tokens[i, 0, :n] == single.tokens[i, 0, :n]).all()
  assert cut > 1 and ended > 1


def test_one_candidate_does_not_end_at_entropy_peaks():
  start()
  found = [play(k=1, knob=tiny.knobs(branch_entropy=np.float32(x))).texts for x in (0, 3)]
  assert found[0] == found[1]


def test_nothing_after_eos_is_scored_kept_or_counted():
  start()
  loud = lambda name, x: x * 0 if name == "head" else x  # uniform over few ids: EOS comes soon
  ends = np.zeros(192, np.int8)
  ends[:40] = state_lib.EOS
  engine = tiny.Engine(
    teacher=tiny.build(tiny.TEACHER, change=loud), knob=tiny.knobs(token_kind=ends)
  )
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  reports = [engine.round() for _ in range(5)]
  stopped = 0
  for report in reports:
    for i in range(8):
      for k in range(3):
        n = report.count[i, k]
        assert (report.tokens[i, k, n:] == 0).all() and (report.student_nll[i, k, n:] == 0).all()
        assert (report.teacher_nll[i, k, n:] == 0).all()
        assert (report.tokens[i, k, : max(n - 1, 0)] >= 40).all()
  for name, text in engine.texts.items():
    new = text[len(tiny.prompts(8)[name]) :]
    assert all(t >= 40 for t in new[:-1])
    stopped += new[-1] < 40
  assert stopped >= 6
  for before, after in zip(reports, reports[1:]):  # a slot that has stopped writes nothing more
    stopped = before.status != state_lib.RUNNING
    assert (after.count[stopped] == 0).all() and (after.choice[stopped] == -1).all()
    np.testing.assert_array_equal(after.status[stopped], before.status[stopped])
  assert (reports[-2].status == state_lib.ENDED).any()


def test_early_exit_when_every_branch_ended():
  start()
  ends = np.full(192, state_lib.EOS, np.int8)
  engine = tiny.Engine(knob=tiny.knobs(token_kind=ends))
  engine.admit({0: (tiny.prompts(1)[0], 0)})
  assert engine.round().decoded == 1


def test_a_delimiter_ends_the_candidate_and_not_the_trace():
  start()
  ends = np.zeros(192, np.int8)
  ends[:90] = state_lib.DELIMITER
  engine = tiny.Engine(knob=tiny.knobs(token_kind=ends))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  report = engine.round()
  for i in range(8):
    for k in range(3):
      n = report.count[i, k]
      ended = report.tokens[i, k, n - 1] < 90
      assert ended or n == 4
      assert (report.tokens[i, k, : n - 1] >= 90).all()
  assert (report.status == state_lib.RUNNING).all() and (report.count < 4).any()
  engine.round()
  want = full_nll(tiny.STUDENT, engine.texts.values(), tiny.prompts(8))
  for name, nll in enumerate(want):  # the unused slots of short chunks are invisible
    np.testing.assert_allclose(engine.nll[name], nll, atol=1e-4)


def test_length_limit_is_exact():
  start()
  engine = tiny.Engine(room=6)
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  engine.round()
  report = engine.round()
  for name, text in engine.texts.items():
    assert len(text) - len(tiny.prompts(8)[name]) <= 6
  assert (
    set(report.status) <= {state_lib.LENGTH, state_lib.ENDED}
    and (report.status == state_lib.LENGTH).any()
  )


def test_a_full_slot_is_reported_before_the_ring_overwrites_its_own_tokens():
  start()
  ids, slots, c = tiny.prompts(8), 28, 4
  engine = tiny.Engine(slots=slots, student=None, k=1)
  engine.admit({i: (p, i) for i, p in enumerate(ids)})
  age = np.array([-(-(len(p) - 1) // c) * c for p in ids])  # its own, not that of the longest
  for _ in range((slots - max(age)) // c):
    report, age = engine.round(), age + c
    running = report.status == state_lib.RUNNING
    np.testing.assert_array_equal(report.full, running & (age + c > slots))
  assert report.full.any() and not report.full[running].all()
  kept = (engine.state.teacher.position >= 0).sum(1)
  np.testing.assert_array_equal(kept, engine.state.teacher.length)  # nothing is lost yet


def test_unsuitable_candidates_are_drawn_again_and_then_pruned():
  start()
  engine = tiny.Engine(knob=tiny.knobs(threshold=np.float32(0.01), resamples=np.int32(2)))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  reports = [engine.round() for _ in range(3)]
  assert all((r.choice == -1).all() for r in reports)
  assert (reports[0].status == state_lib.RUNNING).all() and (
    reports[1].status == state_lib.RUNNING
  ).all()
  assert (reports[2].status == state_lib.PRUNED).all()
  assert (reports[0].tokens != reports[1].tokens).any()  # other keys
  assert all(engine.texts[n] == ids for n, ids in enumerate(tiny.prompts(8)))


def test_different_templates_keep_their_own_lengths():
  start()
  other = lambda ids: [7, 8, 9, *ids]
  engine = tiny.Engine()
  engine.admit(
    {i: (ids, i) for i, ids in enumerate(tiny.prompts(8)) if len(ids) <= 8}, student=other
  )
  for _ in range(4):
    engine.round()
  names = list(engine.texts)
  prompts = [tiny.prompts(8)[n] for n in names]
  texts = [other(engine.texts[n]) for n in names]
  want = full_nll(tiny.STUDENT, texts, [other(p) for p in prompts])
  for name, nll in zip(names, want):
    np.testing.assert_allclose(engine.nll[name], nll, atol=2e-4)


def test_ids_beyond_the_shared_vocabulary_are_never_drawn():
  start()
  engine = tiny.Engine(knob=tiny.knobs(vocab=np.int32(20)))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  assert max(engine.round().tokens.max() for _ in range(4)) < 20


def test_numbers_that_are_not_finite_are_reported():
  start()
  broken = lambda name, x: (
    np.where(np.arange(x.shape[-1]) == 3, np.nan, x).astype(np.float32) if name == "down" else x
  )
  for options in (
    dict(teacher=tiny.build(tiny.TEACHER, change=broken)),
    dict(student=tiny.build(tiny.STUDENT, change=broken)),
  ):
    engine = tiny.Engine(**options)
    engine.admit({0: (tiny.prompts(1)[0], 0)})
    report = engine.round()
    assert report.not_finite[0] and not report.not_finite[1:].any()


def test_a_context_that_holds_everything_changes_nothing():
  start()
  far = tiny.Engine(short_context=True, knob=tiny.knobs(context=np.int32(1000)))
  plain = tiny.Engine()
  for engine in (far, plain):
    engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  for _ in range(3):
    a, b = far.round(), plain.round()
    np.testing.assert_allclose(a.score, b.score, atol=1e-5)
  assert far.texts == plain.texts


def test_local_scores_are_those_of_the_prompt_and_the_newest_tokens():
  """By hand in a one-layer student, where it is exact; all else of the student stays whole."""
  start()
  shape = dataclasses.replace(tiny.STUDENT, layers=1)
  engine = tiny.Engine(
    short_context=True, knob=tiny.knobs(context=np.int32(4)), student=tiny.build(shape)
  )
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  for _ in range(3):
    before = {name: list(text) for name, text in engine.texts.items()}
    report = engine.round()
  net, differ = tiny.build(shape, Layout(batch_axes=None, tensor_axis=None)), 0
  for i, prompt in enumerate(tiny.prompts(8)):
    text, n = before[i] + report.tokens[i, 1, : report.count[i, 1]].tolist(), len(before[i])
    at = np.arange(len(text))
    far = (at[None] >= len(prompt)) & (at[None] < n - 4) & (at[:, None] >= n - 1)

    def attend(q, k, v):
      s = jnp.einsum("bktngh,bksnh->bkngts", q, k)
      s = jnp.where((at[None] <= at[:, None]) & ~far, s * q.shape[-1] ** -0.5, -1e30)
      return jnp.einsum("bkngts,bksnh->bktngh", jax.nn.softmax(s, -1), v)

    hidden = decoder.forward_packed(net, mesh.place(np.int32([text])), mesh.place(at[None]), attend)
    nll = objectives.token_nll(decoder.logits(net, hidden)[0, 0, :-1], jnp.array(text[1:]))
    np.testing.assert_allclose(report.score[i, 1], np.asarray(nll)[n - 1 :].mean(), atol=2e-4)
    differ += abs(report.score[i, 1] - report.student_nll[i, 1, : report.count[i, 1]].mean()) > 1e-3
  assert differ > 4
  want = full_nll(shape, engine.texts.values(), tiny.prompts(8))
  for name, nll in enumerate(want):
    np.testing.assert_allclose(engine.nll[name], nll, atol=2e-4)


def test_a_running_mean_prunes_and_counts_kept_chunks_only():
  start()
  engine = tiny.Engine(knob=tiny.knobs(running_margin=np.float32(0.02)))
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  kept, pruned = {i: [] for i in range(8)}, set()
  for _ in range(5):
    report = engine.round()
    for i in {*range(8)} - pruned:
      best = report.score[i].min()
      fits = not kept[i] or best <= 1.02 * np.float32(np.mean(kept[i]))
      assert (report.choice[i] >= 0) == fits
      kept[i] += [best] * bool(fits)
      if not fits:
        pruned.add(i)
        assert report.status[i] == state_lib.PRUNED
      np.testing.assert_allclose(report.score_sum[i], sum(kept[i]), rtol=1e-6)
  assert 0 < len(pruned) and any(len(x) == 5 or len(x) > 1 for x in kept.values())


def test_after_the_closing_token_the_first_candidate_is_kept_as_it_is():
  prompts = tiny.prompts(8)
  closing = np.int32(reference().texts[0][len(prompts[0]) + 2])
  start()
  engine, alone = tiny.Engine(knob=tiny.knobs(closing=closing)), tiny.Engine(k=1)
  engine.admit({i: (ids, i) for i, ids in enumerate(prompts)})
  report = engine.round()
  assert report.valid.any(1).all() and (report.count > 0).all()
  free = [closing in engine.texts[i][len(ids) :] for i, ids in enumerate(prompts)]
  assert free[0] and not all(free)
  alone.admit({i: (engine.texts[i], i) for i in range(8)}, kept=1)
  engine.knob = tiny.knobs(closing=closing, threshold=np.float32(0.01))  # suits nobody
  for _ in range(3):
    running = np.asarray(engine.state.status) == state_lib.RUNNING
    report = engine.round()
    alone.round()
    for i in np.flatnonzero(running):
      assert not report.valid[i].any() or not free[i]
      assert report.choice[i] == (0 if free[i] else -1)
      assert (report.count[i] > 0).tolist() == [True, not free[i], not free[i]]
      assert free[i] or report.status[i] == state_lib.PRUNED
  assert all(engine.texts[i] == alone.texts[i] for i in range(8) if free[i])


def test_one_program_whatever_the_knobs():
  start()
  engine = tiny.Engine(slots=44)
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  before = tiny.compiled("select_step"), tiny.compiled("admit")
  for change in (
    {},
    dict(temperature=np.float32(0.3)),
    dict(top_p=np.float32(0.8)),
    dict(top_k=np.int32(9)),
    dict(threshold=np.float32(6)),
    dict(margin=np.float32(0.1)),
    dict(resamples=np.int32(3)),
    dict(running_margin=np.float32(0.2)),
    dict(step_end=np.arange(192) % 9 == 0),
    dict(closing=np.int32(7)),
    dict(teacher_share=np.float32(0.5)),
    dict(branch_entropy=np.float32(3)),
  ):
    engine.knob = tiny.knobs(**change)
    engine.round()
  engine.admit({3: (tiny.prompts(1)[0], 9)})
  assert (tiny.compiled("select_step"), tiny.compiled("admit")) == (before[0] + 1, before[1])


def compiled_text(parallel, devices, c=4, block=64, **options):
  start(parallel, devices)
  engine = tiny.Engine(slots=704, c=c, block=block, **options)
  return step_lib.select_step.lower(
    engine.teacher, engine.student, engine.state, engine.knob, round=engine.static
  ).compile().as_text(), engine


@pytest.mark.parametrize("parallel,devices", [(1, 1), (2, 8)])
def test_no_copy_and_no_gather_of_a_cache_in_the_compiled_step(parallel, devices):
  """The ring is 704 slots, a size nothing else has: no instruction may move it whole."""
  text, _ = compiled_text(parallel, devices)
  moving = re.compile(
    r"= \S*\[[0-9,]*\b704\b[0-9,]*\]\S* "
    r"(copy|all-gather|all-to-all|collective-permute|transpose|concatenate)\("
  )
  found = [
    line.strip()[:160]
    for line in text.splitlines()
    if moving.search(line) and not re.search(r"= (pred|s32)\[", line)
  ]  # bool[b,s] is not a cache
  assert not found, found


def loop_lines(text, carried):
  """Instructions of the while bodies that carry an array of this type, and of all they call."""
  parts = dict(re.findall(r"^(?:ENTRY )?%(\S+) .*\{\n((?:.*\n)*?)\}", text, re.M))
  todo = re.findall(rf" = \(.*{re.escape(carried)}.* while\(.*body=%([\w.-]+)", text)
  seen = set()
  while todo:
    if (name := todo.pop()) not in seen:
      seen.add(name)
      todo += [n for n in re.findall(r"%([\w.-]+)", parts[name]) if n in parts]
  return [line.strip() for name in seen for line in parts[name].splitlines()]


@pytest.mark.parametrize("unroll", [True, False])
def test_no_token_copies_its_chunk_or_transposes_a_weight(unroll):
  """Chunks are 44 tokens and weights have sizes that nothing else has."""
  text, engine = compiled_text(1, 1, c=44, block=88, unroll=unroll)
  weights = {
    x.size // (1 if unroll else tiny.TEACHER.layers)
    for x in jax.tree.leaves(engine.teacher.blocks)
    if x.size >= 512
  }
  weights |= {engine.teacher.head.size}
  moving = re.compile(r"= f32\[([0-9,]*)\]\S* (?:copy|transpose|concatenate)\(")
  lines = loop_lines(text, "s32[8,3,44]")  # the candidates' tokens: one pass a token
  found = [
    line[:160]
    for line in lines
    if (m := moving.search(line))
    for dims in [[int(d) for d in m[1].split(",") if d]]
    if (44 in dims and len(dims) >= 4) or np.prod(dims) in weights
  ]
  assert len(lines) > 500 and not found, found


def test_donated_state_is_written_in_place():
  _, engine = compiled_text(1, 1)
  caches = jax.tree.leaves((engine.state.teacher.kv, engine.state.student.kv))
  where = [x.unsafe_buffer_pointer() for x in caches]
  engine.admit({0: (tiny.prompts(1)[0], 0)})
  engine.round()
  now = jax.tree.leaves((engine.state.teacher.kv, engine.state.student.kv))
  assert [x.unsafe_buffer_pointer() for x in now] == where
  assert all(x.is_deleted() for x in caches)


def test_choosing_needs_a_student():
  start()
  engine = tiny.Engine(k=2, student=None)
  with pytest.raises(ValueError, match="select.k is 2"):
    engine.round()
