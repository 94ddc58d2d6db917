"""Does the runs of a sweep and compares them, or hands them to a scheduler.

Usage: gen-ssd sweep --config=FILE[:ARGUMENT] --workdir=DIR [flags]
       python launch/sweep.py ...         (the same)

  --config    a Python file with get_config(), and sweep(), which yields the changed settings of
              every item: see configs/ablation.py
  --workdir   an item is an ordinary run in workdir/NAME; the comparison is in sweep.html, sweep.md,
              sweep.json, examples.md and figures; the same command continues a stopped sweep
  --to        local: run here, then compare (the default); print: an item per line, its name,
              settings and command separated by tabs; tpu_vm, mig, xpk or slurm: call that script of
              launch/ for every item, one after another, with the options after -- and a --name
  --parallel  how many items run at the same time with --to=local (default: 1)
  --collect   only compare the items that are finished
  --config.X  a setting of all items, such as --config.seeds=3

For example:
  gen-ssd sweep --config=configs/ablation.py --workdir=runs/ablation
  gen-ssd sweep --config=configs/study.py --workdir=/s/a --to=slurm -- --nodes=1 --gpus-per-node=8
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import pathlib
import re
import shlex
import subprocess
import sys
import time
import typing

import jax
import numpy as np

from gen_ssd import checks
from gen_ssd import claims
from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import processes
from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.report import comparison
from gen_ssd.report import lines

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "launch"
LAUNCHERS = ("tpu_vm", "mig", "xpk", "slurm")  # scripts that take --name and the run's flags
RUN = (sys.executable, "-m", "gen_ssd.main")
LONGEST = 60  # characters of a name that is made here
LOGS = "logs"  # the folder of the outputs
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,99}"
Configs = Mapping[str, config_lib.Config]


@dataclasses.dataclass(frozen=True)
class Item:
  """One run of a sweep."""

  name: str  # of its folder
  path: str  # its --config: FILE or FILE:ARGUMENT
  flags: tuple[str, ...]  # its other flags: --config.FIELD=VALUE
  changes: Mapping[str, typing.Any] | None  # {field: value}; None where it has an own argument

  def arguments(self, workdir: folders.Path) -> list[str]:
    """The flags of its run, which may be given to any command that takes those of `gen-ssd run`."""
    return [f"--config={self.path}", f"--workdir={workdir / self.name}", *self.flags]


# ---------------------------------------------------------------- items


def items(path: str, flags: Sequence[str] = ()) -> list[Item]:
  """The items of sweep() in `FILE` or `FILE:ARGUMENT`; `flags` are settings of all of them.

  sweep() yields {field: value}, or a text, which is an argument of get_config, or a pair of a name
  and one of these. Raises UserError for an item that is none of them and for a name given twice.
  """
  file, _, argument = path.partition(":")
  found: dict[str, Item] = {}
  for made in config_files.sweep(config_files.module(file)):
    named = isinstance(made, (tuple, list)) and len(made) == 2
    name, what = made if named else (None, made)
    if isinstance(what, str) and what and not argument:
      own, changes, changed = f"{file}:{what}", None, ()
      name = _name(what) if name is None else name
    elif isinstance(what, str) and argument:
      raise UserError(
        f"--config is {clip(repr(path))}: sweep() yields the arguments itself, such as "
        f"{clip(repr(what))}; leave :{argument} out"
      )
    elif isinstance(what, Mapping):
      changes = {field: _plain(value) for field, value in what.items()}
      own, changed = path, tuple(_flag(file, f, value) for f, value in changes.items())
      name = _name("-".join(f.removeprefix("--config.") for f in changed)) if name is None else name
    else:
      raise UserError(
        f"sweep() of {file} yields {clip(repr(made))}: an item must be a dict of changed settings, "
        "an argument of get_config, or a pair of a name and one of these"
      )
    _check_name(file, name, found)
    found[name] = Item(name, own, (*flags, *changed), changes)
  return [*found.values()]


def _name(text):
  """A folder name: the text, or as much of it as is valid with a hash of all of it."""
  name = re.sub(r"[^\w.=-]+", "_", text or "base", flags=re.ASCII).lstrip(".-")[:LONGEST]
  return name if name == (text or "base") else f"{name}-{_hash(text)}"


def _hash(text):
  return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]


def _check_name(file, name, others):
  taken = (*comparison.FILES, LOGS)
  if not isinstance(name, str) or not re.fullmatch(NAME, name) or name in taken:
    raise UserError(
      f"sweep() of {file} yields an item named {clip(repr(name))}: a name must be 1 to 100 of the "
      f"characters A-Z, a-z, 0-9, _, -, = and ., start with none of -, = and ., and be none of "
      f"{', '.join(taken)}"
    )
  if name in others:
    raise UserError(f"sweep() of {file} yields two items named {name}: give them different names")


def _plain(value):
  """numpy's numbers as Python's, lists as tuples."""
  value = value.item() if isinstance(value, np.generic) else value
  return tuple(value) if isinstance(value, list) else value


def _flag(file, field, value):
  """`--config.FIELD=VALUE`, which config_files.load reads as the same value."""
  texts = value if isinstance(value, tuple) else (value,)
  known = isinstance(value, (bool, int, float)) or all(isinstance(t, str) for t in texts)
  if not isinstance(field, str) or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", field, re.ASCII):
    raise UserError(
      f"sweep() of {file} yields the field {clip(repr(field))}: it must be one such as 'select.k'"
    )
  text = repr(value) if isinstance(value, tuple) else str(value) if known else ""
  if not known or not text.isprintable():
    raise UserError(
      f"sweep() of {file} yields {clip(repr(value))} for {field}: it must be a number, True or False, "
      "text on one line, or a tuple of texts"
    )
  return f"--config.{field}={text}"


def configs(
  found: Sequence[Item], check: Callable[[config_lib.Config], typing.Any]
) -> dict[str, config_lib.Config]:
  """{name: Config} of all items, checked. Raises UserError, which names the item and the field."""
  made = {}
  for item in found:
    try:
      config = config_lib.parse(config_files.load(item.path, item.flags))
      check(config)
    except UserError as error:
      raise UserError(f"item {item.name}: {error}") from None
    made[item.name] = config
  return made


# ---------------------------------------------------------------- what is done with them


def show(found: Sequence[Item], workdir: folders.Path) -> str:
  """A line per item: name, changed settings and command, separated by tabs."""
  rows = []
  for item in found:
    command = shlex.join(["python", "-m", "gen_ssd.main", *item.arguments(workdir)])
    settings = " ".join(f"{f}={v!r}" for f, v in (item.changes or {}).items()) or "-"
    rows.append("\t".join((item.name, settings, command)))
  return "\n".join(rows)


def submit(
  found: Sequence[Item], workdir: folders.Path, to: str, options: Sequence[str] = ()
) -> None:
  """Calls launch/TO.sh with its `options` for one item after the other; a failure ends it.

  Raises UserError where there is no such script; ends with the exit code of a script that fails.
  """
  script = _script(to)
  for i, item in enumerate(found):
    own = [*options, f"--name={_machine(item.name)}", "--", *item.arguments(workdir)]
    if code := subprocess.run([script, *own]).returncode:
      before = ", ".join(x.name for x in found[:i]) or "none"
      _end(
        f"launch/{to}.sh failed with exit code {code} for {item.name}; done before: {before}", code
      )


def _machine(name):
  """A name that clouds and schedulers take: lower-case letters, digits and hyphens, 40 at most."""
  slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:28]
  return f"{slug}-{_hash(name)}" if slug[:1].isalpha() else f"item-{slug}-{_hash(name)}"


def _script(to):
  if to not in LAUNCHERS or not (SCRIPTS / f"{to}.sh").is_file():
    errors.fail("--to", to, f"print, local, {', '.join(LAUNCHERS)}; the last need a checkout")
  return SCRIPTS / f"{to}.sh"


def local(found: Sequence[Item], workdir: folders.Path, parallel: int = 1) -> None:
  """Runs the items as processes, `parallel` at a time; those with a report.html are finished.

  Their output goes to workdir/logs/NAME.log. When some fail, the others go on, and the command
  ends with the exit code of the first of them. A signal ends the command and all its processes.
  """
  todo = {
    item.name: [*RUN, *item.arguments(workdir)] for item in found if not _finished(workdir, item)
  }
  if folders.in_bucket(workdir):
    errors.fail("--workdir", str(workdir), "a folder of this machine, with --to=local")
  if (workdir / LOGS).is_file():
    raise UserError(f"{workdir / LOGS} is a file: it must be a folder, for the output of the items")
  failed, signals = processes.run(todo, workdir / LOGS, parallel, done=len(found) - len(todo))
  if signals:
    what, code = processes.SIGNALS[signals[0]]
    done = sum(_finished(workdir, item) for item in found)
    _end(
      f"stopped by {what}, {done} of {len(found)} items are done; the same command continues", code
    )
  if failed:
    names = ", ".join(failed)
    _end(
      f"{len(failed)} of {len(found)} items failed: {names}; the same command tries them again",
      next(iter(failed.values())),
    )


def _finished(workdir, item):
  # The page is the last thing that a run writes, but `gen-ssd report` may have drawn it before.
  return all((workdir / item.name / file).exists() for file in ("results.json", "report.html"))


def _end(message, code):
  print(f"gen_ssd: {message}", file=sys.stderr, flush=True)
  sys.exit(code)


def _claim(made, workdir, identities):
  """Makes the workdirs those of these configs, before the first run, or raises UserError."""
  for name, config in made.items():
    with claims.claimed(workdir / name, config, identities(config, workdir / name)):
      pass


def collect(found: Sequence[Item], made: Configs, workdir: folders.Path, sweeps) -> str:
  """Writes the comparison of the finished items and returns its table; the others are named.

  `sweeps` are more lines of figures, as comparison.Sweeps. Raises UserError when no item is
  finished, or when one is of other settings.
  """
  done = {item.name: made[item.name] for item in found if _finished(workdir, item)}
  if not done:
    raise UserError(f"--collect: none of the {len(found)} items in {workdir} is finished")
  _claim(done, workdir, _earlier_identities)
  if left := [item.name for item in found if item.name not in done]:
    print(f"not finished, and left out: {', '.join(left)}", file=sys.stderr)
  changes = {item.name: item.changes for item in found if item.changes is not None}
  drawn = {**lines.lines(changes, done), **sweeps}
  table, paths = comparison.write(workdir, done, drawn)
  return f"{table}\n{workdir}: {', '.join(p.name for p in paths)}"


def _earlier_identities(config, home):
  """Those of config.json: models and problems may be on another machine."""
  del config
  found = workdir_lib.read_json(home / "config.json", "restore it")
  return found.get("identities", {}) if isinstance(found, dict) else {}


def _sweeps(path):
  """SWEEPS of a config file, {} where it has none. Raises UserError when it is something else."""
  sweeps = getattr(config_files.module(path.partition(":")[0]), "SWEEPS", {})
  with contextlib.suppress(AttributeError, TypeError, ValueError):
    points = [p for named in sweeps.values() for line in named.values() for p in line]
    if all(isinstance(name, str) and isinstance(arm, str) for _, name, arm in points):
      return sweeps
  raise UserError(
    f"SWEEPS of {path} is {clip(repr(sweeps))}: it must be {{sweep: {{line: [(value, item, arm)]}}}}"
  )


def main() -> None:
  """The command `gen-ssd sweep`."""
  with errors.command():
    arguments = config_files.Arguments("sweep", __doc__)
    arguments.add_argument("--config", required=True)
    arguments.folder("workdir")
    arguments.add_argument("--to", default="local")
    arguments.add_argument("--parallel", type=int, default=1)
    arguments.add_argument("--collect", action="store_true")
    typed = sys.argv[1:]
    typed, options = (
      (typed[: typed.index("--")], typed[typed.index("--") + 1 :]) if "--" in typed else (typed, [])
    )
    known, flags = arguments.parse_known_args(typed)
    if rest := [flag for flag in flags if not re.match(r"--(no)?config\.", flag)]:
      arguments.error(f"unrecognized arguments: {' '.join(rest)}")
    if known.parallel < 1:
      errors.fail("--parallel", known.parallel, "at least 1")
    if known.to not in ("print", "local"):
      _script(known.to)
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    start, here = time.monotonic(), known.to == "local" and not known.collect
    found, sweeps = items(known.config, flags), _sweeps(known.config)
    made = configs(found, checks.check if here else config_checks.check)
    if known.to == "print" and not known.collect:
      print(show(found, known.workdir))
    elif not here and not known.collect:
      submit(found, known.workdir, known.to, options)
    else:
      if here:
        _claim(made, known.workdir, lambda config, home: inputs.identities(config))
        local(found, known.workdir, known.parallel)
      table = collect(found, made, known.workdir, sweeps)
      print(f"{table}; {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
  main()
