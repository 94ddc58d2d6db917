"""Rows of problem files, and files of the Hugging Face hub. Whatever a file holds, there is a message.

A file is JSONL (one object a line), JSON (a list of objects) or Parquet.
"""

import codecs
from collections import Counter
import fnmatch
import functools
import json
import pathlib
import re
import reprlib

import pyarrow as pa
import pyarrow.parquet as pq

from gen_ssd import errors
from gen_ssd.errors import UserError

HUB = "hf://datasets/"
SHORT = reprlib.Repr()  # unlike repr, it ends at any depth
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60
SHORT.maxlist = SHORT.maxdict = 20


def show(value: object) -> str:
  """A value of a file for a message: short, on one line, without control characters."""
  return errors.clip(SHORT.repr(value))


def rows(path: str) -> list[tuple[str, object]]:
  """[("path:line", row), ...] of one file; for Parquet and JSON, line is the number of the row.

  A row of a JSON file is whatever stands there; the caller checks that it is a dict. A cell of a
  Parquet file that Python cannot hold becomes the exception that says why. Raises UserError for a
  file that cannot be read or has another format.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror}") from None
  if path.endswith(".parquet"):
    return _parquet(data, path)
  text = _decode(data, path)
  if path.endswith(".json"):
    found = _json(text, path) if text.strip() else []
    if not isinstance(found, list):
      raise UserError(f"{path} is one JSON {type(found).__name__}: it must be a list of rows")
    return [(f"{path}:{i}", row) for i, row in enumerate(found, 1)]
  # Not splitlines, which splits at characters that JSON allows inside of texts.
  lines = [(f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1)]
  return [(place, _json(line, place)) for place, line in lines if line.strip()]


def _decode(data, path):
  """The text of a file, without its byte order mark."""
  data = data.removeprefix(codecs.BOM_UTF8)
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    start = data.rfind(b"\n", 0, error.start) + 1
    line = data.count(b"\n", 0, error.start) + 1
    raise UserError(
      f"{path}:{line} is not UTF-8: byte {error.start - start + 1} of the line is "
      f"0x{data[error.start]:02x}; save the file as UTF-8"
    ) from None


def _json(text, place):
  try:
    return json.loads(text, object_pairs_hook=_object)
  except RecursionError:
    raise UserError(f"{place} is nested too deeply: a row is an object of texts") from None
  except ValueError as error:  # also a number of more digits than Python reads
    hint = "; a file of one object a line is named .jsonl" if "Extra data" in str(error) else ""
    raise UserError(f"{place} is not JSON: {errors.clip(str(error))}{hint}") from None


def _object(pairs):
  """A dict; ValueError for a field that comes twice, of which json would keep the last."""
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
    raise ValueError(f"an object has the field {show(twice)} twice")
  return found


def _parquet(data, path):
  try:  # its only input is the file, and Arrow has many kinds of errors for broken ones
    table = pq.ParquetFile(pa.BufferReader(data)).read()
  except Exception as error:
    raise UserError(f"{path} is not Parquet: {errors.one_line(error)}") from None
  names = table.column_names
  if len({*names}) < len(names):
    raise UserError(f"{path} has two columns {show(Counter(names).most_common(1)[0][0])}")
  columns = [[_cell(cell) for cell in column] for column in table.columns]
  return [(f"{path}:{i}", dict(zip(names, cells))) for i, cells in enumerate(zip(*columns), 1)]


def _cell(cell):
  try:  # its only input is the file: bytes that are no text, times of a zone that nobody knows
    return cell.as_py()
  except Exception as error:
    return error


# ---------------------------------------------------------------- the hub


def address(file: str) -> tuple[str, str | None, str]:
  """(repository, revision or None, pattern) of `hf://datasets/OWNER/NAME[@REVISION]/PATTERN`.

  Raises UserError when a part is missing or odd. The message completes the sentence
  `FIELD is VALUE: it must be`.
  """
  from huggingface_hub import errors as hub_errors  # takes a second
  from huggingface_hub.utils import validate_repo_id

  owner, name, pattern = [*file.removeprefix(HUB).split("/", 2), "", ""][:3]
  name, at, revision = name.partition("@")
  if (
    not (file.startswith(HUB) and owner and name and pattern)
    or pattern[0] == "/"
    or pattern[-1] == "/"
  ):
    raise UserError(f"{HUB}OWNER/NAME/PATTERN, with a pattern such as data/test*.parquet")
  try:
    validate_repo_id(f"{owner}/{name}")
  except hub_errors.HFValidationError:
    raise UserError(
      f"{HUB}OWNER/NAME/PATTERN, where OWNER and NAME are made of letters, digits, -, _ and ., "
      "at most 96 in all, do not begin or end with - or ., and have no -- and no .."
    ) from None
  if at and (not re.fullmatch(r"[\w.+-]{1,100}", revision, re.ASCII) or ".." in revision):
    raise UserError(
      f"{HUB}OWNER/NAME@REVISION/PATTERN, with a branch, a tag or a commit, such as main"
    )
  if (
    ".." in pattern.split("/")
    or not pattern.isprintable()
    or re.search(r"[{}\\]", pattern.replace("{split}", ""))
  ):
    raise UserError(
      f"{HUB}OWNER/NAME/PATTERN, with a pattern of names, *, ? and [...]; the only braces are "
      "{split}, which becomes train or test"
    )
  return f"{owner}/{name}", revision or None, pattern


@functools.cache  # every stage asks for the same files
def download(place: str) -> list[str]:
  """Paths of the .parquet and .jsonl files of an `address`, downloaded if need be.

  Raises UserError when there is none, or when the hub does not give them.
  """
  import huggingface_hub as hub
  from huggingface_hub import errors as hub_errors

  repo, revision, pattern = address(place)
  wanted = [pattern, f"{pattern}.parquet", f"{pattern}.jsonl"]
  try:
    folder = hub.snapshot_download(
      repo, repo_type="dataset", revision=revision, allow_patterns=wanted
    )
  except hub_errors.GatedRepoError:
    raise UserError(
      f"{place}: accept the terms of {repo} on the hub first (they are required), then run "
      "`hf auth login` here"
    ) from None
  except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
    raise UserError(
      f"{place}: the hub has no dataset {repo}"
      f"{f' at {revision}' if revision else ''}, or you have no access to it"
    ) from None
  except Exception as error:  # its only input is the address; a network fails in many ways
    if getattr(error, "errno", None) in errors.MACHINE:
      raise
    raise UserError(
      f"{place}: the hub cannot be reached and {repo} is not in the local cache "
      f"({type(error).__name__}). On a "
      f"machine with a network run `hf download {repo} --repo-type dataset --local-dir DIR`, "
      "and give the path of the file"
    ) from None
  found = sorted(
    str(p)
    for p in pathlib.Path(folder).rglob("*")
    if p.suffix in (".parquet", ".jsonl")
    and any(fnmatch.fnmatch(p.relative_to(folder).as_posix(), w) for w in wanted)
  )
  if not found:
    raise UserError(f"{place}: {repo} has no .parquet or .jsonl file of that pattern")
  return found
