"""Does several runs and compares them: python -m gen_ssd.study --workdir=runs/study [--quick].

The config file names its runs (RUNS, and QUICK for --quick), makes the config of each
(get_config(name)) and may say which arms make a sweep (SWEEPS). Every run is an ordinary run in
workdir/NAME; a finished one is kept. The comparison goes to study.json, study.md, examples.md and
figures in workdir.
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

CONFIG = flags.DEFINE_string(
  "config", "configs/study.py", "The config file: RUNS, QUICK, SWEEPS, get_config."
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where everything goes. Run the same command again to continue a study that was stopped.",
)
QUICK = flags.DEFINE_bool("quick", False, "Do the runs of QUICK in place of those of RUNS.")


def load(path: str) -> ModuleType:
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


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)
  workdir, start = pathlib.Path(WORKDIR.value), time.monotonic()
  try:
    file = load(CONFIG.value)
    if QUICK.value and not hasattr(file, "QUICK"):
      raise ValueError(f"--config={CONFIG.value} has no QUICK: leave --quick out")
    configs = run(file, workdir, file.QUICK if QUICK.value else file.RUNS)
  except ValueError as error:
    sys.exit(f"gen_ssd: {error}")
  table, paths = comparison.write(workdir, configs, getattr(file, "SWEEPS", {}))
  print(table)
  names = ", ".join(p.name for p in paths)
  print(f"{workdir}: {names}; {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
