"""Draws the page of a run from what it has written so far.

Usage: gen-ssd report --workdir=DIR

For example:
  gen-ssd report --workdir=runs/quickstart
"""

from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd.report import page
from gen_ssd.report import words


def main() -> None:
  """The command `gen-ssd report`."""
  with errors.command():
    arguments = config_files.Arguments("report", __doc__ or "")
    arguments.folder("workdir")
    workdir = arguments.parse_args().workdir
    print(f"report: {words.visible(str(page.write_report(workdir)))}")


if __name__ == "__main__":
  main()
