"""Does several runs and compares them, or continues a study that was stopped.

Usage: gen-ssd study --workdir=DIR [--config=FILE] [--quick]

  --config    a Python file with RUNS, the names of its runs, and get_config(name), the config of
              each; it may have SWEEPS and QUICK, too (default: configs/study.py)
  --workdir   every run is an ordinary run in workdir/NAME; the comparison goes to study.json,
              study.md, examples.md and figures there
  --quick     do the runs of QUICK instead of those of RUNS

For example:
  gen-ssd study --workdir=runs/study --quick
"""

from collections.abc import Sequence
import pathlib
import time
from types import ModuleType

from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import stages
from gen_ssd.report import comparison


def load(path: str, quick: bool = False) -> ModuleType:
  """The config file as a module. Raises UserError when it is missing or is not a study's."""
  file = config_files.module(path)
  wanted = ("RUNS", "QUICK") if quick else ("RUNS",)
  for name in wanted:
    names = getattr(file, name, None)
    if not names or isinstance(names, str) or not all(isinstance(n, str) and n for n in names):
      hint = "; or leave --quick out" if name == "QUICK" else ""
      raise errors.UserError(
        f"{name} of {path} is {names!r:.60}: it must be a tuple of names of runs, each of which "
        f"get_config(name) knows{hint}"
      )
  return file


def run(file, workdir: pathlib.Path, names: Sequence[str], devices=None):
  """Does the runs `names` of a loaded config file and returns {name: Config}.

  All configs are checked before anything is computed or written: UserError names the field that
  is wrong.
  """
  configs = {name: config_lib.parse(config_files.settings(file, name)) for name in names}
  for config in configs.values():
    checks.check(config)
  for name, config in configs.items():
    with stages.begun(config, workdir / name, devices):
      pass  # all workdirs are claimed before the first run computes
  for i, (name, config) in enumerate(configs.items()):
    last = [workdir / name / file for file in ("results.json", "report.html")]
    if all(
      path.exists() for path in last
    ):  # `gen-ssd report` may have drawn the page before the end
      continue
    print(f"-- {name} ({i + 1} of {len(names)})", flush=True)
    with stages.begun(config, workdir / name, devices):
      for stage in config.stages:
        stages.STAGES[stage](config, workdir / name)
  return configs


def main() -> None:
  """The command `gen-ssd study`."""
  with errors.command():
    arguments = config_files.Arguments("study", __doc__)
    arguments.add_argument("--config", default="configs/study.py")
    arguments.folder("workdir")
    arguments.add_argument("--quick", action="store_true")
    known, start = arguments.parse_args(), time.monotonic()
    file = load(known.config, known.quick)
    configs = run(file, known.workdir, file.QUICK if known.quick else file.RUNS)
    table, paths = comparison.write(known.workdir, configs, getattr(file, "SWEEPS", {}))
    print(table)
    names = ", ".join(p.name for p in paths)
    print(f"{known.workdir}: {names}; {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
  main()
