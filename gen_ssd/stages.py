"""The story of a run, one function a stage. Everything is under workdir; a finished part is kept.

workdir/cold_start/   traces of the teacher, the warmed-up student that will choose
workdir/traces/HASH/  traces of one way of writing; arms that only filter them differently share
                      (and refresh-N/, with the student that chose after N problems)
workdir/arms/NAME/    which traces are kept; a student and its answers in seed-0/, ...
workdir/results.json, report.html
"""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np

from gen_ssd import answers
from gen_ssd import checks
from gen_ssd import collect as collect_lib
from gen_ssd import config as config_lib
from gen_ssd import data
from gen_ssd import evaluate as evaluate_lib
from gen_ssd import facts
from gen_ssd import mesh as mesh_lib
from gen_ssd import model as model_lib
from gen_ssd import posthoc
from gen_ssd import report as report_lib
from gen_ssd import sets
from gen_ssd import tokens
from gen_ssd import traces
from gen_ssd import train as train_lib
from gen_ssd import weights

ALONE = dict(rows=mesh_lib.AXES, tensor=None)  # a student: whole on every device, which share rows
BUNDLED = pathlib.Path(__file__).parent / "bundled"


def directory(path):
  """Where a model of a config lies: inside the package (`bundled/teacher`), on disk or on the hub."""
  if path.startswith("bundled/"):
    return str(BUNDLED / path.removeprefix("bundled/"))
  return facts.locate(path)


def identities(config):
  """{who: identity of its files} of the models a config starts from."""
  if config.stages == ("pretrain",):
    return {}
  return {
    who: facts.identity(directory(getattr(config, who).path)) for who in ("teacher", "student")
  }


def check(config):
  """Everything that can be wrong without computing: models, vocabularies, problem files."""
  if config.stages == ("pretrain",):
    return
  for who in ("teacher", "student"):
    model = getattr(config, who)
    weights.check_files(
      directory(model.path), weights.read_shape(directory(model.path), dtype=model.dtype)
    )
  pair = [_tokenizer(config.teacher), _tokenizer(config.student)]
  if not config.translate:
    tokens.shared_vocabulary(*pair)
  elif tokens.differences(*pair):
    for name, s in config.arms:
      again = s.granularity == "trace" and s.scorer in posthoc.AGAIN
      for field, wrong in (("scorer", again), ("scoring_prompt", s.scoring_prompt == "teacher")):
        if wrong:  # both hand the teacher's ids to the student
          checks.fail(
            f"arms.{name}.{field}", getattr(s, field), "another one when tokenizers differ"
          )
  tokens.check_thoughts(*pair, "1 + 0?", config.problems.system or None)
  for name, select in config.arms:
    try:
      collect_lib.closing(pair[0], select)
    except ValueError as error:
      raise ValueError(f"arms.{name}.covers is 'thinking': {error}; set it to everything") from None
  tightest = min(
    [config.cold_start, config.select, *(s for _, s in config.arms)], key=lambda s: s.prompt
  )
  home = {}
  wanted = [
    ("problems.cold_start", "cold_start", None),
    ("problems.train", "train", None),
    *((f"tests.{name}.limit" if name else "problems.test", "test", e) for name, e in tests(config)),
  ]
  for field, split, e in wanted:
    problems, count = _problems(config, split, e), _part(config, split, e)[1]
    if len(problems) < max(count, 1):
      raise ValueError(f"{field} is {count}: there are only {len(problems)}")
    collect_lib.check_prompts(problems, pair, tightest, config.problems.system or None)
    for p in problems:
      split_there, there = home.setdefault(p.uuid, (split, field))
      if split_there != split:  # tests may share problems with each other
        raise ValueError(
          f"{field} and {there} share problem {p.uuid}: {p.problem[:60]!r}; give "
          "them different problems"
        )


def begin(config, workdir, devices=None):
  """Starts the mesh, checks what needs it, and makes `workdir` the config's: then stages may run.

  Raises ValueError naming the field when rows do not divide among the devices, and for a workdir
  of another config.
  """
  mesh = mesh_lib.start(config.model_parallel, devices)
  refreshed = "collect" in config.stages and any(s.refresh for _, s in config.arms)
  training = ("warm_up", "train") if refreshed or {"cold_start", "train"} & {*config.stages} else ()
  rows = [(f"{name}.rows", getattr(config, name).rows, mesh.size) for name in training]
  if "pretrain" in config.stages:
    rows = [("train.rows", config.train.rows, mesh.size)]
  elif {"collect", "cold_start"} & {*config.stages}:
    rows += [("cold_start.rows", config.cold_start.rows, mesh.shape["data"])]  # no student there
    rows += [(f"arms.{name}.rows", s.rows, mesh.size) for name, s in config.arms]
  if "evaluate" in config.stages:
    rows += [
      (f"tests.{name}.rows" if name else "evaluate.rows", e.rows, mesh.shape["data"])
      for name, e in tests(config)
    ]
  for field, value, size in rows:
    if value % size:
      raise ValueError(
        f"{field} is {value}: it must be a multiple of the {size} devices that share the rows"
      )
  config_lib.claim(workdir, config, identities(config))


def cold_start(config, workdir):
  """Teacher traces on a few problems, and the student fine-tuned on the right ones."""
  folder = workdir / "cold_start"
  if (folder / "student").exists():
    return
  problems = _problems(config, "cold_start")[config.problems.held_out :]
  rows = _collect(
    config,
    workdir,
    config.cold_start,
    folder / "traces",
    problems,
    student=None,
    title="cold start",
  )
  _train(config, _cold_kept(config, rows), config.warm_up, folder, title="cold-start training")


def collect(config, workdir):
  """Every arm's traces, and which of them are kept."""
  for name, select in config.arms:
    folder, plain = workdir / "arms" / name, config_lib.collection(select)
    home, done = config_lib.short_hash(plain), (folder / "kept.json").exists()
    mesh_lib.barrier(f"{name} looked for")  # before anybody writes it
    rows = _write(config, workdir, plain, workdir / "traces" / home, name)
    if done:
      continue
    kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
    if select.granularity == "trace":
      kept = _best(config, workdir, select, kept)
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      pairs = [[r["uuid"], r["attempt"]] for r in kept]
      traces.write_parquet(
        folder / "traces.parquet", rows, kept=pairs, system=config.problems.system
      )
      config_lib.write_atomically(folder / "traces.json", json.dumps({"collection": home}))
      config_lib.write_atomically(folder / "kept.json", json.dumps(pairs))
    mesh_lib.barrier(f"{name} written")


def _write(config, workdir, select, folder, name):
  """Rows of a collection; every `select.refresh` problems the student is trained anew.

  That is like the cold start, on its traces and those kept so far. The student of folder/refresh-N
  chooses from problem N on, so a part is finished when the next student is there.
  """
  problems, student = _problems(config, "train"), _chooser(config, workdir, select)
  size = select.refresh or len(problems)
  for end in range(size, len(problems) + size, size):
    fresh = folder / f"refresh-{end}"
    if not (fresh / "student").exists():
      rows = _collect(
        config, workdir, select, folder, problems[:end], student=student, title=f"collect {name}"
      )
      if end < len(problems):
        kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
        _train(
          config,
          _cold_rows(config, workdir) + kept,
          config.warm_up,
          fresh,
          title=f"refresh {name} after {end}",
        )
    student = str(fresh / "student")
  return rows


def train(config, workdir):
  """A student for every arm, from the same start and with the same number of updates."""
  for name, _ in config.arms:
    folder = workdir / "arms" / name
    homes = _homes(config, folder)
    if all((home / "student").exists() for home in homes):
      continue
    kept = _cold_rows(config, workdir) if config.train.cold_traces else []
    kept += arm_rows(workdir, name)[1]
    warm = str(workdir / "cold_start" / "student") if config.train.start == "cold_start" else None
    for i, home in enumerate(homes):
      if not (home / "student").exists():
        _train(
          config,
          kept,
          dataclasses.replace(config.train, seed=config.train.seed + i),
          home,
          title=f"train {name}" + f", seed {i}" * (config.seeds > 1),
          source=warm,
        )


def evaluate(config, workdir):
  """Every student on every test; results.json and a table a test.

  results.json holds `arms` and `paired`, over the problems of all tests; with several tests also
  `tests`, the same for each.
  """
  costs, answered, problems = {}, {}, {t: _problems(config, "test", e) for t, e in tests(config)}
  for name, select in config.arms:
    folder = workdir / "arms" / name
    for test, e in tests(config):
      answered[name, test] = [
        _collect(
          config,
          workdir,
          answering(config, e),
          home / "-".join(filter(None, ("answers", test))),
          problems[test],
          teacher=str(home / "student"),
          student=None,
          title=f"evaluate {name} {test}".strip() + f", seed {i}" * (config.seeds > 1),
        )
        for i, home in enumerate(_homes(config, folder))
      ]
    costs[name] = evaluate_lib.collected(
      *arm_rows(workdir, name), len(_problems(config, "train")), whole=select.granularity == "trace"
    )
  per_test = {
    t: evaluate_lib.results(costs, {name: answered[name, t] for name in costs}, problems[t])
    for t in problems
  }
  found = next(iter(per_test.values()))
  if len(per_test) > 1:
    pooled = {
      name: [sum(rows, []) for rows in zip(*(answered[name, t] for t in problems))]
      for name in costs
    }
    found = {**evaluate_lib.results(costs, pooled, sum(problems.values(), [])), "tests": per_test}
  if jax.process_index() == 0:
    config_lib.write_atomically(workdir / "results.json", json.dumps(found, indent=1))
    for test, one in per_test.items():
      print("\n".join(filter(None, (test, evaluate_lib.table(one)))))
    if len(per_test) > 1:
      print(f"all tests\n{evaluate_lib.table(found)}")


def report(config, workdir):
  """report.html: one page to look at."""
  if jax.process_index() == 0:
    print(f"report: {report_lib.write_report(workdir)}")


def pretrain(config, workdir):
  train_lib.pretrain(config, workdir)


# ---------------------------------------------------------------- shared by the stages


def _homes(config, folder):
  """Where the students of an arm live, one a seed."""
  return [folder / f"seed-{i}" for i in range(config.seeds)]


def tests(config):
  """((name, Evaluate), ...): the tests of a config; one alone may have no name."""
  return config.tests or (("", config.evaluate),)


def answering(config, e):
  """The Select with which students answer the problems of an Evaluate."""
  return dataclasses.replace(
    config.select,
    granularity="chunk",
    k=1,
    rows=e.rows,
    temperature=e.temperature,
    top_p=e.top_p,
    top_k=0,
    max_tokens=e.max_tokens or config.select.max_tokens,
    attempts=e.samples,
    seed=e.seed,
    threshold="off",
    margin="off",
    running="off",
    context=0,
    delimiters=(),
    steps=(),
    resamples=0,
    pruned="drop",
    covers="everything",
  )


def _part(config, split, e=None):
  """(source, number of problems or 0 for all, problems of the source that are left to others)."""
  p = config.problems
  if split == "test":
    e = e or tests(config)[0][1]
    return (e.source, e.limit, 0) if e.source else (p.test_source or p.source, e.limit or p.test, 0)
  shared = p.cold_start_source in ("", p.source) and p.source != "bundled"
  if split == "cold_start":
    return p.cold_start_source or p.source, p.cold_start, 0
  return p.source, p.train, p.cold_start if shared else 0


def _problems(config, split, e=None):
  source, count, skip = _part(config, split, e)
  return sets.load(source, split, count, config.problems.seed, skip)


def _tokenizer(model, path=None):
  """The tokenizer of a config's Model, or of what was trained from it, which has its template."""
  if path in (None, directory(model.path)):
    return tokens.load_tokenizer(directory(model.path), model.chat_template, model.thinking)
  return tokens.load_tokenizer(path)


def _load(model, path, **placement):
  """Weights and tokenizer at `path`, run as the config's Model says."""
  shape = weights.read_shape(path, dtype=model.dtype, unroll=model.unroll, **placement)
  return weights.load(path, shape), _tokenizer(model, path)


def _collect(config, workdir, select, folder, problems, *, student, title, teacher=None):
  """Rows of one collection, by the models at these paths, which are loaded if there is work left."""
  if (rows := collect_lib.finished(problems, select, folder)) is not None:
    return rows
  placement = ALONE if teacher else {}  # then a student answers
  teacher = teacher or directory(config.teacher.path)
  mine, tokenizer = _load(config.teacher, teacher, **placement)
  chooser, its_tokenizer = (
    (None, None) if student is None else _load(config.student, student, **ALONE)
  )
  writer = collect_lib.Writer(
    model_lib.unstacked(mine),
    tokenizer,
    tokens.eos_ids(teacher, tokenizer),
    chooser and model_lib.unstacked(chooser),
    its_tokenizer,
    config.problems.system or None,
    config.translate and bool(chooser) and bool(tokens.differences(tokenizer, its_tokenizer)),
  )
  threshold = math.inf if select.threshold == "off" else select.threshold
  if threshold == "calibrated":
    threshold = _calibrate(config, workdir, select, student)
  with answers.Verifier() as verifier:
    return collect_lib.collect(
      writer, problems, select, folder, verifier=verifier, threshold=threshold, title=title
    )


def _calibrate(config, workdir, select, student):
  """The threshold: a quantile of the student's chunk scores on held-out cold-start problems.

  The teacher writes them as it wrote the cold start, one candidate a chunk, so this is what the
  student finds in ordinary teacher text.
  """
  if not config.problems.held_out:
    raise ValueError("problems.held_out is 0: a calibrated threshold needs held-out problems")
  problems = _problems(config, "cold_start")[: config.problems.held_out]
  plain = dataclasses.replace(
    select,
    k=1,
    temperature=config.cold_start.temperature,
    threshold="off",
    margin="off",
    running="off",
    attempts=1,
    pruned="drop",
    retries=config_lib.Select.retries,
    refresh=0,
    keep=config_lib.Select.keep,
    quantile=config_lib.Select.quantile,
  )
  home = workdir / "cold_start" if select.chooser == "base" else pathlib.Path(student).parent
  rows = _collect(
    config,
    workdir,
    plain,
    home / f"calibration-{config_lib.short_hash(plain)}",
    problems,
    student=student,
    title="calibrate",
  )
  found = [c["score"] for r in rows for c in r["chunks"] if c["score"] is not None]
  return float(np.quantile(found, select.quantile))


def _cold_kept(config, rows):
  return traces.kept(rows, keep=config.cold_start.keep, pruned=config.cold_start.pruned)


def _cold_rows(config, workdir):
  """The traces of the cold start's training. ValueError when they are gone."""
  rows = _rows(workdir / "cold_start" / "traces")
  if not rows:
    raise ValueError(
      f"{workdir / 'cold_start' / 'traces'} holds no traces of the cold start, which "
      "are wanted for training: remove cold_start/student to make both anew"
    )
  return _cold_kept(config, rows)


def _train(config, rows, settings, folder, *, title, source=None):
  """Fine-tunes the base student, or weights at `source`, on rows; exports it to folder/student."""
  path = directory(config.student.path)
  tokenizer = _tokenizer(config.student)
  ends, own = tokens.eos_ids(directory(config.teacher.path), tokenizer), tokenizer.eos_token_id
  other = config.translate and tokens.differences(_tokenizer(config.teacher), tokenizer)
  pairs = []
  for r in rows:
    ids = [*r["ids"][:-1], own] if r["ids"][-1] in ends else r["ids"]
    if other:
      text = r["text"].removeprefix(r["opened"])
      ids = tokenizer.encode(text, add_special_tokens=False) + [own] * (r["stop"] == "ended")
    row, start = tokens.render_row(
      tokenizer, r["problem"], ids, config.problems.system or None, r["opened"]
    )
    pairs.append((row[:start], row[start:]))
  shape = weights.read_shape(path, dtype="float32", rows=train_lib.AXES, tensor=None)
  model = weights.load(source or path, shape, fsdp=train_lib.fsdp_axes(shape))
  model = train_lib.fit(
    model, data.Rows(pairs, settings.length), settings, folder / "checkpoints", title=title
  )
  plain = weights.read_shape(path, dtype=config.student.dtype)
  weights.save(
    str(folder / "student"),
    model_lib.replace_shape(
      model, **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    ),
    path,
    dtype="float32",
    chat_template=tokenizer.chat_template
    if (config.student.chat_template or config.student.thinking)
    else "",
  )


def _chooser(config, workdir, select):
  """Path of the student that scores an arm's candidates."""
  return (
    directory(config.student.path)
    if select.chooser == "base"
    else str(workdir / "cold_start" / "student")
  )


def _best(config, workdir, select, rows):
  """The best whole trace of each problem; some scorers have the student read them again first."""
  options, difficulty = {}, None
  if select.scorer in posthoc.AGAIN:
    student, tokenizer = _load(config.student, _chooser(config, workdir, select), **ALONE)
    if select.scoring_prompt == "teacher":
      tokenizer = _tokenizer(config.teacher)
    options = dict(batch=select.rows, system=config.problems.system or None)
  if select.scorer == "morsd":
    difficulty = posthoc.difficulties(student, tokenizer, rows, **options)
  elif select.scorer == "local":
    rows = posthoc.nearby(student, tokenizer, rows, context=select.context * select.c, **options)
  return posthoc.best(rows, select.scorer, seed=select.seed, difficulty=difficulty)


def collection(workdir, name):
  """The folder of the collection an arm took its traces from."""
  pointer = json.loads((workdir / "arms" / name / "traces.json").read_text())
  return workdir / "traces" / pointer["collection"]


def arm_rows(workdir, name):
  """(all rows, kept rows) of an arm whose traces are collected."""
  pairs = json.loads((workdir / "arms" / name / "kept.json").read_text())
  rows = _rows(collection(workdir, name))
  by_pair = {(r["uuid"], r["attempt"]): r for r in rows}
  return rows, [by_pair[tuple(pair)] for pair in pairs]


def arm_answers(workdir, name):
  """The answers of an arm's students, of all tests: a list of rows for every seed."""
  homes = sorted((workdir / "arms" / name).glob("seed-*"), key=lambda p: int(p.name[5:]))
  return [[r for folder in sorted(home.glob("answers*")) for r in _rows(folder)] for home in homes]


def _rows(folder):
  """Finished rows of a collection on disk."""
  return traces.Shards(folder).resume()[0]
