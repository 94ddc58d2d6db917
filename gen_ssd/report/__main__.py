"""Draws the page of a run from what it has written so far.

Usage: gen-ssd report --workdir=DIR

For example:
  gen-ssd report --workdir=runs/quickstart
"""

import argparse
import sys

from gen_ssd.report import page


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
  try:
    print(f"report: {page.write_report(workdir)}")
  except (OSError, ValueError) as error:
    print(f"gen_ssd: --workdir={workdir} is not the workdir of a run: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
