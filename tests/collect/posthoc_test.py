"""Choosing among whole traces: every rule by hand."""

import math

import jax
import pytest

from gen_ssd import config
from gen_ssd import inputs
from gen_ssd import mesh
from gen_ssd.collect import posthoc
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.problems import bundled
from tests.models.decoder_test import all_logits


def row(uuid, attempt, nll, ranks=None, teacher=None, starts=(0,)):
  return {
    "uuid": uuid,
    "attempt": attempt,
    "num_tokens": len(nll),
    "student_nlls": nll,
    "student_ranks": ranks or [1] * len(nll),
    "teacher_nlls": teacher or [4.0] * len(nll),
    "step_starts": list(starts),
  }


BUNDLED = config.Config(student=config.Model("bundled/student"))
EASY = -math.log(0.9)
ROWS = [
  row("a", 0, [1.0, 1.0, 4.0], [1, 2, 300]),
  row("a", 1, [3.0], [3]),
  row("a", 2, [1.5, 1.5, 1.5, 1.9], [4, 5, 6, 7], [EASY] * 4, [0, 2]),
  row("b", 1, [2.0, 2.0]),
  row("b", 0, [2.0, 2.0]),
]


@pytest.mark.parametrize(
  "scorer,a,b",
  [
    ("perplexity", 2, 0),  # 2, 3, 1.6; ties go to the first attempt
    ("perplexity_sum", 1, 0),  # 6, 3, 6.4
    ("anti", 1, 0),
    ("rsr", 1, 0),  # 103/6 (300 counts as 100), 3/3, 22/6.4
    ("longest", 2, 0),
    ("shortest", 1, 0),
    ("drop_first", 2, 0),  # 2.5, 3 (nothing else), (1.5 + 1.9) / 2
    ("teacher_gap", 2, 0),
    ("teacher_count", 2, 0),
  ],
)  # under the teacher 0.9 a token in both of its steps
@pytest.mark.parametrize("order", [1, -1])
def test_the_best_trace_of_each_problem(scorer, a, b, order):
  found = posthoc.best(ROWS[::order], scorer)
  assert [(r["uuid"], r["attempt"]) for r in found] == [("a", a), ("b", b)]


def test_rationale_difficulty_is_looked_up():
  given = {("a", 0): 0.9, ("a", 1): 0.3, ("a", 2): 0.5, ("b", 0): 2.0, ("b", 1): 1.0}
  found = posthoc.best(ROWS, "morsd", difficulty=given)
  assert [r["attempt"] for r in found] == [1, 1]


TEXTS = ["Tom has 57. 57 - 5 = 52. So \\boxed{52}.", "So \\boxed{7}.", "57 - 5 = 52. 1 + 1 = 2."]


def test_the_answer_is_the_sentence_with_the_last_box():
  tokenizer = tokenization.load_tokenizer(hf.locate("bundled/student"))
  for text, answer in zip(TEXTS, ("So \\boxed{52}.", "So \\boxed{7}.", "1 + 1 = 2.")):
    ids = tokenizer.encode(text, add_special_tokens=False)
    at = posthoc.answer_start(tokenizer, ids)
    assert tokenizer.decode(ids[at:]).strip() == answer


def test_rationale_difficulty_is_a_ratio_of_perplexities():
  """Against a forward of one text at a time, for each answer with its rationale and without."""
  mesh.start(devices=jax.devices()[:1])
  student, tokenizer = inputs.load(BUNDLED, "student")
  one = bundled.problems("test", 1)[0].problem
  rows = [
    {
      "uuid": "ab",
      "attempt": i,
      "problem": one,
      "opened": "",
      "ids": [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id],
    }
    for i, text in enumerate(TEXTS)
  ]
  found = posthoc.difficulties(student, tokenizer, rows, batch=4)
  prompt = tokenization.chat_prompt(tokenizer, one)

  def perplexity(before, answer):
    ids = [*prompt, *before, *answer]
    logp = jax.nn.log_softmax(all_logits(student, [ids])[0])
    at = range(len(ids) - len(answer), len(ids))
    return math.exp(-sum(float(logp[i - 1, ids[i]]) for i in at) / len(answer))

  for r in rows:
    ids = r["ids"][:-1]
    at = posthoc.answer_start(tokenizer, ids)
    want = perplexity(ids[:at], ids[at:]) / perplexity([], ids[at:])
    assert found["ab", r["attempt"]] == pytest.approx(want, rel=2e-3)
  assert found["ab", 1] == 1 and abs(math.log(found["ab", 0])) > 0.1


def test_the_mean_nll_of_responses_is_that_of_a_plain_forward():
  mesh.start(devices=jax.devices()[:1])
  student, tokenizer = inputs.load(BUNDLED, "student")
  prompt = tokenization.chat_prompt(tokenizer, bundled.problems("test", 1)[0].problem)
  pairs = [(prompt, tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]
  found = posthoc.mean_nlls(student, pairs, batch=2)
  for (before, response), nll in zip(pairs, found, strict=True):
    logp = jax.nn.log_softmax(all_logits(student, [[*before, *response]])[0])
    at = range(len(before), len(before) + len(response))
    want = -sum(float(logp[i - 1, x]) for i, x in zip(at, response)) / len(response)
    assert nll == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("context", [3, 8, 1000])
def test_local_reads_each_step_after_the_prompt_and_the_newest_tokens_only(context):
  mesh.start(devices=jax.devices()[:1])
  student, tokenizer = inputs.load(BUNDLED, "student")
  one = bundled.problems("test", 1)[0].problem
  prompt, rows = tokenization.chat_prompt(tokenizer, one), []
  for i, text in enumerate(TEXTS):
    ids = tokenizer.encode(text, add_special_tokens=False)
    rows.append(
      {
        **row("ab", i, [9.0] * len(ids), starts=range(0, len(ids), 4)),
        "ids": ids,
        "problem": one,
        "opened": "Tom has" * (i == 1),
      }
    )
  found = posthoc.short_context(student, tokenizer, rows, context=context, batch=4)
  for r, near in zip(rows, found):
    for at in r["step_starts"]:
      before, step = r["ids"][max(at - context, 0) : at], r["ids"][at : at + 4]
      opened = tokenizer.encode(r["opened"], add_special_tokens=False) if r["opened"] else []
      text = [*prompt, *opened, *before, *step]
      logp = jax.nn.log_softmax(all_logits(student, [text])[0])
      want = [-float(logp[i - 1, text[i]]) for i in range(len(text) - len(step), len(text))]
      assert near["student_nlls"][at : at + 4] == pytest.approx(want, rel=2e-3, abs=2e-3)
  means = [sum(r["student_nlls"]) / r["num_tokens"] for r in found]
  assert posthoc.score(found, "local") == pytest.approx(means, rel=1e-5)


def test_softmin_draws_a_trace_by_exp_of_minus_beta_times_the_score():
  nlls = ([0.25, 0.25], [1.0], [0.5, 1.0])  # sums 0.5, 1 and 1.5
  rows = [row(f"{i:04x}", a, nll) for i in range(3000) for a, nll in enumerate(nlls)]
  draw = lambda **options: posthoc.best(rows, "perplexity_sum", **options)
  share = lambda found: [sum(r["attempt"] == a for r in found) / 3000 for a in range(3)]
  for beta in (2.0, 0.0):
    want = [math.exp(-beta * s) for s in (0.5, 1, 1.5)]
    assert share(draw(beta=beta)) == pytest.approx([w / sum(want) for w in want], abs=0.03)
  assert share(draw(beta=1e6)) == share(draw()) == [1, 0, 0]  # argmin
  assert draw(beta=2.0) == posthoc.best(rows[::-1], "perplexity_sum", beta=2.0)
  assert draw(beta=2.0) != draw(beta=2.0, seed=1)


def test_nothing_kept_is_nothing_chosen():
  assert posthoc.best([], "perplexity") == []


def test_random_is_uniform_over_attempts_and_depends_on_the_seed_alone():
  rows = [row(f"{i:04x}", a, [1.0]) for i in range(600) for a in range(3)]
  one, two = (posthoc.best(rows, "random", seed=s) for s in (0, 1))
  assert one == posthoc.best(rows[::-1], "random", seed=0) != two
  for found in (one, two):
    for attempt in range(3):
      assert 150 < sum(r["attempt"] == attempt for r in found) < 250


def test_mix_long_takes_the_longest_of_one_problem_in_five():
  rows = [row(f"{i:04x}", a, [1.0] * n) for i in range(1000) for a, n in enumerate((2, 5, 3))]
  lengths = [r["num_tokens"] for r in posthoc.best(rows, "mix_long")]
  assert {*lengths} == {2, 5} and 160 < lengths.count(5) < 240
