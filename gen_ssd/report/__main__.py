"""Draws the page of a run from what it has written so far, or prints its table and some traces.

Usage: gen-ssd report --workdir=DIR [--latex=mathml]
       gen-ssd report --workdir=DIR --text [flags]

  --latex     text (default), or mathml: browsers draw the formulas of problems and traces
  --text      print instead of drawing: the table of arms, and the first traces that fit the flags
  --arm       only traces of this arm
  --verdict   only those that are right, wrong, unverifiable or pruned
  --stop      only those that ended so: ended, length, pruned
  --against   only those whose verdict is another one in this arm; both traces are printed
  --limit     how many of them (default: 5)

For example:
  gen-ssd report --workdir=runs/quickstart
  gen-ssd report --workdir=runs/quickstart --text --arm=gen_ssd --against=random --verdict=wrong
"""

from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd.report import page
from gen_ssd.report import terminal
from gen_ssd.report import words

MOST = 10_000  # traces that can be printed


def main() -> None:
  """The command `gen-ssd report`."""
  with errors.command():
    arguments = config_files.Arguments("report", __doc__ or "")
    arguments.folder("workdir")
    arguments.add_argument("--text", action="store_true")
    arguments.add_argument("--latex", choices=("text", "mathml"), default="text")
    for name in terminal.Wanted._fields:
      arguments.add_argument(f"--{name}")
    given = vars(arguments.parse_args())
    workdir, as_text = given.pop("workdir"), given.pop("text")
    latex = given.pop("latex")
    given = {name: value for name, value in given.items() if value is not None}
    if given and not as_text:
      name, value = next(iter(given.items()))
      raise errors.UserError(f"--{name} is {errors.clip(repr(value))}: it needs --text")
    if "limit" in given:
      given["limit"] = _limit(given["limit"])
    if as_text:
      print(terminal.text(workdir, terminal.Wanted(**given)))
    else:
      print(f"report: {words.visible(str(page.write_report(workdir, formulas=latex)))}")


def _limit(text):
  if not (text.isascii() and text.isdecimal() and len(text) < 9 and int(text) <= MOST):
    raise errors.UserError(
      f"--limit is {errors.clip(repr(text))}: it must be a whole number from 0 to {MOST:,}"
    )
  return int(text)


if __name__ == "__main__":
  main()
