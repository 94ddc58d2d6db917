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
import importlib.util
import pathlib
import sys
import time
from types import ModuleType

from absl import app
from absl import flags
from absl import logging

from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd import stages
from gen_ssd.report import comparison


def load(path: str, quick: bool = False) -> ModuleType:
  """The config file as a module. Raises ValueError when it is missing or is not a study's."""
  spec = importlib.util.spec_from_file_location("study_config", path)
  if not pathlib.Path(path).is_file() or spec is None or spec.loader is None:
    raise ValueError(f"--config={path}: there is no Python file of this name")
  file = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(file)
  missing = [name for name in ("RUNS", "get_config") if not hasattr(file, name)]
  if missing:
    raise ValueError(
      f"--config={path}: a study's config file defines RUNS, the names of its runs, and "
      f"get_config(name); this one has no {' and no '.join(missing)}"
    )
  if quick and not hasattr(file, "QUICK"):
    raise ValueError(f"--config={path} has no QUICK: leave --quick out")
  return file


def run(file, workdir: pathlib.Path, names: Sequence[str], devices=None):
  """Does the runs `names` of a loaded config file and returns {name: Config}.

  All configs are checked before anything is computed or written: ValueError names the field that
  is wrong.
  """
  configs = {name: config_lib.parse(file.get_config(name)) for name in names}
  for config in configs.values():
    checks.check(config)
  for name, config in configs.items():
    stages.begin(config, workdir / name, devices)
  for i, (name, config) in enumerate(configs.items()):
    if (workdir / name / "report.html").exists():  # the last thing a run writes
      continue
    print(f"-- {name} ({i + 1} of {len(names)})", flush=True)
    mesh_lib.start(config.model_parallel, devices)
    for stage in config.stages:
      stages.STAGES[stage](config, workdir / name)
  return configs


def main() -> None:
  """The command `gen-ssd study`."""
  if {"-h", "--help"} & {*sys.argv}:
    print(__doc__.strip())
    return
  flags.DEFINE_string("config", "configs/study.py", "The config file.")
  flags.DEFINE_string("workdir", None, "Where everything goes.")
  flags.DEFINE_bool("quick", False, "Do the runs of QUICK instead of those of RUNS.")
  flags.mark_flag_as_required("workdir")
  app.run(_main)


def _main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)
  workdir, path, start = pathlib.Path(flags.FLAGS.workdir), flags.FLAGS.config, time.monotonic()
  try:
    file = load(path, flags.FLAGS.quick)
    configs = run(file, workdir, file.QUICK if flags.FLAGS.quick else file.RUNS)
  except ValueError as error:
    sys.exit(f"gen_ssd: {error}")
  table, paths = comparison.write(workdir, configs, getattr(file, "SWEEPS", {}))
  print(table)
  names = ", ".join(p.name for p in paths)
  print(f"{workdir}: {names}; {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
  main()
