"""The command line: `gen-ssd COMMAND`, which is `python -m gen_ssd COMMAND`."""

import difflib
import importlib
import os
import sys

from gen_ssd import errors

COMMANDS = {  # name -> (module with a main(), what it does)
  "run": ("gen_ssd.main", "run a config: cold start, traces, students, results, page"),
  "plan": ("gen_ssd.plan", "will it fit a TPU slice, how fast can it be, what does it cost?"),
  "sweep": ("gen_ssd.sweep", "run the items of a sweep and compare them, or hand them out"),
  "evaluate": ("gen_ssd.evaluate", "measure a model on problems, compare two, or grade again"),
  "report": ("gen_ssd.report.__main__", "draw the page of a run, or print its table and traces"),
  "push": ("gen_ssd.push", "upload an arm's data set or a student to the Hugging Face hub"),
  "weights": ("gen_ssd.weights", "check a model: is it supported, are its logits right?"),
}
EXAMPLE = "gen-ssd run --config=configs/quickstart.py --workdir=runs/quickstart"


def usage() -> str:
  """What `gen-ssd --help` prints."""
  lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
  return "\n".join(
    [
      "Usage: gen-ssd COMMAND [flags]      (or: python -m gen_ssd COMMAND [flags])\n",
      *lines,
      "\n`gen-ssd COMMAND --help` shows the flags of a command. For example:",
      f"  {EXAMPLE}",
    ]
  )


def main() -> None:
  """Runs the command that the first argument names, with the other arguments."""
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ("-h", "--help"):
    print(usage())
    sys.exit(0 if arguments else 2)
  name = arguments[0]
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(
      f"gen-ssd: {name!r} is not a command: it must be one of {', '.join(COMMANDS)}{hint}",
      file=sys.stderr,
    )
    sys.exit(2)
  if os.getcwd() not in sys.path:  # as `python -m` does: config files import each other
    sys.path.insert(0, os.getcwd())
  sys.argv = [f"gen-ssd {name}", *arguments[1:]]
  with errors.command():  # Ctrl-C may come while jax is imported
    command = importlib.import_module(COMMANDS[name][0])
  command.main()


if __name__ == "__main__":
  main()
