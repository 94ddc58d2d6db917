"""Everything that a run needs, looked at before it computes anything.

Every check raises a UserError that names the field or the file, what it is, and what would be right.
"""

from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import inputs
from gen_ssd import memory
from gen_ssd import trackers
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import posthoc
from gen_ssd.collect import writer as writer_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import fail
from gen_ssd.models import hf
from gen_ssd.models import split_sequences
from gen_ssd.models import tokenization
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from gen_ssd.problems import problem as problem_lib
from gen_ssd.training import terms

MOST_TRACES = 10**7  # of one collection: their names alone fill a gigabyte


def check(config):
  """Raises UserError for the first invalid setting, model, vocabulary or problem file."""
  config_checks.check(config)
  trackers.check(config.trackers)
  if config.stages != ("pretrain",):
    _check_problems(config, _check_models(config))


def _check_models(config):
  """[(tokenizer, size of the model's vocabulary)] of teacher and student, both checked."""
  vocab = {}
  for who in ("teacher", "student"):
    path = hf.locate(getattr(config, who).path)
    arch = hf.read_architecture(path)
    weights.check_files(path, arch)
    vocab[who] = arch.vocab
  pair = [inputs.tokenizer(config.teacher), inputs.tokenizer(config.student)]
  for who, own in zip(vocab, pair):
    path = hf.locate(getattr(config, who).path)
    tokenization.check_ids(own, tokenization.eos_ids(path, own), vocab[who])
  if pair[1].eos_token_id is None:
    raise UserError(f"{hf.locate(config.student.path)}: its tokenizer must have an eos_token")
  if not config.translate:
    tokenization.shared_vocabulary(*pair)
  tokenization.check_thoughts(*pair, "1 + 0?", config.problems.system or None)
  differ = config.translate and bool(tokenization.differences(*pair))
  parts = [("cold_start", config.cold_start), *((f"arms.{n}", a.select) for n, a in config.arms)]
  for where, select in parts:
    _check_words(select, where, pair, vocab, differ)
  _check_given(config, pair, differ)
  for field, train in config_lib.trainings(config).items():
    _check_terms(train, field, vocab, differ)
    if train.credit == "gap" and differ:
      fail(
        f"{field}.credit",
        "gap",
        "another one, because the tokenizers of teacher and student differ",
      )
  _check_terms(config.warm_up, "warm_up", vocab, differ)
  return [*zip(pair, vocab.values())]


def _check_terms(train, field, vocab, differ):
  """What terms of a loss say of vocabularies, where the tokenizers may `differ`."""
  for name, term in train.terms:
    size = vocab["student"]
    if terms.needs_other(term) and term.whom == "teacher":
      size = min(vocab.values())
      if differ:
        fail(
          f"{field}.terms.{name}.whom",
          "teacher",
          "another model, because the tokenizers of teacher and student differ",
        )
    if term.top_k > size:
      fail(
        f"{field}.terms.{name}.top_k",
        term.top_k,
        f"0 (off) to {size}, the size of the vocabulary",
      )


def _check_words(s, where, pair, vocab, differ):
  """What a Select says of its writer's vocabulary, and of tokenizers that `differ`."""
  who = "teacher" if s.writer == "teacher" else "student"
  own, size = pair[who == "student"], vocab[who]
  if s.top_k > size:
    fail(f"{where}.top_k", s.top_k, f"0 (off) to {size}, the size of the {who}'s vocabulary")
  for name in ("delimiters", "step_delimiters"):
    if unseen := tokenization.unseen_delimiters(own, getattr(s, name)):
      fail(f"{where}.{name}", unseen[0], f"the end of at least one token of the {who}'s vocabulary")
  differ = differ and who == "teacher"
  again = s.granularity == "trace" and posthoc.reads_again(s.scorer)
  for field, wrong in (("scorer", again), ("scoring_prompt", s.scoring_prompt == "teacher")):
    if differ and wrong:  # both give the teacher's token ids to the student
      fail(f"{where}.{field}", getattr(s, field), "another one when the tokenizers differ")
  try:
    writer_lib.closing(own, s)
  except UserError as error:
    raise UserError(f"{where}.covers is 'thinking': {error}; set it to everything") from None


def _check_given(config, pair, differ):
  """Traces that arms go on from must be such as the new writers could have begun themselves."""
  system, begin = config.problems.system or None, []
  for own in pair:
    prompt = tokenization.chat_prompt(own, "1 + 0?", system)
    begin.append(own.decode(tokenization.opening(own, prompt)))
  by_name = dict(config.arms)
  for name, arm in config.arms:
    if not (after := arm.select.after):
      continue
    if differ and arm.select.writer == "teacher" and arm.train.given == "mask":
      why = "because the text of traces is encoded again for the student"
      fail(f"arms.{name}.train.given", "mask", f"learn when the tokenizers differ, {why}")
    if (arm.select.writer == "teacher") == (by_name[after].select.writer == "teacher"):
      continue
    if differ or begin[0] != begin[1]:
      why = "tokenizers of teacher and student differ"
      if not differ:
        why = "chat templates of teacher and student begin the thinking part differently"
      fail(f"arms.{name}.after", after, f"an arm with the same kind of writer, because the {why}")


def _check_problems(config, models):
  """Counts, prompts, that no problem is in two splits, and what is left without near duplicates."""
  used = [config.select, *(arm.select for _, arm in config.arms)]
  used += [config.cold_start] * ("cold_start" in config.stages)
  tightest = min(used, key=lambda s: s.prompt)
  home, pair, system = {}, [own for own, _ in models], config.problems.system or None
  for field, split, e in inputs.splits(config):
    field += ".limit" * field.startswith("tests.")
    problems, count = inputs.drawn(config, split, e), inputs.part(config, split, e)[1]
    if len(problems) < max(count, 1):
      raise UserError(f"{field} is {count}: the source has only {len(problems)} problems")
    _check_traces(config, split, len(problems), e)
    shown = inputs.examples(e) if e else ()
    prompts = writer_lib.check_prompts(problems, pair, tightest, system, shown)
    _check_length(config, split, min(len(student) for _, student in prompts.values()))
    if split == "train":
      _check_asked(config, len(problems))
    for i, (own, vocab) in enumerate(models):
      tokenization.check_ids(own, {t for both in prompts.values() for t in both[i]}, vocab)
    for p in problems:
      if any(tokenization.is_unknown(own, p.problem) for own in pair):
        raise UserError(
          f"{field}: problem {p.uuid} is {clip(p.problem, 60)!r}: it must have a word that both "
          "tokenizers know"
        )
      text = problem_lib.normal(p.problem)  # a problem may have another uuid elsewhere
      owners = [home.setdefault(key, (split, field)) for key in (p.uuid, text)]
      other = next((f for s, f in owners if s != split), None)
      if other:  # test sets may share problems with each other
        raise UserError(
          f"{field} and {other} share problem {p.uuid}: {p.problem[:60]!r}; use "
          "different problems for them"
        )
  needs = {"cold_start": config.problems.held_out, "train": 0} if config.arms else {}
  for split, needed in needs.items():
    if (left := len(inputs.problems(config, split))) <= needed:
      raise UserError(
        f"problems.overlap is {config.problems.overlap}: without near duplicates of test problems, "
        f"{left} problems of problems.{split} are left; it must leave more than {needed}: raise it, "
        "or use other problems"
      )


def _check_asked(config, count):
  """A round of a student's own writing asks each problem once."""
  for field, train in config_lib.trainings(config).items():
    if train.asked > count:
      fail(f"{field}.asked", train.asked, f"0 (all) to {count}, the number of training problems")
    if train.samples and count * train.answers > MOST_TRACES:
      fail(f"{field}.answers", train.answers, f"at most {MOST_TRACES // count}")


def _check_length(config, split, shortest):
  """A training needs room for a token after the `shortest` prompt that the student reads."""
  warm_up = {"warm_up": config.warm_up}
  parts = {"cold_start": warm_up, "train": config_lib.trainings(config)}.get(split, {})
  for field, train in parts.items() if split in config.stages else ():
    if train.length <= shortest:
      fail(f"{field}.length", train.length, f"above {shortest}, the tokens of the shortest prompt")


def _check_traces(config, split, problems, e):
  """The number of traces that a collection would write of `problems` problems."""
  if split == "test":
    rows = [("samples of a test", e.samples)]
  elif split == "cold_start":
    rows = [("cold_start.attempts", config.cold_start.attempts)]
  else:
    selects = [(name, arm.select) for name, arm in config.arms]
    rows = [(f"arms.{n}.attempts", config_lib.attempts(s, config.arms)) for n, s in selects]
    rows += [(f"arms.{n}.retries", s.retries) for n, s in selects if s.pruned == "retry"]
  for field, each in rows:
    if problems * each > MOST_TRACES:
      fail(field, each, f"at most {MOST_TRACES // problems} for {problems} problems")


def check_devices(config, mesh):
  """Raises UserError for sizes that the devices of a mesh cannot split or do not have memory for."""
  homes = {"kernel": ("gpu", "tpu"), "cudnn": ("gpu",)}.get(config.attention)
  if homes and (platform := mesh.devices.flat[0].platform) not in homes:
    fail("attention", config.attention, f"auto or einsum on devices of the kind {platform}")
  if config.stages != ("pretrain",):
    _check_tensor_parallel(config)
  for field, value, size in _split_sizes(config, mesh):
    if value % size:
      fail(field, value, f"a multiple of {size}, the number of devices that split it")
  _check_split_sequences(config, mesh.shape["model"])
  have = memory.available(mesh.local_devices[0])
  for where, need, sizes in _needs(config, mesh):
    if need > have:
      raise UserError(
        f"{where} needs at least {need / 1e9:,.1f} GB of memory on each of {mesh.size} devices, which "
        f"have {have / 1e9:,.1f} GB: lower {sizes}"
      )


def _check_tensor_parallel(config):
  """`model_parallel` devices must be able to divide the weights of every model that is split."""
  for model in (config.teacher, *[config.student] * config.split_student):
    path = hf.locate(model.path)
    weights.check_split(path, hf.read_architecture(path), Layout())


def _check_split_sequences(config, size):
  """`size` devices must divide the sequences and the heads of all models that read them."""
  if "pretrain" in config.stages and config.train.split_sequences:
    fail("train.split_sequences", True, "False in the stage pretrain, whose sequences are short")
  for field, train in _trainings(config).items():
    if not train.split_sequences:
      continue
    for name, value in (("length", train.length), ("block", min(train.block, train.length))):
      if value % size:
        fail(f"{field}.{name}", value, f"a multiple of model_parallel ({size})")
    for who in ("student", *["teacher"] * ("teacher" in terms.models(train))):
      arch = hf.read_architecture(hf.locate(getattr(config, who).path))
      if not split_sequences.divides(arch, size):
        heads = f"{arch.kv_heads} key-value heads, each for {arch.groups} query heads"
        fail(
          f"{field}.split_sequences", True, f"False: {size} devices cannot share {heads} ({who})"
        )


def _split_sizes(config, mesh):
  """[(field, value, number of devices that split it)] of the stages of a config."""
  if "pretrain" in config.stages:
    return [("train.batch_size", config.train.batch_size, mesh.size)]
  student = mesh.shape["data"] if config.split_student else mesh.size
  splits = lambda train: mesh.shape["data"] if train.split_sequences else mesh.size
  rows = [(f"{n}.batch_size", t.batch_size, splits(t)) for n, t in _trainings(config).items()]
  if {"collect", "cold_start"} & {*config.stages}:
    rows += [("cold_start.slots", config.cold_start.slots, mesh.shape["data"])]  # without a student
    rows += [(f"arms.{name}.slots", arm.select.slots, student) for name, arm in config.arms]
  if "evaluate" in config.stages:
    if inputs.sampling(config):
      rows.append(("cold_start.slots", config.cold_start.slots, mesh.shape["data"]))
    rows += [
      (f"tests.{name}.slots" if name else "evaluate.slots", e.slots, student)
      for name, e in inputs.tests(config)
    ]
  return rows


def _trainings(config):
  """{field: Train} of the settings that the stages of a config use."""
  refreshed = "collect" in config.stages and any(arm.select.refresh for _, arm in config.arms)
  used = refreshed or {"cold_start", "train"} & {*config.stages}
  return {"warm_up": config.warm_up, **config_lib.trainings(config)} if used else {}


def _needs(config, mesh):
  """[(what, bytes per device at least, the settings to lower)] of the stages of a config."""
  if "pretrain" in config.stages:
    return []
  models = {}
  for who in ("teacher", "student"):
    arch = hf.read_architecture(hf.locate(getattr(config, who).path))
    models[who] = Spec(arch, inputs.layout(config, who))
  collecting = ("slots", "k", "c", "prompt", "max_tokens", "resamples", "loop_window")
  training = ("batch_size", "length", "accumulate")
  named = lambda where, s, names: ", ".join(f"{where}.{n} ({getattr(s, n)})" for n in names)
  rows = []
  for where, s, student in [
    ("cold_start", config.cold_start, None),
    *((f"arms.{n}", arm.select, models["student"]) for n, arm in config.arms),
  ]:
    who = "teacher" if s.writer == "teacher" else "student"
    need = memory.collecting(s, models[who], student, mesh.size, mesh.shape["model"])
    rows.append((where, need, named(where, s, collecting)))
  for name, e in inputs.tests(config) if "evaluate" in config.stages else ():
    where, answers = f"tests.{name}" if name else "evaluate", inputs.answering(config, e)
    for who in ("student", "teacher"):
      if who == "student" or who in config.references:
        need = memory.collecting(answers, models[who], None, mesh.size, mesh.shape["model"])
        rows.append((where, need, named(where, e, ("slots", "max_tokens"))))
  for name, train in _trainings(config).items():
    own = models["student"]
    read = {"teacher": models["teacher"], "lagged": Spec(own.arch, Layout())}
    others = [read.get(whom, own) for whom in terms.models(train)]
    need = memory.training(train, own.arch, others, mesh.size)
    rows.append((name, need, named(name, train, training)))
  return rows


def check_earlier(config, workdir):
  """Raises UserError when a stage needs what no stage before it makes and `workdir` does not hold."""
  cold, arms = "cold_start/student", [name for name, _ in config.arms]
  kept = [f"arms/{name}/kept.json" for name in arms]
  early = config_lib.trained_early(config.arms)
  trains = [arm.train for _, arm in config.arms]
  at_once = [arm.train for name, arm in config.arms if name in early]
  collecting = {x for _, arm in config.arms for x in (arm.select.writer, arm.select.chooser)}
  needs = {
    "collect": [
      *[("cold_start", cold)] * ("cold_start" in collecting | {t.start for t in at_once}),
      *[("cold_start", "cold_start/traces")] * any(t.cold_traces for t in at_once),
    ],
    "train": [
      *[("collect", path) for path in kept],
      *[("cold_start", cold)] * any(t.start == "cold_start" for t in trains),
      *[("cold_start", "cold_start/traces")] * any(t.cold_traces for t in trains),
    ],
    "evaluate": [
      *[("collect", path) for path in kept],
      *[("train", f"arms/{n}/seed-{i}/student") for n in arms for i in range(config.seeds)],
    ],
  }
  done = set()
  for stage in config.stages:
    for maker, path in needs.get(stage, []):
      if maker not in done and not _is_there(workdir / path):
        raise UserError(
          f"stages is {config.stages}: {stage} needs {path} of the workdir, which {maker} makes and "
          f"which is not there; put {maker} before {stage}"
        )
    done.add(stage)


def _is_there(path):
  return workdir_lib.has_student(path.parent) if path.name == "student" else path.exists()
