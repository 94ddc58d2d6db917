"""What worker.sh does in a bucket, with the installation of the run: no other tool need be there.

bucket.py put FILE ... FOLDER    copies files of this machine into the folder
bucket.py remove FILE ...        removes files that are there
bucket.py get FOLDER HERE        makes HERE the copy of the folder; logs that are here stay as they are
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
