"""Draws the page of a run from what it has written so far.

Usage: gen-ssd report --workdir=DIR

For example:
  gen-ssd report --workdir=runs/quickstart
"""

import argparse

from gen_ssd import errors
from gen_ssd.report import page
from gen_ssd.report import words


def main() -> None:
  """The command `gen-ssd report`."""
  parser = argparse.ArgumentParser(
    prog="gen-ssd report",
    description=__doc__.strip(),
    usage=argparse.SUPPRESS,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--workdir", required=True, metavar="DIR", help="the workdir of a run")
  workdir = parser.parse_args().workdir
  with errors.command():
    print(f"report: {words.visible(str(page.write_report(workdir)))}")


if __name__ == "__main__":
  main()
