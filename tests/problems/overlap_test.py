"""Near duplicates of test problems: by made-up texts, and by GSM8K and SVAMP where they are present."""

import random
import re

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from configs import quickstart
from gen_ssd import config as config_lib
from gen_ssd import inputs
from gen_ssd.problems import bundled
from gen_ssd.problems import overlap
from gen_ssd.problems import problem as problem_lib
from gen_ssd.problems import sets
from tests import paths

STORY = (
  "Nina paints a long wooden fence with her brother on a sunny day. She paints 14 boards before lunch "
  "and 23 boards after lunch, while he paints half as many. How many boards do they paint together?"
)
OTHER = (
  "A baker sells bread rolls in small paper bags that hold six rolls each. If he bakes 90 rolls on a "
  "cold morning and gives five of them away, how many full bags can he sell that day?"
)


def problems(*texts, split="train", source="made up"):
  return [problem_lib.Problem(problem_lib.digest(t)[:16], source, split, t, "1", 0) for t in texts]


def near(training, tests, share=0.5):
  """[(number of the training problem, number of the test problem, share)] of texts."""
  own, asked = problems(*training), problems(*tests, split="test")
  found = overlap.near(own, asked, share)
  return [(own.index(m.training), asked.index(m.test), m.share) for m in found]


def letters(text):
  """A text with a word for each letter."""
  return " ".join(f"word{c}" for c in text)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
  "a,b",
  [
    ("He has 1,200 apples.", "he has 1200 apples"),
    ("Find $\\left( x+1 \\right)$.", "Find (x + 1)"),
    ("\\dfrac{1}{2} of \\$5", "\\frac{1}{2} of 5"),
    ("a two-digit number — not 3", "a two digit number, not 3"),
    ("Don't “stop”!", "dont 'stop'"),
    ("$3 \\times 4$, \\text{then stop}", "3 × 4 then stop"),
    ("$n\\leq 5$", "n ≤ 5"),
    ("**Note** that 5x", "note that 5 x"),
    ("３ apples", "3 apples"),
  ],
)
def test_words_are_those_of_the_same_text_set_in_another_way(a, b):
  assert overlap.words(a) == overlap.words(b) != ()


@pytest.mark.parametrize(
  "a,b",
  [
    ("3 + 4", "3 - 4"),
    ("x^2", "x2"),
    ("5!", "5"),
    ("0.5", "0 5"),
    ("n ≤ 5", "n ≥ 5"),
    ("-5", "5"),
    ("12", "1 2"),
  ],
)
def test_words_tell_formulas_apart(a, b):
  assert overlap.words(f"Compute ${a}$.") != overlap.words(f"Compute ${b}$.")


def test_characters_of_scripts_without_spaces_are_words():
  assert overlap.words("小明有3个苹果。") == (*"小明有3个苹果",)


# ---------------------------------------------------------------- shares by hand


def test_the_share_is_the_part_of_the_n_grams_of_the_test_problem():
  # 20 words, 13 n-grams. Changing word 3 (from 0) changes n-grams 0 to 3: 9 of 13 stay.
  asked = letters("abcdefghijklmnopqrst")
  said = letters("abcXefghijklmnopqrst")
  assert near([said], [asked]) == [(0, 0, 9 / 13)]
  assert near([said], [asked], share=9 / 13) == []  # more than the share is too much
  # A longer training problem that contains the test problem, and one that has its first 12 words.
  assert near([letters("zyxw") + " " + asked], [asked], share=0.99) == [(0, 0, 1.0)]
  assert near([letters("abcdefghijkl")], [asked], share=0.3) == [(0, 0, 5 / 13)]


def test_the_n_grams_must_be_in_one_training_problem():
  asked = letters("abcdefghijklmnopqrst")
  assert near([letters("abcdefghijklmn"), letters("ghijklmnopqrst")], [asked], share=7 / 13) == []


def test_repeated_n_grams_count_once():
  asked = letters("abcdefgh" * 3 + "ijklm")  # n-grams: 8 that repeat, 5 that do not
  assert near([letters("abcdefgh" * 9)], [asked]) == [(0, 0, 8 / 13)]


def test_changed_names_and_numbers_are_found_and_named():
  said = STORY.replace("Nina", "Olga").replace("14", "15")
  (match,) = overlap.near(
    problems(OTHER, said), problems("How many is 5?", STORY, split="test"), 0.5
  )
  assert (match.training.problem, match.test.problem) == (said, STORY)
  assert match.reason == f"{match.share:.2f} of the test problem's word 8-grams"
  row = match.row("fences")
  assert row["split"] == "train" and row["test"] == "fences" and row["problem"] == said
  assert (row["uuid"], row["test_uuid"]) == (match.training.uuid, match.test.uuid)


def test_the_closest_test_problem_is_named():
  near_one, nearer = STORY.replace("sunny", "hot"), STORY.replace("Nina", "Olga")
  said = nearer.replace("together", "in all")
  assert [m[:2] for m in near([said], [near_one, nearer])] == [(0, 1)]


def test_of_equally_close_test_problems_the_first_by_uuid_is_named():
  for seed in range(8):
    order = random.Random(seed).sample("abcdefghijklmnopqrstuvwxyz", 26)
    tests = problems(letters(order[:13]), letters(order[13:]), split="test")
    (match,) = overlap.near(problems(letters(order)), tests, 0.5)
    assert match.test == min(tests, key=lambda p: p.uuid) and match.share == 1


def test_other_problems_stay():
  assert near([STORY], [OTHER], share=0.01) == near([], [OTHER]) == near([STORY], []) == []


def test_the_order_of_the_problems_does_not_matter():
  training = [STORY.replace("Nina", name) for name in ("Olga", "Eva", "Max")] + [OTHER + " Why?"]
  tests = [STORY, STORY.replace("sunny", "hot"), OTHER, OTHER + "!"]
  training.append(STORY.replace("sunny", "wet"))  # as near to one test as to another
  found = lambda a, b: {
    (m.training.uuid, m.test.uuid, m.share, m.reason)
    for m in overlap.near(problems(*a), problems(*b, split="test"), 0.5)
  }
  assert len(found(training, tests)) == 5
  for seed in range(10):
    shuffled = [random.Random(seed).sample(x, len(x)) for x in (training, tests)]
    assert found(*shuffled) == found(training, tests)


# ---------------------------------------------------------------- short problems and boilerplate


def test_short_problems_are_compared_whole():
  asked = "What is the value of $3x + 4$ when $x = 5$?"  # 14 words, 7 n-grams
  short = "What is the sum of 3 + 4 in total now?"  # 11 words, 4 n-grams
  assert len(overlap.words(short)) == 11
  assert near(["Ann asks: " + short], [short], share=0.1) == []
  assert near(["what is the sum of 3+4, in total, now"], [short]) == [(0, 0, 1.0)]
  assert near(["Ann asks: " + asked], [asked]) == [(0, 0, 1.0)]
  assert near(["Ann asks: " + short + " Say"], [short + " Say"], share=0.1) == [(0, 0, 1.0)]


def test_at_an_overlap_of_1_only_equal_words_are_left_out():
  assert near([STORY + " Show your work."], [STORY], share=1.0) == []
  (match,) = overlap.near(problems(STORY.upper()), problems(STORY, split="test"), 1.0)
  assert match.reason == "same text apart from punctuation" and match.share == 1


AIME = (
  "The {} can be written in the form $\\frac{{m}}{{n}}$, where $m$ and $n$ are relatively prime "
  "positive integers. Find $m+n$."
)
ASKED = (
  "probability that a red ball is drawn from an urn of nine balls",
  "area of the small triangle inside the regular hexagon of side two",
  "expected number of rolls of a fair die until a six",
)


def test_boilerplate_of_a_test_set_does_not_count():
  training = [AIME.format("ratio of the two shaded areas")]
  tests = [AIME.format(asked) for asked in ASKED]
  assert near(training, tests, share=0.1) == []
  # With one such problem, nothing shows that its sentence is boilerplate: most of it is shared.
  assert near(training, tests[:1], share=0.4)
  # A copy of one with another beginning is found all the same, by what is its own.
  copy = tests[1].replace("The area of the small", "Give the value of m plus n: the small")
  assert [m[:2] for m in near([copy], tests, share=0.4)] == [(0, 1)]


def test_boilerplate_of_the_training_problems_does_not_count():
  tests, kinds = [AIME.format(ASKED[0])], "ABCDEFGHIJK"
  training = [AIME.format(f"ratio of the areas of shape {kind}") for kind in kinds]
  assert near(training, tests, share=0.1) == []
  assert len(near(training[:10], tests, share=0.4)) == 10
  others = [f"{letters('abcdefgh')} {i}" for i in range(11_000)]  # eleven of so many are few
  assert len(near(training + others, tests, share=0.4)) == 11


def test_a_test_problem_left_with_few_n_grams_is_compared_whole():
  tests = [AIME.format(shape) for shape in ("ratio", "slope", "angle", "chance")]
  assert near([AIME.format("length")], tests, share=0.01) == []
  assert near([AIME.format("ratio").replace("Find", "find:")], tests) == [(0, 0, 1.0)]


def test_a_test_problem_that_occurs_twice_is_no_boilerplate():
  again = [STORY, STORY.replace(".", " ."), STORY.upper(), STORY.replace(",", ";")]
  assert len(near([STORY.replace("Nina", "Olga")], again)) == 1


WORDS = st.from_regex(r"[a-z]{2,6}|[0-9]{1,3}", fullmatch=True)
MARKS = st.sampled_from(["", ",", ".", ";", ":", "?", '"', ")", "$"])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.tuples(WORDS, MARKS), min_size=1, max_size=30), st.floats(0.01, 1))
def test_a_problem_equal_apart_from_punctuation_is_always_found(marked, share):
  plain = " ".join(word for word, _ in marked)
  said = " ".join(word.title() + mark for word, mark in marked)
  assert near([OTHER, said], [STORY, plain], share) == [(1, 1, 1.0)]


# ---------------------------------------------------------------- real problems


def test_no_bundled_problem_is_left_out():
  c = config_lib.parse(quickstart.get_config())
  asked = inputs.drawn(c, "test")
  for split in ("train", "cold_start"):
    training = inputs.drawn(c, split)
    assert overlap.near(training, asked, 0.01) == []
    assert inputs.problems(c, split) == training
  # It is their source that exempts them: of texts like theirs some would be left out.
  copies = problems(*(p.problem for p in bundled.problems("train", 4000)))
  assert overlap.near(copies, asked, 0.1)


@pytest.mark.skipif(not (paths.DATA / "gsm8k").is_dir(), reason="needs shared/data/gsm8k")
def test_of_gsm8k_only_real_near_duplicates_are_left_out():
  read = lambda name, part: sets.read(f"{name}:{paths.DATA / name / part}.jsonl", split=part)
  training, tests = read("gsm8k", "train"), read("gsm8k", "test")
  found = overlap.near(training, tests, 0.5)
  assert len(found) == 2 and {m.test for m in found} == {found[0].test}
  for m in found:  # a train becomes a plane, and the miles change
    beside = [re.sub(r"\d+|train|plane", "", p.problem) for p in (m.training, m.test)]
    assert beside[0] == beside[1]
  assert overlap.near(training, read("svamp", "test"), 0.5) == []
  changed = [STORY, tests[5].problem.replace(".", " !"), "Well. " + tests[9].problem]
  assert [m.test for m in overlap.near(problems(*changed), tests, 0.5)] == [tests[5], tests[9]]
