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

from gen_ssd import config_files
from gen_ssd import errors


def main() -> None:
  """The command `gen-ssd run`."""
  with errors.command():
    arguments = config_files.Arguments("run", __doc__)
    arguments.add_argument("--config", required=True)
    arguments.folder("workdir")
    known, overrides = arguments.parse_known_args()
    config = config_files.load(known.config, overrides)
    from gen_ssd import config as config_lib  # after the flags: importing jax takes a second
    from gen_ssd import stages

    stages.run(config_lib.parse(config), known.workdir)


if __name__ == "__main__":
  main()
