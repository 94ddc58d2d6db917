"""Runs the stages of a config: python -m gen_ssd.main --config=configs/quickstart.py --workdir=..."""

import pathlib
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where everything of the run goes; run the same "
  "command again to continue a run that was stopped.",
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)  # checkpoint libraries log every step they take
  from gen_ssd import config as config_lib  # after the flags: importing jax takes a second
  from gen_ssd import stages

  workdir = pathlib.Path(WORKDIR.value)
  try:
    config = config_lib.parse(CONFIG.value)
    stages.begin(config, workdir)
  except ValueError as error:  # the user's to mend: one message, no traceback
    sys.exit(f"gen_ssd: {error}")
  for stage in config.stages:
    stages.STAGES[stage](config, workdir)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
