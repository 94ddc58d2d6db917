"""Examples and packed batches: what is learned, in which order, and continuing exactly."""

import itertools
import json

import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import errors
from gen_ssd.models import tokenization
from gen_ssd.models import word_level
from gen_ssd.problems import bundled
from gen_ssd.training import packing
from gen_ssd.training import pretrain

LENGTH = 16


def pairs(n):
  """n examples whose every token names the example: prompts 100 i + 1.., responses 100 i + 50.."""
  rng = np.random.default_rng(n)
  return [
    (
      [100 * i + 1 + j for j in range(rng.integers(0, 4))],
      [100 * i + 50 + j for j in range(rng.integers(1, 6))],
    )
    for i in range(1, n + 1)
  ]


def take(n, pairs_=None, *, batch_size=3, length=LENGTH, seed=0, source=None, bins=4):
  source = source or packing.Rows(pairs(20) if pairs_ is None else pairs_, length)
  it = packing.batches(source, batch_size=batch_size, length=length, seed=seed, bins=bins)
  return [next(it) for _ in range(n)]


def examples(batch):
  """(tokens, mask, positions) of every example of a batch, in order of row and segment."""
  found = []
  for row in range(len(batch["tokens"])):
    segments = batch["segments"][row]
    for s in range(1, segments.max() + 1):
      at = np.flatnonzero(segments == s)
      assert (np.diff(at) == 1).all()  # in one piece
      found.append([batch[name][row, at].tolist() for name in ("tokens", "mask", "positions")])
  return found


def same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])


# ---------------------------------------------------------------- one example


@pytest.mark.parametrize(
  "length,want,mask",
  [
    (9, [1, 2, 3, 8, 9], [0, 0, 0, 1, 1]),
    (5, [1, 2, 3, 8, 9], [0, 0, 0, 1, 1]),
    (4, [1, 2, 3, 8], [0, 0, 0, 1]),
    (2, [1, 2], [0, 0]),
  ],
)
def test_an_example_is_cut_and_only_its_response_is_learned(length, want, mask):
  found = packing.example([1, 2, 3], [8, 9], length)
  assert found["tokens"].tolist() == want and found["mask"].tolist() == mask
  assert found["tokens"].dtype == found["mask"].dtype == np.int32
  rows = packing.Rows([([1, 2, 3], [8, 9])], length)
  assert len(rows) == 1 and rows[0]["tokens"].tolist() == want


def test_a_column_is_zero_on_the_prompt_and_cut_with_its_tokens():
  weights, steps = [0.5, -2.0], [7, 8]
  found = packing.example([1, 2, 3], [8, 9], 9, {"weights": weights, "steps": steps})
  assert found["weights"].tolist() == [0, 0, 0, 0.5, -2] and found["weights"].dtype == np.float32
  assert found["steps"].tolist() == [0, 0, 0, 7, 8] and found["steps"].dtype == np.int32
  cut = packing.example([1, 2, 3], [8, 9], 4, {"weights": weights})
  assert cut["weights"].tolist() == [0, 0, 0, 0.5]
  with pytest.raises(ValueError, match="weights has 1 numbers for a response of 2 tokens"):
    packing.example([1], [8, 9], 9, {"weights": [1.0]})
  with pytest.raises(ValueError, match="may not be named segments"):
    packing.example([1], [8, 9], 9, {"segments": [1, 1]})


def test_an_example_without_prompt():
  assert packing.example([], [8, 9], 5)["mask"].tolist() == [1, 1]


# ---------------------------------------------------------------- packing


def test_rows_hold_several_whole_examples_with_their_own_positions():
  known = {tuple(p + r): (p, r) for p, r in pairs(20)}
  found = []
  for batch in take(6):
    assert all(x.shape == (3, LENGTH) and x.dtype == np.int32 for x in batch.values())
    assert set(batch) == {"tokens", "mask", "segments", "positions"}
    assert (batch["segments"].max(1) > 1).all()
    padding = batch["segments"] == 0
    assert not batch["mask"][padding].any()
    for text, mask, positions in examples(batch):
      prompt, response = known[tuple(text)]
      assert mask == [0] * len(prompt) + [1] * len(response)
      assert positions == list(range(len(text)))
      found.append(tuple(text))
    assert (~padding).mean() > 0.7  # little is wasted
  assert len(set(found)) == 20


def test_every_example_comes_once_before_any_comes_again():
  it = packing.batches(packing.Rows(pairs(20), LENGTH), batch_size=1, length=LENGTH, seed=0, bins=1)
  found = [tuple(t) for batch in itertools.islice(it, 40) for t, _, _ in examples(batch)]
  assert sorted(found[:20]) == sorted(tuple(p + r) for p, r in pairs(20))
  assert sorted(found[20:40]) == sorted(found[:20]) and found[20:40] != found[:20]


def test_long_examples_are_cut_to_a_row():
  (batch,) = take(1, [(list(range(1, 11)), list(range(50, 90)))], batch_size=2)
  assert batch["tokens"].tolist() == [[*range(1, 11), *range(50, 56)]] * 2
  assert batch["mask"].tolist() == [[0] * 10 + [1] * 6] * 2


def test_a_single_short_example_fills_batches_for_ever():
  for batch in take(3, [([1], [2, 3])]):
    assert (batch["segments"].max(1) == LENGTH // 3).all()


def test_the_order_is_fixed_by_the_seed():
  same(take(4), take(4))
  first, other = take(1), take(1, seed=1)
  assert (first[0]["tokens"] != other[0]["tokens"]).any()


def test_further_columns_are_packed_beside_their_tokens_and_change_nothing_else():
  columns = {
    "weights": [[t / 8 for t in response] for _, response in pairs(20)],
    "steps": [[-t for t in response] for _, response in pairs(20)],
  }
  found = take(6, source=packing.Rows(pairs(20), LENGTH, columns))
  for batch, plain in zip(found, take(6), strict=True):
    assert batch["weights"].dtype == np.float32 and batch["steps"].dtype == np.int32
    learned = batch["mask"] * batch["tokens"]
    np.testing.assert_array_equal(batch["weights"], learned / 8)
    np.testing.assert_array_equal(batch["steps"], -learned)
    same([{name: batch[name] for name in plain}], [plain])


def test_nothing_to_train_on():
  with pytest.raises(errors.UserError, match="nothing to train on: no trace was kept"):
    packing.batches(packing.Rows([], LENGTH), batch_size=2, length=LENGTH, seed=0)


def test_every_process_makes_the_same_batches(monkeypatch):
  """So that a run may continue on another number of processes."""
  want = take(3)
  monkeypatch.setattr("jax.process_count", lambda: 3)
  monkeypatch.setattr("jax.process_index", lambda: 2)
  same(take(3), want)


# ---------------------------------------------------------------- continuing


@pytest.mark.parametrize("after", [0, 1, 5, 9])  # 9: into the second time round
def test_a_saved_position_continues_exactly(after):
  make = lambda: packing.batches(
    packing.Rows(pairs(20), LENGTH), batch_size=2, length=LENGTH, seed=0, bins=4
  )
  it = make()
  for _ in range(after):
    next(it)
  state = json.loads(json.dumps(it.get_state()))  # it goes through a file
  want = [next(it) for _ in range(4)]
  again = make()
  next(again)
  again.set_state(state)
  same([next(again) for _ in range(4)], want)


# ---------------------------------------------------------------- bundled texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return word_level.word_level_tokenizer(
    [*bundled.vocabulary(), "+", "-", "=", "\\boxed{"], tmp_path_factory.mktemp("tokenizer")
  )


def documents(tokenizer, kind, seed=0):
  return pretrain.Documents(
    kind,
    tokenizer,
    lambda text: tokenization.chat_prompt(tokenizer, text),
    tokenizer.eos_token_id,
    128,
    seed,
  )


@pytest.mark.parametrize("kind", ["lessons", "plain"])
def test_a_text_is_a_function_of_seed_and_place(tokenizer, kind):
  source = documents(tokenizer, kind)
  ids = lambda source, i: source[i]["tokens"].tolist()
  assert ids(source, 7) == ids(documents(tokenizer, kind), 7)
  assert len({tuple(ids(source, i)) for i in range(20)}) == 20
  assert ids(source, 7) != ids(documents(tokenizer, kind, 1), 7)
  assert all(source[i]["tokens"][-1] == tokenizer.eos_token_id for i in range(20))


def test_a_lesson_is_a_prompt_as_it_is_served_and_a_solution(tokenizer):
  for i in range(10):
    one = documents(tokenizer, "lessons")[i]
    prompt, response = one["tokens"][one["mask"] == 0], one["tokens"][one["mask"] == 1]
    if len(prompt):
      story = tokenizer.decode(prompt, skip_special_tokens=True)
      assert tokenization.chat_prompt(tokenizer, story) == prompt.tolist()
      assert "\\boxed{" in tokenizer.decode(response)
  plain = documents(tokenizer, "plain")[0]
  assert plain["mask"].all()


def test_bundled_texts_pack(tokenizer):
  (batch,) = take(1, source=documents(tokenizer, "lessons"), length=128, batch_size=2)
  assert batch["segments"].max() > 1 and batch["mask"].any()


# ---------------------------------------------------------------- examples that are too long

MIXED = [([1] * 4, [2] * 4), ([1] * 4, [2] * 9), ([1] * 10, [2] * 3)]  # 8, 13 and 13 tokens


@pytest.mark.parametrize(
  "too_long,left,note",
  [
    ("cut", MIXED[:2], "2 of 3 examples are longer than warm_up.length (10), up to 13 tokens: 1 cut, "
     "1 dropped"),
    ("drop", MIXED[:1], "2 of 3 examples are longer than warm_up.length (10), up to 13 tokens: 0 cut, "
     "2 dropped"),
  ],
)  # fmt: skip
def test_examples_that_are_too_long_are_counted(too_long, left, note):
  settings, columns = config.Train(too_long=too_long), {"weights": [[p[0][0]] for p in MIXED]}
  found, said = packing.fitting(packing.Rows(MIXED, 10, columns), settings, "warm_up")
  assert (found.pairs, said, len(found.columns["weights"])) == (left, note, len(left))
  rows = packing.Rows(MIXED, 13, columns)
  assert packing.fitting(rows, settings, "warm_up") == (rows, "")


@pytest.mark.parametrize(
  "pairs_,too_long,message",
  [
    (MIXED, "refuse", r"2 of 3 .* train.length \(10\), up to 13 tokens; raise it, or set"),
    (MIXED[2:], "cut", r"1 of 1 .*nothing is left to train on; raise it"),
    (MIXED[1:], "drop", r"2 of 2 .*nothing is left to train on; raise it"),
  ],
)  # fmt: skip
def test_training_on_nothing_is_refused(pairs_, too_long, message):
  with pytest.raises(errors.UserError, match=message):
    packing.fitting(packing.Rows(pairs_, 10), config.Train(too_long=too_long), "train")
