"""Every wrong setting is named with its value and what would be right.

Long, because it is a table of wrong settings.
"""

import dataclasses
import importlib.util
import json
import pathlib

import ml_collections
import pytest

from gen_ssd import config
from gen_ssd import config_checks
from gen_ssd import config_files
from gen_ssd import folders
from gen_ssd import workdir as workdir_lib
from tests import tiny

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def parse(raw):
  found = config.parse(raw)
  config_checks.check(found)
  return found


def made(**changes):
  """The default config with models, and `changes` such as select__k=3 or arms={...}."""
  c = config.default()
  c.teacher.path, c.student.path = "some/teacher", "some/student"
  for name, value in changes.items():
    *path, last = name.split("__")
    place = c
    for part in path:
      place = place[part]
    place[last] = value
  return c


def test_defaults():
  found = parse(made())
  assert found.select == config.Select() and found.train == config.Train()
  assert found.cold_start == config.Config.cold_start
  assert found.arms == (("gen_ssd", config.Arm()),)
  assert hash(found) == hash(parse(made()))  # static under jit


def test_parse_takes_plain_dicts_and_changes_nothing():
  plain = {
    "teacher": {"path": "t"},
    "student": {"path": "s"},
    "select": {"k": 2},
    "arms": {"a": {}, "b": {"k": 1, "seed": 3}},
  }
  before = json.dumps(plain)
  found = parse(plain)
  assert json.dumps(plain) == before
  assert [(n, a.select.k, a.select.seed) for n, a in found.arms] == [("a", 2, 0), ("b", 1, 3)]
  c = made(select__k=2)
  assert parse(c) == parse(c) and c.select.k == 2


def test_arms_are_select_with_changes():
  found = parse(
    made(
      select__k=6,
      select__seed=9,
      arms={"plain": dict(k=1), "late": dict(threshold=2, margin=0.5, delimiters=["\n"])},
    )
  )
  arms = {name: arm.select for name, arm in found.arms}
  assert (arms["plain"].k, arms["plain"].seed) == (1, 9)
  assert (arms["late"].k, arms["late"].threshold, arms["late"].margin) == (6, 2.0, 0.5)
  assert arms["late"].delimiters == ("\n",) and found.select.threshold == "off"


def test_an_arm_changes_the_training_too():
  more = dict(k=1, train=dict(start="sft", steps=9))
  c = made(train__steps=70, train__warmup_steps=5, arms={"sft": {}, "more": more})
  found = parse(c)
  arms = dict(found.arms)
  assert arms["sft"].train == found.train
  assert arms["more"].train == dataclasses.replace(found.train, start="sft", steps=9)
  assert config.trainings(found) == {"train": found.train, "arms.more.train": arms["more"].train}
  flags = ["--config.arms.sft.train.seed=4", "--config.train.steps=71"]
  changed = parse(config_files.override(c, flags))
  assert [(a.train.steps, a.train.seed) for _, a in changed.arms] == [(9, 0), (71, 4)]
  rebuilt = config.settings(found)
  assert parse(rebuilt) == found  # what config.json says


def test_arms_come_after_those_that_they_name():
  arms = {
    "a": dict(train=dict(start="d")),
    "b": dict(chooser="a", k=2),
    "c": dict(writer="b"),
    "d": {},
    "e": dict(train=dict(start="c")),
    "f": dict(after="g"),
    "g": {},
  }
  found = parse(made(arms=arms))
  assert [name for name, _ in config.ordered(found.arms)] == ["d", "g", "a", "f", "b", "c", "e"]
  assert config.trained_early(found.arms) == {"a", "b", "d"}


@pytest.mark.parametrize(
  "value,want",
  [("calibrated", "calibrated"), ("off", "off"), (1.5, 1.5), (2, 2.0), ("1.5", 1.5), (-0.5, -0.5)],
)
def test_a_threshold_is_a_word_or_a_number(value, want):
  """In a config file, where it was `off`, and as a flag, which is text."""
  found = parse(made(select__threshold=value)).select.threshold
  assert found == want and type(found) is type(want)


def test_whole_numbers_do_for_fractions_and_lists_for_tuples():
  found = parse(made(select__temperature=1, stages=["collect"]))
  assert type(found.select.temperature) is float and found.stages == ("collect",)


def test_pretraining_needs_no_models():
  parse({"stages": ("pretrain",), "arms": {}})


# ---------------------------------------------------------------- wrong settings

WRONG = [
  # unknown names
  (dict(select__temprature=1.0), "select.temprature is not a field; did you mean temperature?"),
  (dict(trian={"steps": 1}), "trian is not a field; did you mean train?"),
  (dict(train__zzz=1), "train.zzz is not a field; known: steps, batch_size, length,"),
  (dict(arms={"a": {"treshold": 1.0}}), "arms.a.treshold is not a field; did you mean threshold?"),
  # types
  (dict(select__k="4"), "select.k is '4': it must be of type int"),
  (dict(select__k=4.0), "select.k is 4.0: it must be of type int"),
  (dict(select__k=True), "select.k is True: it must be of type int"),
  (dict(select__temperature="1"), "select.temperature is '1': it must be of type float"),
  (dict(teacher__unroll=1), "teacher.unroll is 1: it must be of type bool"),
  (dict(student__path=None), "student.path is None: it must be of type str"),
  (dict(stages="collect"), "stages is 'collect': it must be of type tuple"),
  (dict(train=7), "train is 7: it must be a dict of fields"),
  (dict(arms=["a"]), "arms is ['a']: it must be a dict of name to changed select fields"),
  (dict(arms={"a": "gen_ssd"}), "arms.a is 'gen_ssd': it must be a dict of changed select fields"),
  (dict(select__threshold=True), "select.threshold is True: it must be of type str or float"),
  # top level
  (
    dict(stages=("collect", "eval")),
    "stages is ('collect', 'eval'): it must be made of cold_start,",
  ),
  (dict(model_parallel=0), "model_parallel is 0: it must be at least 1"),
  (dict(attention="fast"), "attention is 'fast': it must be one of auto, einsum, kernel, cudnn"),
  (dict(arms={}), "arms is {}: it must be a dict of at least one arm"),
  (dict(teacher__path=""), "teacher.path is '': it must be a Hugging Face directory"),
  (dict(student__path=""), "student.path is '': it must be a Hugging Face directory"),
  (dict(teacher__dtype="fp16"), "teacher.dtype is 'fp16': it must be float32 or bfloat16"),
  (dict(teacher__quantization="int4"), "teacher.quantization is 'int4': it must be off or int8"),
  (dict(student__quantization="on"), "student.quantization is 'on': it must be off or int8"),
  (dict(teacher__thinking="yes"), "teacher.thinking is 'yes': it must be on, off or empty"),
  (
    dict(student__chat_template="no.jinja"),
    "student.chat_template is 'no.jinja': it must be the path of a Jinja file that exists",
  ),
  (dict(trackers="wandb"), "trackers is 'wandb': it must be of type tuple"),
  (
    dict(trackers=("wandb", "mlflow")),
    "trackers is ('wandb', 'mlflow'): it must be made of tensorboard, wandb, trackio",
  ),
  (
    dict(trackers=("wandb", "wandb")),
    "it must be made of tensorboard, wandb, trackio, each at most",
  ),
  # problems
  (dict(problems__test=0), "problems.test is 0: it must be at least 1"),
  (dict(problems__train=0), "problems.train is 0: it must be at least 1"),
  (
    dict(problems__test=-1, problems__test_source="gsm8k"),
    "problems.test is -1: it must be at least 1, or 0 for all of a file",
  ),
  (dict(problems__held_out=128), "problems.held_out is 128: it must be 0 to 127"),
  (dict(problems__held_out=-1), "problems.held_out is -1: it must be 0 to 127"),
  (
    dict(problems__held_out_samples=65),
    "problems.held_out_samples is 65: it must be 0 (none) to 64",
  ),
  (dict(problems__overlap=0.0), "problems.overlap is 0.0: it must be above 0 and at most 1"),
  (dict(problems__overlap=1.1), "problems.overlap is 1.1: it must be above 0 and at most 1"),
  (
    dict(problems__source="no/such.jsonl"),
    "problems.source is 'no/such.jsonl': it must be bundled, the path of a .jsonl, .json or",
  ),
  (
    dict(problems__cold_start_source="gsm9k:no/such.jsonl"),
    "problems.cold_start_source is 'gsm9k:no/such.jsonl': it must be a known set before the colon:",
  ),
  (dict(problems__source="gsm8k"), "problems.test_source is '': it must be set"),
  (
    dict(problems__source="gsm8k", tests={"a": {"source": "math500"}, "b": {}}),
    "problems.test_source is '': it must be set",
  ),
  (
    dict(evaluate__source="math501"),
    "evaluate.source is 'math501': it must be bundled, the path of",
  ),
  # sizes that do not fit together
  *(
    (dict(**{f"select__{name}": 0}), f"select.{name} is 0: it must be at least 1")
    for name in ("k", "c", "prompt", "max_tokens", "attempts", "retries", "shard_rounds")
  ),
  (dict(select__c=48), "select.prompt is 64: it must be a multiple of select.c (48)"),
  (dict(select__max_tokens=100), "select.max_tokens is 100: it must be a multiple of select.c (8)"),
  (dict(select__block=20), "select.block is 20: it must be 0 (the whole ring), or a multiple of"),
  (dict(select__block=-8), "select.block is -8: it must be 0"),
  (dict(cold_start__prompt=60), "cold_start.prompt is 60: it must be a multiple of cold_start.c"),
  (dict(arms={"a": {"c": 5}}), "arms.a.prompt is 64: it must be a multiple of arms.a.c (5)"),
  (
    dict(select__loop_window=30),
    "select.loop_window is 30: it must be a multiple of 4, at least 8",
  ),
  (dict(select__loop_window=4), "select.loop_window is 4: it must be a multiple of 4, at least 8"),
  # sampling
  (dict(select__temperature=0.0), "select.temperature is 0.0: it must be above 0 when k > 1"),
  (dict(select__temperature=float("nan")), "select.temperature is nan: it must be above 0"),
  (dict(cold_start__temperature=-1.0), "cold_start.temperature is -1.0: it must be 0 (greedy)"),
  (dict(select__top_k=-1), "select.top_k is -1: it must be 0 (off) or more"),
  (dict(select__top_p=0.0), "select.top_p is 0.0: it must be above 0 and at most 1"),
  (dict(select__top_p=1.5), "select.top_p is 1.5: it must be above 0 and at most 1"),
  (dict(select__delimiters=("\n", "")), "select.delimiters is ('\\n', ''): it must be a tuple of"),
  (
    dict(select__delimiters=(3,)),
    "select.delimiters is (3,): it must be a tuple of texts that are not empty",
  ),
  # choosing
  (
    dict(select__scorer="ppl"),
    "select.scorer is 'ppl': it must be one of perplexity, perplexity_sum, local, anti,",
  ),
  (dict(select__selector="best"), "select.selector is 'best': it must be one of argmin"),
  (
    dict(select__threshold="calibrate"),
    "select.threshold is 'calibrate': it must be off or calibrated, or a number of nats",
  ),
  (dict(select__threshold=float("inf")), "select.threshold is inf: it must be off or a finite"),
  (dict(select__threshold="nan"), "select.threshold is nan: it must be off or a finite number"),
  (dict(select__margin="calibrated"), "select.margin is 'calibrated': it must be off, or a number"),
  (dict(arms={"kd": {"k": 1, "margin": 0.1}}), "arms.kd.margin is 0.1: it must be off when k is 1"),
  (
    dict(select__margin=0.1, select__branch_entropy=1.0),
    "select.margin is 0.1: it must be off when select.branch_entropy is above 0, because a margin",
  ),
  (dict(select__branch_entropy=-1.0), "select.branch_entropy is -1.0: it must be 0 (always k"),
  (dict(select__branch_entropy=101.0), "select.branch_entropy is 101.0: it must be 0 (always k"),
  (dict(select__teacher_share=0.0), "select.teacher_share is 0.0: it must be above 0 and at most"),
  (
    dict(arms={"late": {"granularity": "trace", "teacher_share": 0.5}}),
    "arms.late.teacher_share is 0.5: it must be 1.0 (off) when arms.late.granularity is trace",
  ),
  (dict(select__quantile=0.0), "select.quantile is 0.0: it must be above 0 and at most 1"),
  (dict(select__resamples=-1), "select.resamples is -1: it must be 0 or more"),
  (dict(select__covers="answer"), "select.covers is 'answer': it must be everything or thinking"),
  (
    dict(select__covers="thinking", select__granularity="trace"),
    "select.covers is 'thinking': it must be everything when select.granularity is trace",
  ),
  (
    dict(select__scoring_prompt="none"),
    "select.scoring_prompt is 'none': it must be student or te",
  ),
  (dict(select__pruned="again"), "select.pruned is 'again': it must be drop or retry or keep"),
  (
    dict(arms={"late": {"granularity": "trace", "pruned": "keep"}}),
    "arms.late.pruned is 'keep': it must be drop or retry when arms.late.granularity is trace",
  ),
  (dict(select__keep="good"), "select.keep is 'good': it must be right or all"),
  (
    dict(select__step_delimiters=("",)),
    "select.step_delimiters is ('',): it must be a tuple of texts that are not empty",
  ),
  (dict(select__granularity="token"), "select.granularity is 'token': it must be chunk or trace"),
  (
    dict(select__chooser="teacher"),
    "select.chooser is 'teacher': it must be one of base, cold_start, gen_ssd",
  ),
  (
    dict(arms={"a": {}, "b": dict(chooser="c")}),
    "arms.b.chooser is 'c': it must be one of base, cold_start, a",
  ),
  (
    dict(arms={"a": {}, "b": dict(writer="b")}),
    "arms.b.writer is 'b': it must be one of teacher, base, cold_start, a",
  ),
  (
    dict(arms={"a": dict(train=dict(start="a"))}),
    "arms.a.train.start is 'a': it must be one of base, cold_start",
  ),
  (
    dict(arms={"a": {}, "b": dict(writer="c"), "c": dict(train=dict(start="b"))}),
    "arms.b.writer is 'c': it must be an arm that does not need this one first",
  ),
  (dict(arms={"a": dict(after="a")}), "arms.a.after is 'a': it must be empty"),
  (
    dict(arms={"a": {}, "b": dict(after="base")}),
    "arms.b.after is 'base': it must be empty or one of a",
  ),
  (dict(select__after="c"), "select.after is 'c': it must be empty or one of gen_ssd"),
  (
    dict(arms={"a": dict(after="b"), "b": dict(chooser="c"), "c": dict(train=dict(start="a"))}),
    "arms.a.after is 'b': it must be an arm that does not need this one first",
  ),
  (
    dict(arms={"a": {}, "b": dict(after="a", max_tokens=64)}),
    "arms.b.max_tokens is 64: it must be at least 128, the most tokens of the traces of a",
  ),
  (
    dict(arms={"a": {}, "b": dict(after="a", granularity="trace")}),
    "arms.b.granularity is 'trace': it must be chunk when arms.b.after is set, because",
  ),
  (
    dict(arms={"a": {}, "b": dict(after="a", running_margin=0.5)}),
    "arms.b.running_margin is 0.5: it must be off when arms.b.after is set, because",
  ),
  *[
    (dict(select__cut=cut), f"select.cut is {cut!r}: it must be two numbers from 0 to 1")
    for cut in ((0.6, 0.5), (0.5, 1.5), (-0.1, 0.5), (0.5,), ("0", 1.0))
  ],
  (dict(train__given="skip"), "train.given is 'skip': it must be learn or mask"),
  (
    dict(arms={"a": {}, "b": dict(train=dict(given="mask"))}),
    "arms.b.train.given is 'mask': it must be learn unless arms.b.after is set",
  ),
  (dict(warm_up__given="mask"), "warm_up.given is 'mask': it must be learn: warm_up trains"),
  (dict(cold_start__after="gen_ssd"), "cold_start.after is 'gen_ssd': it must be empty: in the"),
  (dict(arms={"base": {}}), "arms.base is 'base': it must be another name than teacher, base,"),
  (dict(train__credit="grpo"), "train.credit is 'grpo': it must be one of one, signed, advantage"),
  (dict(train__alpha=-1.0), "train.alpha is -1.0: it must be 0 to 1000"),
  (
    dict(train__credit="support", train__cold_traces=True),
    "train.cold_traces is True: it must be False unless train.credit is one",
  ),
  (
    dict(arms={"a": {}, "b": dict(train=dict(also="a", credit="support"))}),
    "arms.b.train.also is 'a': it must be empty unless arms.b.train.credit is one",
  ),
  (
    dict(arms={"a": {}, "b": dict(train=dict(also="a", samples=1.0))}),
    "arms.b.train.also is 'a': it must be empty when arms.b.train.samples is 1",
  ),
  (
    dict(arms={"a": {}, "b": dict(train=dict(also="c"))}),
    "arms.b.train.also is 'c': it must be empty or one of a",
  ),
  (
    dict(arms={"a": dict(train=dict(also="b")), "b": dict(train=dict(start="a"))}),
    "arms.a.train.also is 'b': it must be an arm that does not need this one first",
  ),
  (dict(train__also_share=1.0), "train.also_share is 1.0: it must be above 0 and below 1"),
  (dict(warm_up__also="gen_ssd"), "warm_up.also is 'gen_ssd': it must be empty: warm_up"),
  (
    dict(arms={"a": dict(attempts=2, train=dict(credit="signed"))}),
    "arms.a.keep is 'right': it must be all, because arms.a.train.credit, signed, needs wrong traces",
  ),
  (
    dict(arms={"a": dict(keep="all", train=dict(credit="advantage"))}),
    "arms.a.train.credit is 'advantage': it must be another one unless arms.a.attempts is above 1",
  ),
  (dict(arms={"a": dict(train=3)}), "arms.a.train is 3: it must be a dict of changed train fields"),
  (dict(arms={"a": dict(train=dict(step=3))}), "arms.a.train.step is not a field; did you mean"),
  (dict(arms={"a": dict(train=dict(steps=0))}), "arms.a.train.steps is 0: it must be at least 1"),
  (dict(cold_start__writer="base"), "cold_start.writer is 'base': it must be teacher: in the cold"),
  (dict(select__scorer="morsd"), "select.scorer is 'morsd': it must be one of perplexity"),
  (dict(select__scorer="mix_long"), "select.scorer is 'mix_long': it must be one of perplexity"),
  (
    dict(arms={"late": {"granularity": "trace", "threshold": 2.0}}),
    "arms.late.threshold is 2.0: it must be off when arms.late.granularity is trace, because",
  ),
  (
    dict(arms={"late": {"granularity": "trace", "margin": 2.0}}),
    "arms.late.margin is 2.0: it must be off when arms.late.granularity is trace, because",
  ),
  (
    dict(select__running_margin=-0.5),
    "select.running_margin is -0.5: it must be off, or 0 or more",
  ),
  (
    dict(select__running_margin=0.5, select__scorer="anti"),
    "select.running_margin is 0.5: it must be off, or 0",
  ),
  (
    dict(select__running_margin="on"),
    "select.running_margin is 'on': it must be off, or a number of nats",
  ),
  (dict(select__beta=-1.0), "select.beta is -1.0: it must be 0 (uniform) to 1000000"),
  (dict(select__context=-1), "select.context is -1: it must be 0 (everything) or more"),
  (dict(select__scorer="local"), "select.context is 0: it must be at least 1 when select.scorer"),
  (
    dict(select__context=2, select__granularity="trace"),
    "select.context is 2: it must be 0 (every",
  ),
  (
    dict(cold_start__running_margin=1.0),
    "cold_start.running_margin is 1.0: it must be off: in the cold start there is no",
  ),
  (
    dict(cold_start__granularity="trace"),
    "cold_start.granularity is 'trace': it must be chunk: in the cold start there is",
  ),
  # no student yet
  (dict(cold_start__k=2), "cold_start.k is 2: it must be 1: in the cold start there is no student"),
  (dict(select__refresh=-1), "select.refresh is -1: it must be 0 or more"),
  (
    dict(select__refresh=9, select__chooser="base"),
    "select.refresh is 9: it must be 0 (never) unless select.granularity is chunk and",
  ),
  (
    dict(select__refresh=9, arms={"late": {"granularity": "trace"}}),
    "arms.late.refresh is 9: it must be 0 (never) unless arms.late.granularity is chunk and",
  ),
  (
    dict(cold_start__refresh=9),
    "cold_start.refresh is 9: it must be 0: in the cold start there is no student",
  ),
  (
    dict(cold_start__covers="thinking"),
    "cold_start.covers is 'thinking': it must be everything: in",
  ),
  (
    dict(cold_start__threshold=3.0),
    "cold_start.threshold is 3.0: it must be off: in the cold start",
  ),
  # training and measuring
  (dict(train__steps=0), "train.steps is 0: it must be at least 1"),
  (dict(warm_up__batch_size=0), "warm_up.batch_size is 0: it must be at least 1"),
  (dict(train__block=0), "train.block is 0: it must be at least 1"),
  (dict(train__length=1), "train.length is 1: it must be at least 2"),
  (dict(train__block=48), "train.block is 48: it must be a divisor of train.length (128)"),
  (dict(train__dtype="float16"), "train.dtype is 'float16': it must be float32 or bfloat16"),
  (
    dict(train__terms={"kd": dict(objective="kl")}),
    "train.terms.kd.objective is 'kl': it must be one of nll, fkl, rkl, jsd, rank, pld, entropy, k2",
  ),
  (dict(train__terms={}), "train.terms is {}: it must be a dict of at least one term"),
  (dict(train__terms={"a b": {}}), "train.terms.a b is 'a b': it must be a name of letters"),
  (dict(train__terms={"kd": dict(losses=1)}), "train.terms.kd.losses is not a field; known: obj"),
  (dict(train__terms={"kd": 3}), "train.terms.kd is 3: it must be a dict of changed term fields"),
  (
    dict(train__terms={"kd": dict(objective="fkl", whom="self")}),
    "train.terms.kd.whom is 'self': it must be one of teacher, base, start, lagged",
  ),
  (
    dict(train__terms={"kd": dict(where="answer")}),
    "train.terms.kd.where is 'answer': it must be one of all, opener, uncertain",
  ),
  (
    dict(train__terms={"kd": dict(gate="on")}),
    "train.terms.kd.gate is 'on': it must be one of off, entropy_gap",
  ),
  (
    dict(train__terms={"kd": dict(beta=1.5)}),
    "train.terms.kd.beta is 1.5: it must be 0 (fkl) to 1",
  ),
  (dict(train__terms={"kd": dict(share=0.0)}), "train.terms.kd.share is 0.0: it must be above 0"),
  (dict(train__terms={"kd": dict(scale=-1.0)}), "train.terms.kd.scale is -1.0: it must be 0 to"),
  (
    dict(train__terms={"kd": dict(temperature=(1.0,))}),
    "train.terms.kd.temperature is (1.0,): it must be two numbers from 0.01 to 100",
  ),
  (
    dict(train__terms={"kd": dict(objective="rank")}),
    "train.terms.kd.top_k is 0: it must be at least 2 with the objective rank",
  ),
  (
    dict(train__terms={"kd": dict(top_k=5)}),
    "train.terms.kd.top_k is 5: it must be 0 unless the objective is one of rank, pld, fkl",
  ),
  (dict(train__lag=0), "train.lag is 0: it must be at least 1"),
  (
    dict(train__credit="support", train__terms={"kd": dict(objective="fkl")}),
    "train.credit is 'support': it must be one unless a term of train.terms has the objective nll",
  ),
  (dict(train__learning_rate=0.0), "train.learning_rate is 0.0: it must be above 0"),
  (dict(train__learning_rate=float("inf")), "train.learning_rate is inf: it must be above 0 and"),
  (dict(train__learning_rate=float("nan")), "train.learning_rate is nan: it must be above 0 and"),
  (dict(warm_up__clip=0.0), "warm_up.clip is 0.0: it must be above 0 and at most"),
  (dict(train__weight_decay=float("nan")), "train.weight_decay is nan: it must be 0 to 1000"),
  (dict(train__final_rate=-0.1), "train.final_rate is -0.1: it must be 0 to 1000"),
  (dict(train__beta1=1.0), "train.beta1 is 1.0: it must be at least 0 and below 1"),
  (dict(train__beta2=-0.5), "train.beta2 is -0.5: it must be at least 0 and below 1"),
  (dict(train__too_long="ignore"), "train.too_long is 'ignore': it must be cut, drop or refuse"),
  (dict(arms={"": {}}), "arms. is '': it must be a name of letters, digits"),
  (dict(arms={"a/b": {}}), "arms.a/b is 'a/b': it must be a name of letters, digits"),
  (dict(train__start="kept"), "train.start is 'kept': it must be one of base, cold_start, gen_ssd"),
  (dict(warm_up__start="cold_start"), "warm_up.start is 'cold_start': it must be base: warm_up"),
  (
    dict(warm_up__cold_traces=True),
    "warm_up.cold_traces is True: it must be False: warm_up",
  ),
  (dict(train__warmup_steps=-1), "train.warmup_steps is -1: it must be 0 to train.steps"),
  (dict(evaluate__slots=0), "evaluate.slots is 0: it must be at least 2"),
  (dict(select__slots=1), "select.slots is 1: it must be at least 2"),
  (dict(evaluate__samples=0), "evaluate.samples is 0: it must be at least 1"),
  (dict(evaluate__samples=4), "evaluate.samples is 4: it must be 1 when evaluate.temperature is 0"),
  (dict(evaluate__temperature=-1.0), "evaluate.temperature is -1.0: it must be 0 (greedy), or"),
  (dict(evaluate__top_p=0.0), "evaluate.top_p is 0.0: it must be above 0 and at most 1"),
  # several tests
  (dict(tests=("a",)), "tests is ('a',): it must be a dict of name to changed evaluate fields"),
  (dict(tests={"a": {"sample": 2}}), "tests.a.sample is not a field; did you mean samples?"),
  (
    dict(tests={"a": {"samples": 2}}),
    "tests.a.samples is 2: it must be 1 when tests.a.temperature",
  ),
  (
    dict(tests={"a": {"source": "bundled"}}),
    "tests.a.limit is 0: it must be at least 1 for bundled",
  ),
  (dict(tests={"a": {"limit": -1}}), "tests.a.limit is -1: it must be at least 1 for"),
  (dict(tests={"a": {"max_tokens": 12}}), "tests.a.max_tokens is 12: it must be 0 (as select.max"),
  (dict(tests={"a": {"source": "no.jsonl"}}), "tests.a.source is 'no.jsonl': it must be bundled,"),
  (dict(pretrain__documents="books"), "pretrain.documents is 'books': it must be lessons or plain"),
]


@pytest.mark.parametrize("changes,message", WRONG, ids=[m.split(":")[0] for _, m in WRONG])
def test_wrong_settings_are_explained(changes, message):
  with pytest.raises(ValueError) as caught:
    parse(made(**changes))
  assert message in str(caught.value)


def test_sizes_that_do_fit():
  parse(
    made(
      select__c=16,
      select__block=32,
      select__resamples=1,
      train__block=64,
      evaluate__samples=4,
      evaluate__temperature=0.7,
    )
  )


def test_tests_are_evaluate_with_changes():
  found = parse(
    made(
      evaluate__slots=8,
      problems__source="gsm8k",
      tests={
        "aime24": dict(source="aime24", samples=16, temperature=0.6),
        "gsm8k": dict(source="gsm8k"),
      },
    )
  )
  tests = dict(found.tests)
  assert (tests["aime24"].samples, tests["aime24"].slots, tests["gsm8k"].samples) == (16, 8, 1)
  assert (
    parse(made(problems__source="gsm8k", problems__test_source="gsm8k", problems__train=0)).tests
    == ()
  )


@pytest.mark.parametrize(
  "changes,slots",
  [
    ({}, 64 + 128),
    (dict(resamples=2), 64 + 128 + 2 * 8),
    (dict(block=80), 240),
    (dict(delimiters=("\n",)), 64 + 2 * 128),
    (dict(block=64), 192),
    (dict(branch_entropy=0.5), 64 + 2 * 128),
    (dict(branch_entropy=0.5, delimiters=("\n",)), 64 + 3 * 128),
  ],
)
def test_slots_of_the_ring(changes, slots):
  assert config.ring_slots(config.Select(**changes)) == slots


# ---------------------------------------------------------------- collections


def test_arms_that_write_the_same_traces_share_one_collection():
  hashes = lambda **arms: [
    workdir_lib.short_hash(config.collection(arm.select)) for _, arm in parse(made(arms=arms)).arms
  ]
  trace = dict(granularity="trace")
  one = hashes(
    a=trace,
    b={**trace, "scorer": "mix_long"},
    c={**trace, "k": 2, "attempts": 2},
    d=dict(k=1, attempts=4),
    e=dict(k=1, attempts=4, scorer="rsr", keep="all"),
    f=dict(k=1, attempts=4, quantile=0.5),
    g=dict(k=1, attempts=4, pruned="keep", retries=3),
    h={**trace, "selector": "softmin", "beta": 2.0},
    i=dict(k=1, attempts=4, teacher_share=0.5, branch_entropy=1.0),
  )
  assert len({*one}) == 1 and len(one[0]) == 10 and one[0].isalnum()
  other = hashes(
    a=trace,
    b=dict(k=1),
    c={},
    d=dict(scorer="random"),
    e=dict(threshold="calibrated"),
    f=dict(threshold="calibrated", quantile=0.5),
    g={**trace, "chooser": "base"},
    h={**trace, "seed": 1},
    i={**trace, "delimiters": ("x",)},
    j=dict(k=1, threshold=2.0),
    k=dict(k=1, threshold=2.0, scorer="rsr"),
    l=dict(pruned="retry"),
    m=dict(pruned="retry", retries=2),
    n=dict(covers="thinking"),
    o={**trace, "scoring_prompt": "teacher"},
    p=dict(refresh=9),
    q=dict(refresh=9, keep="all"),
    r=dict(refresh=9, pruned="keep"),
    s=dict(teacher_share=0.5),
    t=dict(branch_entropy=1.0),
    u=dict(selector="softmin"),
    v=dict(selector="softmin", beta=2.0),
  )
  assert len({*other}) == len(other)


def test_a_collection_that_goes_on_from_another_depends_on_it():
  def names(first, **more):
    arms = parse(made(arms={"a": first, "b": dict(k=1, **more)})).arms
    return [workdir_lib.collection_hash(arm.select, arms) for _, arm in arms]

  plain, _ = names(dict(k=1, keep="all"))
  assert [plain, plain] == names(dict(k=1), cut=(0.1, 0.2))  # which is not used
  first, after = names(dict(k=1), after="a")
  assert first == plain != after
  assert [first, after] == names(dict(k=1, keep="all"), after="a")
  others = [
    names(dict(k=1, seed=1), after="a"),
    names(dict(k=1), after="a", cut=(0.5, 0.5)),
  ]
  assert len({after, *(b for _, b in others)}) == 3
  arms = {"a": dict(attempts=3), "b": dict(after="a", attempts=2), "c": dict(after="b")}
  arms["a"] |= dict(pruned="retry", retries=1)
  found = parse(made(arms=arms)).arms
  assert [config.attempts(arm.select, found) for _, arm in found] == [3, 12, 12]


# ---------------------------------------------------------------- workdir


def test_a_workdir_belongs_to_one_config(tmp_path):
  claim = lambda **changes: tiny.claim(tmp_path / "run", parse(made(**changes)))
  claim()
  claim()
  claim(stages=("report",))  # other stages may follow
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["stages"] == ["report"] and saved["arms"]["gen_ssd"]["k"] == 4
  for changes, message in (
    (dict(train__steps=70), "train.steps is 200 there and 70 here"),
    (dict(arms={"gen_ssd": {"k": 2}}), "arms.gen_ssd.k is 4 there and 2 here"),
    (dict(arms={"gen_ssd": {}, "more": {}}), "arms.more is None there and {"),
    (dict(tests={"aime24": {"source": "aime24"}}), "tests.aime24 is None there and {"),
    (dict(select__threshold=1.5), "threshold is 'off' there and 1.5 here"),
  ):
    with pytest.raises(ValueError) as caught:
      claim(**changes)
    said = str(caught.value)
    assert f"workdir {tmp_path / 'run'} belongs to another config: " in said
    assert message in said and "use another --workdir" in said
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == saved


def test_a_workdir_made_before_a_setting_existed_has_its_default(tmp_path):
  tiny.claim(tmp_path, parse(made()))
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  for part in (old["select"], *old["arms"].values()):
    del part["top_p"]
  path.write_text(json.dumps(old))
  with pytest.raises(ValueError, match=r"top_p is 1.0 there and 0.5 here"):
    tiny.claim(tmp_path, parse(made(select__top_p=0.5)))
  tiny.claim(tmp_path, parse(made()))
  path.write_text(json.dumps({**json.loads(path.read_text()), "gone": 1}))
  with pytest.raises(ValueError, match="gone is 1 there"):
    tiny.claim(tmp_path, parse(made()))


def test_a_workdir_belongs_to_the_precision_of_its_models(tmp_path):
  tiny.claim(tmp_path, parse(made()))
  for field, value, old in (("quantization", "int8", "off"), ("dtype", "bfloat16", "float32")):
    with pytest.raises(ValueError, match=f"teacher.{field} is '{old}' there and '{value}' here"):
      tiny.claim(tmp_path, parse(made(**{f"teacher__{field}": value})))


def test_a_folder_is_named_by_what_is_not_default():
  select = config.Select(k=2)
  assert workdir_lib.short_hash(select) == workdir_lib.short_hash(config.Select(k=2, top_p=1.0))
  assert workdir_lib.short_hash(select) != workdir_lib.short_hash(config.Select(k=3))


def test_a_workdir_belongs_to_its_models(tmp_path):
  one = parse(made())
  tiny.claim(tmp_path, one, {"teacher.path": "abc"})
  tiny.claim(tmp_path, one, {"teacher.path": "abc"})
  with pytest.raises(
    ValueError, match="what teacher.path names has the hash 'abc' there and 'xyz'"
  ):
    tiny.claim(tmp_path, one, {"teacher.path": "xyz"})
  with pytest.raises(ValueError, match="another config: teacher.path"):  # the setting comes first
    tiny.claim(tmp_path, parse(made(teacher__path="elsewhere")), {"teacher.path": "xyz"})


def test_files_are_there_whole_or_not_at_all(tmp_path):
  folders.write(tmp_path / "a.json", "old")
  with pytest.raises(TypeError):
    folders.write(tmp_path / "a.json", 5)
  assert (tmp_path / "a.json").read_text() == "old"


# ---------------------------------------------------------------- config files

ARGUMENTS = {
  "bundled.py": ("teacher", "student"),
  "own.py": ("bundled/teacher,bundled/student,gsm8k",),
}
FILES = [
  (path.name, arg)
  for path in sorted(CONFIGS.glob("*.py"))
  for arg in ARGUMENTS.get(path.name, ("",))
]


@pytest.mark.parametrize("name,arg", FILES)
def test_config_files(name, arg):
  spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), CONFIGS / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(arg) if arg else module.get_config()
  assert isinstance(c, ml_collections.ConfigDict) and module.__doc__
  if "pretrain" not in c.stages and not c.teacher.path:  # default.py leaves the models to flags
    assert name in ("default.py", "paper.py")
    c.teacher.path, c.student.path = "some/teacher", "some/student"
  found = parse(c)
  if name == "bundled.py":
    assert found.name == f"bundled-{arg}" and found.pretrain.documents
    with pytest.raises(ValueError, match="one of teacher, student"):
      module.get_config("both")
