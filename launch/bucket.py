"""What worker.sh does in a bucket. It needs only what is installed for the run.

bucket.py put FILE ... FOLDER    copies files of this machine into a folder of the bucket
bucket.py remove FILE ...        removes those of the files that exist
bucket.py get FOLDER HERE        copies the files of a folder, except logs, into the folder HERE
bucket.py fetch FILE HERE        copies one file to HERE, if it exists and HERE does not
"""

import pathlib
import sys

from gen_ssd import folders


def put(*files):
  *names, folder = files
  for name in map(pathlib.Path, names):
    folders.write(folders.path(folder) / name.name, name.read_bytes())


def remove(*files):
  for file in map(folders.path, files):
    if file.exists():
      file.unlink()


def get(folder, here):
  source = folders.path(folder)
  for file in source.iterdir() if source.exists() else ():
    if file.suffix != ".log":
      folders.write(pathlib.Path(here) / file.name, file.read_bytes())


def fetch(file, here):
  source, target = folders.path(file), pathlib.Path(here)
  if source.exists() and not target.exists():
    folders.write(target, source.read_bytes())


if __name__ == "__main__":
  {"put": put, "remove": remove, "get": get, "fetch": fetch}[sys.argv[1]](*sys.argv[2:])
