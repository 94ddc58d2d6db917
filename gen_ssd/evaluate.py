"""Evaluates a model on sets of problems, compares two evaluations, or grades answers again.

Usage: gen-ssd evaluate --model=MODEL --problems=SET[,SET ...] --workdir=DIR [flags]
       gen-ssd evaluate --compare A B
       gen-ssd evaluate --regrade=DIR

  --model        a directory, .gguf file, hub name or bundled/NAME; of a run:
                 RUN/arms/NAME/seed-0/student
  --problems     bundled, files, or known sets, such as gsm8k,math500 or gsm8k:FILE
  --workdir      where answers and results.json go; the same command again continues it
  --samples      answers per problem (default 1)
  --temperature, --top_p    of sampling (default: greedy for one sample, else 0.6 and 0.95)
  --limit, --max_tokens, --slots, --seed    at most so many problems per set, tokens per answer,
                 and answers at a time
  --system, --examples      a system message; a JSONL file of problem and solution to show first
  --chat_template, --thinking, --dtype, --config.X    settings of gen_ssd/config.py
  --compare      differences on the problems that both answered; A and B are workdirs of
                 evaluations, or RUN/arms/NAME or RUN/models/NAME of runs
  --regrade      grades all answers of a workdir again without generating; writes results.json

For example:
  gen-ssd evaluate --model=bundled/teacher --problems=bundled --samples=4 --workdir=runs/teacher
  gen-ssd evaluate --compare runs/quickstart/arms/gen_ssd runs/quickstart/arms/posthoc
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import re

from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import folders
from gen_ssd.errors import UserError

CHUNK = 64  # tokens between two looks at which answers have ended
TEXTS = ("model", "problems", "system", "examples", "chat_template", "thinking", "dtype")


def main() -> None:
  """The command `gen-ssd evaluate`."""
  with errors.command():
    arguments = config_files.Arguments("evaluate", __doc__ or "")
    for name in TEXTS:
      arguments.add_argument(f"--{name}", default="")
    for name, default in (("limit", 0), ("samples", 1), ("max_tokens", 2048), ("slots", 64)):
      arguments.add_argument(f"--{name}", type=int, default=default)
    arguments.add_argument("--seed", type=int, default=0)
    for name in ("temperature", "top_p"):
      arguments.add_argument(f"--{name}", type=float)
    arguments.add_argument("--compare", nargs=2)
    for name in ("workdir", "regrade"):
      arguments.folder(name, required=False)
    known, overrides = arguments.parse_known_args()
    _check_flags(known, overrides)
    if known.compare:
      print(compare(*map(folders.path, known.compare)))
    elif known.regrade:
      print(regrade(known.regrade))
    else:
      from gen_ssd import config as config_lib  # after the flags: importing jax takes a second
      from gen_ssd import stages

      stages.run(config_lib.parse(settings(known, overrides)), known.workdir)


def _check_flags(known, overrides):
  """Raises UserError unless the flags ask for one of three things."""
  asked = [n for n in ("model", "compare", "regrade") if getattr(known, n)]
  if len(asked) != 1:
    raise UserError(
      f"{' and '.join(f'--{n}' for n in asked) or 'no flag'} given: it must be one of --model, "
      "--compare and --regrade; see gen-ssd evaluate --help"
    )
  if known.model and not (known.problems and known.workdir):
    missing = "problems" if not known.problems else "workdir"
    raise UserError(f"--model needs --{missing}, which is not given; see gen-ssd evaluate --help")
  if not known.model and overrides:
    raise UserError(f"{' '.join(overrides)}: --{asked[0]} takes no other flags")


def settings(known: argparse.Namespace, overrides: Sequence[str] = ()):
  """The ConfigDict of an evaluation: a run without arms that measures its base student only."""
  import jax

  from gen_ssd import config as config_lib
  from gen_ssd.problems import sets

  several = known.samples > 1
  c = config_lib.default()
  c.name = "/".join(pathlib.PurePath(known.model).parts[-3:])[-100:]
  c.stages, c.references, c.arms = ("evaluate",), ("base",), {}
  on_cpu = jax.default_backend() == "cpu"
  for who in ("teacher", "student"):
    c[who].update(
      path=known.model,
      dtype=known.dtype or ("float32" if on_cpu else "bfloat16"),
      unroll=on_cpu,
      chat_template=known.chat_template,
      thinking=known.thinking,
    )
  c.problems.update(system=known.system, seed=known.seed)
  c.select.update(c=CHUNK, block=4 * CHUNK, max_tokens=known.max_tokens)
  c.evaluate.update(
    slots=known.slots,
    samples=known.samples,
    temperature=(0.6 if several else 0.0) if known.temperature is None else known.temperature,
    top_p=(0.95 if several else 1.0) if known.top_p is None else known.top_p,
    limit=known.limit,
    seed=known.seed,
    examples=known.examples,
  )
  for source in known.problems.split(","):
    name = sets.name(source)
    if name in c.tests:
      raise UserError(f"--problems is {known.problems!r}: {name} comes twice; name it once")
    limit = known.limit or 400 * (source == "bundled")
    if limit and source != "bundled":  # at most
      limit = min(limit, len(sets.load(source, "test")))
    c.tests[name] = dict(source=source, limit=limit)
  c = config_files.override(c, overrides)
  if not any(x.split("=")[0].lstrip("-") == "config.select.prompt" for x in overrides):
    c.select.prompt = _longest_prompt(config_lib.parse(c))
  return c


def _longest_prompt(config):
  """Slots for the longest prompt. Raises UserError for what makes prompts impossible."""
  from gen_ssd import config_checks
  from gen_ssd import inputs
  from gen_ssd.models import tokenization

  config_checks.check(config)
  tokenizer, system = inputs.tokenizer(config.student), config.problems.system or None
  longest = 1
  for _, e in inputs.tests(config):
    shown = inputs.examples(e)
    for p in inputs.problems(config, "test", e):
      prompt = tokenization.chat_prompt(tokenizer, p.problem, system, shown)
      longest = max(longest, len(prompt))
  c = config.select.c
  return max(-(-(longest - 1) // c) * c, c)


# ---------------------------------------------------------------- compare


def compare(a: folders.Path, b: folders.Path) -> str:
  """A table of the differences in accuracy between two folders of answers, test by test.

  Only problems that both answered count. Raises UserError when a folder has no answers, and when
  they have no problem in common.
  """
  from gen_ssd.report import statistics
  from gen_ssd.report import words

  both = [_answered(path) for path in (a, b)]
  tests = [t for t in both[0] if t in both[1]]
  parts = [(t or "test", [x[t] for x in both]) for t in tests]
  if len(parts) != 1:  # all tests together, whatever their names are
    parts.append(("all", [[sum(s, []) for s in zip(*x.values())] for x in both]))
  rows = [("test", "n", "A", "B", "A - B, points", "95% interval", "A better", "B better")]
  for test, sides in parts:
    shared = set.intersection(*({r["uuid"] for seed in side for r in seed} for side in sides))
    if not shared:
      continue
    sides = [[[r for r in seed if r["uuid"] in shared] for seed in side] for side in sides]
    p = statistics.paired(*sides)
    means = [statistics.accuracy(side, len(shared), draws=1)["accuracy"] for side in sides]
    one = [statistics.per_problem(sum(side, [])) for side in sides]
    better = [sum(x[u] > y[u] for u in shared) for x, y in (one, one[::-1])]
    low, high = (f"{100 * x:+.1f}" for x in p["ci"])
    accuracies = [f"{x:.1%}" for x in means]
    difference = f"{100 * p['difference']:+.1f}"
    rows.append((test, f"{p['n']}", *accuracies, difference, f"{low} to {high}", *map(str, better)))
  if len(rows) == 1:
    raise UserError(
      f"--compare: {a} and {b} have no problem in common: take two of one problem set"
    )
  return "\n".join([f"A  {a}", f"B  {b}", *words.columns(rows)])


def _answered(path):
  """{test: rows of every seed} of a folder of answers. Raises UserError when there are none."""
  from gen_ssd import workdir as workdir_lib

  found, seen = {}, path / "models"
  if (
    path / "config.json"
  ).exists() and seen.exists():  # a workdir: of an evaluation, if it has no arms
    if (path / "arms").exists():
      raise UserError(
        f"--compare: {path} is a run with several models: name one, such as {path}/arms/gen_ssd"
      )
    path = seen / "base"
  seeds = sorted(path.glob("seed-*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
  for home in seeds or [path]:
    for folder in sorted(home.glob("answers*")):
      rows = workdir_lib.finished_rows(folder)
      if rows:
        test = folder.name.removeprefix("answers").removeprefix("-")
        found.setdefault(test, []).append(rows)
  if not found:
    raise UserError(
      f"--compare: {errors.clip(str(path))} has no answers: it must be the workdir of an evaluation, "
      "or RUN/arms/NAME or RUN/models/NAME of a run"
    )
  return found


# ---------------------------------------------------------------- grade again


def regrade(workdir: folders.Path) -> str:
  """Grades all answers of a workdir again and writes results.json; returns its tables.

  Traces are not graded again, because students were trained on those that were kept. Raises
  UserError when `workdir` is not a finished run or evaluation, or is in use.
  """
  from gen_ssd import claims
  from gen_ssd import config as config_lib
  from gen_ssd import inputs
  from gen_ssd import workdir as workdir_lib
  from gen_ssd.problems import answers
  from gen_ssd.report import results

  right = "--regrade needs the workdir of a finished run or evaluation"
  plain = workdir_lib.read_json(workdir / "config.json", right)
  old = workdir_lib.read_json(workdir / "results.json", right)
  config = config_lib.parse({k: v for k, v in plain.items() if k != "identities"})
  with claims.lock(workdir), answers.Grader() as grader:
    changed = total = 0
    places = [*workdir.glob("models/*/answers*"), *workdir.glob("arms/*/seed-*/answers*")]
    for path in sorted(p for place in places for p in place.glob("traces-*.jsonl")):
      rows, _ = workdir_lib.read_jsonl(path)
      ended = [r for r in rows if r["stop"] == "ended"]  # what is cut off has no verdict but wrong
      for r, grade in zip(ended, grader.grades([(r["answer"], r["text"]) for r in ended])):
        changed += r["verdict"] != grade.verdict
        r["verdict"], r["graded_by"] = grade
      total += len(rows)
      folders.write(path, "".join(json.dumps(r) + "\n" for r in rows))
    each = old.get("tests") or {inputs.tests(config)[0][0]: old}
    first = lambda one: next(iter({**one["models"], **one["arms"]}.values()))
    training = next((arm["problems"] for arm in old["arms"].values()), 0)
    counts = {test: first(one)["n"] for test, one in each.items()}
    found = results.write(workdir, config, counts, first(old)["n"], training)
  return f"{changed:,} of {total:,} verdicts changed\n{results.tables(found, config)}"


if __name__ == "__main__":
  main()
