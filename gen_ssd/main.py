"""Runs the stages of a config: python -m gen_ssd.main --config=configs/quickstart.py --workdir=..."""
import pathlib

from absl import app
from absl import flags
from ml_collections import config_flags

from gen_ssd import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the run goes.")


def main(argv):
  del argv
  config = config_lib.parse(CONFIG.value)
  workdir = pathlib.Path(WORKDIR.value)
  config_lib.claim(workdir, config)
  from gen_ssd import mesh, train
  mesh.start(config.model_parallel)
  stages = {"pretrain": train.pretrain}
  for stage in config.stages:
    stages[stage](config, workdir)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
