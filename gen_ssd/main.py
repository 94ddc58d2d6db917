"""Runs the stages of a config, or continues a run that was stopped.

Usage: gen-ssd run --config=FILE[:ARGUMENT] --workdir=DIR [--config.FIELD=VALUE ...]
       python -m gen_ssd.main ...         (the same, for pods: one process per host)

  --config    a Python file with get_config(argument): see configs/
  --workdir   where everything of the run goes; the same command again continues it
  --config.X  any setting of gen_ssd/config.py, such as --config.select.k=8

For example:
  gen-ssd run --config=configs/quickstart.py --workdir=runs/quickstart
  gen-ssd run --config=configs/own.py:TEACHER,STUDENT,train.jsonl,test.jsonl --workdir=runs/mine
"""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags


def main() -> None:
  """The command `gen-ssd run`."""
  if {"-h", "--help"} & {*sys.argv}:
    print(__doc__.strip())
    return
  config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
  flags.DEFINE_string("workdir", None, "Where everything of the run goes.")
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(_run)


def _run(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)  # checkpoint libraries log every step they take
  from gen_ssd import config as config_lib  # after the flags: importing jax takes a second
  from gen_ssd import stages

  workdir = pathlib.Path(flags.FLAGS.workdir)
  try:
    config = config_lib.parse(flags.FLAGS.config)
    stages.begin(config, workdir)
  except ValueError as error:  # a mistake of the user: one message, no traceback
    sys.exit(f"gen_ssd: {error}")
  for stage in config.stages:
    stages.STAGES[stage](config, workdir)


if __name__ == "__main__":
  main()
