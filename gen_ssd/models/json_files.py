"""The JSON files of a model directory, which others wrote: read whole, or refused in one message."""

import json
import os
import typing

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line


def read_object(file: str | os.PathLike) -> dict[str, typing.Any]:
  """The object in a JSON file. Raises UserError, naming the file, for anything else."""
  try:
    with open(file, encoding="utf-8") as f:
      found = json.load(f)
  except OSError as error:
    raise UserError(f"{clip(str(file))}: cannot be read: {error.strerror}") from None
  except (ValueError, RecursionError) as error:  # not UTF-8 or not JSON; nested too deeply
    raise UserError(f"{clip(str(file))}: not JSON in UTF-8: {one_line(error)}") from None
  if not isinstance(found, dict):
    raise UserError(f"{clip(str(file))}: it holds {clip(repr(found), 40)}, wanted a JSON object")
  return found
