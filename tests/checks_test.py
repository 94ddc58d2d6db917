"""What is looked at before a run computes anything, where it takes more than the settings alone."""

import pytest

from configs import quickstart
from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd.errors import UserError
from gen_ssd.models import hf
from gen_ssd.models import tokenization

PLAIN = dict(k=1, threshold="off")
ARMS = {
  "own": dict(PLAIN, writer="base"),
  "again": dict(PLAIN, writer="cold_start", after="own"),
  "mixed": dict(PLAIN, after="own"),
}


def pair():
  return [
    tokenization.load_tokenizer(hf.locate(f"bundled/{who}")) for who in ("teacher", "student")
  ]


def given(arms, tokenizers, differ=False):
  c = quickstart.get_config()
  c.arms = arms
  checks._check_given(config_lib.parse(c), tokenizers, differ)


def test_traces_go_on_with_any_writer_of_the_same_tokens():
  given(ARMS, pair())


def test_traces_of_other_tokens_are_refused_by_name():
  with pytest.raises(UserError) as error:
    given(ARMS, pair(), differ=True)
  assert str(error.value) == (
    "arms.mixed.after is 'own': it must be an arm with the same kind of writer, because the "
    "tokenizers of teacher and student differ"
  )
  given({name: ARMS[name] for name in ("own", "again")}, pair(), differ=True)


def test_traces_that_a_template_begins_in_another_way_are_refused(monkeypatch):
  tokenizers = pair()
  opening = lambda own, prompt: prompt[-1:] if own is tokenizers[0] else []
  monkeypatch.setattr(tokenization, "opening", opening)
  with pytest.raises(UserError, match="arms.mixed.after is 'own': .* chat templates of teacher"):
    given(ARMS, tokenizers)


def test_what_is_encoded_again_cannot_be_masked():
  arms = {"sft": PLAIN, "more": dict(PLAIN, after="sft", train=dict(given="mask"))}
  given(arms, pair())
  with pytest.raises(UserError, match="arms.more.train.given is 'mask': it must be learn when the"):
    given(arms, pair(), differ=True)
