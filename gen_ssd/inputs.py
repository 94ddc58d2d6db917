"""Loads what a config names: models, tokenizers, problems and tests."""

import functools
import hashlib
import json
import pathlib

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd.errors import UserError
from gen_ssd.models import attention
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import fields
from gen_ssd.problems import files
from gen_ssd.problems import overlap
from gen_ssd.problems import problem as problem_lib
from gen_ssd.problems import sets

# Layout of a student that is not split: all weights on each device, slots over both mesh axes.
ALONE = dict(batch_axes=mesh_lib.AXES, tensor_axis=None)


def layout(config, who, **placement):
  """The Layout of the config's teacher or student (`who`) in generation; `placement` changes it."""
  model = getattr(config, who)
  own = dict(dtype=model.dtype, quantization=model.quantization, unroll=model.unroll)
  own |= dict(attention=attention.implementation(config.attention))
  own |= dict(outputs_first=attention.platform() == "cpu")
  alone = who == "student" and not config.split_student
  return Layout(**own | (ALONE if alone else {}) | placement)


def identities(config):
  """{field: hash} of what the config names: files of models, chat templates, and problems."""
  if config.stages == ("pretrain",):
    return {}
  found = {
    f"{who}.path": hf.identity(hf.locate(getattr(config, who).path))
    for who in ("teacher", "student")
  }
  for who in ("teacher", "student"):
    if template := getattr(config, who).chat_template:
      content = pathlib.Path(template).read_bytes()
      found[f"{who}.chat_template"] = hashlib.sha256(content).hexdigest()[:16]
  for field, split, e in splits(config):
    asked = [[p.uuid, p.problem, p.answer] for p in drawn(config, split, e)]
    found[field] = problem_lib.digest(json.dumps(asked))[:16]
    if e and e.examples:
      found[f"{field}.examples"] = problem_lib.digest(json.dumps(examples(e)))[:16]
  return found


def tests(config):
  """((name, Evaluate), ...): the test sets of a config. A single one may have an empty name."""
  return config.tests or (("", config.evaluate),)


def splits(config):
  """[(field, split, Evaluate or None)] of the problems that a config uses."""
  named = [(f"tests.{name}" if name else "problems.test", "test", e) for name, e in tests(config)]
  if not config.arms:
    return named
  return [("problems.cold_start", "cold_start", None), ("problems.train", "train", None), *named]


@functools.cache  # every stage asks for it
def _examples(path):
  found = []
  for line, row in files.rows(path):
    try:
      found.append((fields.text(row, "problem", "question"), fields.text(row, "solution")))
    except (fields.Layout, AttributeError) as error:
      raise UserError(f"{line}{error}: an example has a problem and a solution") from None
  return tuple(found)


def examples(e):
  """((problem, solution), ...) that every prompt of a test shows. Raises UserError for a bad file."""
  return _examples(e.examples) if e.examples else ()


def answering(config, e):
  """The Select for students' answers to test problems: plain sampling with the settings of `e`."""
  return config_lib.alone(
    config.select,
    slots=e.slots,
    temperature=e.temperature,
    top_p=e.top_p,
    top_k=0,
    max_tokens=e.max_tokens or config.select.max_tokens,
    attempts=e.samples,
    seed=e.seed,
  )


def sampling(config):
  """The Select for the teacher's traces to held-out problems; None: there are none.

  They are sampled as `select` says, with the sizes of `cold_start`, whose problems they answer.
  """
  p, like = config.problems, config.select
  wanted = config.arms and p.held_out and p.held_out_samples
  if not wanted or "teacher" not in config.references or like.temperature == 0:
    return None
  drawn = {name: getattr(like, name) for name in ("temperature", "top_k", "top_p", "seed")}
  return config_lib.alone(config.cold_start, attempts=p.held_out_samples, **drawn)


def part(config, split, e=None):
  """(source, number of problems or 0 for all, problems to skip) of a split.

  `split` is cold_start, train or test. Training skips the first problems of its source when the
  cold start uses the same source.
  """
  p = config.problems
  if split == "test":
    e = e or tests(config)[0][1]
    return (e.source, e.limit, 0) if e.source else (p.test_source or p.source, e.limit or p.test, 0)
  shared = p.cold_start_source in ("", p.source) and p.source != "bundled"
  if split == "cold_start":
    return p.cold_start_source or p.source, p.cold_start, 0
  return p.source, p.train, p.cold_start if shared else 0


def problems(config, split, e=None):
  """The problems of a split; `e` is the Evaluate of a test set. See `part`.

  Those of cold_start and train are without the near duplicates of test problems.
  """
  found = drawn(config, split, e)
  if split == "test":
    return found
  left_out = {m.training for _, m in near_duplicates(config)}
  return [p for p in found if p not in left_out]


def drawn(config, split, e=None):
  """The problems of a split as its source gives them, with the near duplicates of test problems."""
  source, count, skip = part(config, split, e)
  return sets.load(source, split, count, config.problems.seed, skip)


def near_duplicates(config):
  """[(name of the test set or `test`, Match)] of the training problems that are left out.

  Each is in it once, those of the cold start first.
  """
  learnt = [s for _, s, _ in splits(config) if s != "test" and part(config, s)[0] != "bundled"]
  training, found = tuple(p for split in learnt for p in drawn(config, split)), {}
  for name, e in tests(config) if training else ():
    for match in _near(training, tuple(drawn(config, "test", e)), config.problems.overlap):
      other = found.get(match.training)
      if other is None or match.share > other[1].share:
        found[match.training] = name or "test", match
  return [found[p] for p in training if p in found]


@functools.lru_cache(maxsize=16)  # every stage asks for the same; files may change meanwhile
def _near(training, asked, share):
  return overlap.near(training, asked, share)


def tokenizer(model, path=None):
  """The tokenizer of a config's Model, or of the student trained from it, at `path`.

  A trained student is exported with its chat template, so the settings of `model` are not applied.
  """
  if path in (None, hf.locate(model.path)):
    return tokenization.load_tokenizer(hf.locate(model.path), model.chat_template, model.thinking)
  return tokenization.load_tokenizer(hf.locate(path))


def load(config, who, path=None, **placement):
  """Weights and tokenizer of the config's teacher or student (`who`), laid out as `layout` says.

  `path` names other weights, such as those of a trained student.
  """
  model = getattr(config, who)
  path = hf.locate(path or model.path)
  return weights.load(path, layout(config, who, **placement)), tokenizer(model, path)


def training_pairs(config, rows, writer="teacher"):
  """[(prompt ids, response ids)] of trace rows, as the base student reads them.

  `writer` is that of Select: whose token ids they are.

  The student's own end token replaces the writer's. Between different tokenizers the text of the
  trace is encoded again. Raises ValueError when the student's chat template changes a trace.
  """
  own, system = tokenizer(config.student), config.problems.system or None
  its = config.teacher if writer == "teacher" else config.student
  ends = tokenization.eos_ids(hf.locate(its.path), own)
  differ = config.translate and tokenization.differences(tokenizer(its), own)
  pairs = []
  for r in rows:
    if differ:
      text = r["text"].removeprefix(r["opened"])
      ids = own.encode(text, add_special_tokens=False)
      ids += [own.eos_token_id] * (r["stop"] == "ended")
    else:
      ids = [*r["ids"][:-1], own.eos_token_id] if r["ids"][-1] in ends else r["ids"]
    row, start = tokenization.render_row(own, r["problem"], ids, system, r["opened"])
    pairs.append((row[:start], row[start:]))
  return pairs
