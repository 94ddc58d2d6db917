"""What is measured of students beside their answers. Each reads a few texts, once.

HOME/held_out.json     {uuid: mean nll of a right answer of the teacher to a test problem}
HOME/instruments.json  {name: {uuid: figure}}, in nats per token; each figure is a mean over a text
  own_entropy        the student's entropy, on its own answers to test problems
  kl_own             KL(student || teacher), on the same
  kl_data            KL(teacher || student), on the answers of held_out.json
  wrong_minus_right  nll of wrong traces of the teacher minus that of right ones, to problems that no
                     arm is trained on; both means over the traces of one problem

Divergences need equal tokenizers.
"""

import json

import jax
import numpy as np

from gen_ssd import collecting
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import mesh as mesh_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import posthoc
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.training import fidelity
from gen_ssd.training import train as train_lib

MOST = 64  # problems whose texts a student reads, of each kind


def read(config, workdir, students):
  """Writes the files of `students`, [(their folder, path of the model)], as far as there are texts."""
  homes = [workdir_lib.answers(workdir / "models" / "teacher", t) for t, _ in inputs.tests(config)]
  held = _some(r for h in homes for r in workdir_lib.finished_rows(h) if r["verdict"] == "right")
  _read_held_out(config, held, students)
  if "teacher" in config.references:
    _read_instruments(config, workdir, held, students)


def _some(rows):
  """A row for each of MOST problems at most. Their ids are hashes, so this is a random part."""
  return [r for _, r in sorted({r["uuid"]: r for r in rows}.items())[:MOST]]


def _missing(students, name):
  """{file: path of the model} of the students without that file."""
  return {home / name: path for home, path in students if not (home / name).exists()}


def _read_held_out(config, held, students):
  todo = _missing(students, "held_out.json") if held else {}
  pairs = inputs.training_pairs(config, held) if todo else []
  for file, path in todo.items():
    student, _ = inputs.load(config, "student", path)
    nlls = posthoc.mean_nlls(student, pairs, batch=_batch())
    _write(file, {r["uuid"]: nll for r, nll in zip(held, nlls)})


def _read_instruments(config, workdir, held, students):
  todo = _missing(students, "instruments.json")
  if not todo:
    return
  tokenizers = [inputs.tokenizer(config.student), inputs.tokenizer(config.teacher)]
  alike = not tokenization.differences(*tokenizers[::-1])
  pairs = _pairs(_samples(config, workdir))
  sampled = [r for pair in pairs for rows in pair for r in rows]
  teacher = _split_up(config, "teacher") if alike else None
  given = inputs.training_pairs(config, [*held, *sampled])
  for file, path in todo.items():
    own = _own(config, file.parent)
    found = fidelity.read(
      _split_up(config, "student", path),
      teacher,
      [*inputs.training_pairs(config, own, writer="student"), *given],
      vocab=min(map(len, tokenizers[: 1 + alike])),
      batch=_batch(),
    )
    mine, theirs, others = _split(found, len(own), len(held))
    figures = {"own_entropy": {r["uuid"]: x.entropy for r, x in zip(own, mine)}}
    if alike:
      figures["kl_own"] = {r["uuid"]: x.reverse for r, x in zip(own, mine)}
      figures["kl_data"] = {r["uuid"]: x.forward for r, x in zip(held, theirs)}
    figures["wrong_minus_right"] = _differences(pairs, [x.nll for x in others])
    _write(file, figures)


def _split(x, *sizes):
  """Parts of these sizes, and the rest."""
  ends = np.cumsum(sizes).tolist()
  return [x[i:j] for i, j in zip([0, *ends], [*ends, None])]


def _own(config, home):
  """The first answers of a student to MOST test problems, without those that saw solved examples."""
  homes = [workdir_lib.answers(home, t) for t, e in inputs.tests(config) if not e.examples]
  rows = (r for folder in homes for r in workdir_lib.finished_rows(folder))
  return _some(r for r in rows if r["attempt"] == 0)


def _samples(config, workdir):
  """Traces of the teacher to problems that nobody is trained on, right and wrong ones."""
  select = inputs.sampling(config)
  if not select:
    return []
  problems = inputs.problems(config, "cold_start")[: config.problems.held_out][:MOST]
  folder = workdir / "models" / "teacher" / "samples"
  return collecting.collect(
    config, select, folder, problems, collecting.Models(), "held-out traces"
  )


def _pairs(rows):
  """[(right rows, wrong rows)] of the problems that have both."""
  found = {}
  for r in rows:
    if r["verdict"] in ("right", "wrong"):
      found.setdefault(r["uuid"], ([], []))[r["verdict"] == "wrong"].append(r)
  return [pair for _, pair in sorted(found.items()) if all(pair)]


def _differences(pairs, nlls):
  """{uuid: nll of wrong minus right} of `_pairs`, whose rows have these nlls in the same order."""
  found, at = {}, 0
  for right, wrong in pairs:
    a, b, _ = _split(nlls[at:], len(right), len(wrong))
    found[right[0]["uuid"]] = float(np.mean(b) - np.mean(a))
    at += len(right) + len(wrong)
  return found


def _split_up(config, who, path=None):
  """The weights of the config's teacher or student, split over all devices as in training."""
  arch = hf.read_architecture(hf.locate(path or getattr(config, who).path))
  split = dict(inputs.ALONE, fsdp_axes=train_lib.fsdp_axes(arch))
  return inputs.load(config, who, path, **split)[0]


def _batch():
  return 4 * jax.sharding.get_mesh().size


def _write(file, found):
  if jax.process_index() == 0:
    folders.write(file, json.dumps(found))
  mesh_lib.barrier(f"{file.parent.name} {file.name} written")
