"""Config files, the settings that a command line overrides in them, and command lines as a whole."""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import difflib
import importlib.util
import itertools
import os
import re
import traceback
from types import ModuleType
import typing

from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from gen_ssd import folders
from gen_ssd.errors import UserError

MOST_ITEMS = 1000  # of a sweep
VARIANTS = {"arms": "select", "tests": "evaluate"}  # their entries change fields of these


class Arguments(argparse.ArgumentParser):
  """The flags of a command. `--help` prints `text`; mistakes are UserErrors."""

  def __init__(self, name: str, text: str):
    logging.set_verbosity(logging.FATAL)  # Orbax logs all it does, and errors that it raises, too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it misses torch, we do not
    super().__init__(prog=f"gen-ssd {name}", allow_abbrev=False)
    self.text = text.strip()

  def format_help(self) -> str:
    return f"{self.text}\n"

  def error(self, message: str) -> typing.NoReturn:
    raise UserError(f"{message}; see {self.prog} --help")

  def folder(self, name: str, required: bool = True) -> None:
    """Adds the flag `--NAME`, the path of a folder."""
    self.add_argument(f"--{name}", required=required, type=self._folder)

  def _folder(self, text):
    if not text or not text.isprintable():
      raise argparse.ArgumentTypeError(f"it is {text!r}, which is not the path of a folder")
    return folders.path(text)


def module(path: str) -> ModuleType:
  """The Python file at `path`, imported. Raises UserError when it cannot be, or has no get_config."""
  if not os.path.isfile(path) or not path.endswith(".py"):
    raise UserError(f"--config is {path!r}: it must be a Python file that exists, see configs/")
  spec = importlib.util.spec_from_file_location("config_file", path)
  assert spec and spec.loader
  file = importlib.util.module_from_spec(spec)
  _of_user(file, spec.loader.exec_module, file)
  if not callable(getattr(file, "get_config", None)):
    raise UserError(
      f"--config is {path!r}: it must define get_config(), which returns the settings"
    )
  return file


def settings(file: ModuleType, *argument: str) -> ml_collections.ConfigDict:
  """What get_config of the file returns. Raises UserError when it fails or is no ConfigDict."""
  found = _of_user(file, file.get_config, *argument)
  if not isinstance(found, ml_collections.ConfigDict):
    raise UserError(
      f"get_config of {file.__file__} returned {found!r:.60}: it must return the ConfigDict of "
      "gen_ssd.config.default(), with changes"
    )
  return found


def sweep(file: ModuleType) -> list[typing.Any]:
  """What sweep() of the file yields. Raises UserError when it fails, or yields none or too many."""
  make = getattr(file, "sweep", None)
  if not callable(make):
    raise UserError(
      f"--config is {file.__file__!r}: it must define sweep(), which yields the changed settings of "
      "every item, as configs/ablation.py does"
    )
  made = _of_user(file, make)
  if isinstance(made, (str, dict)) or not isinstance(made, Iterable):
    raise UserError(f"sweep() of {file.__file__} returned {made!r:.60}: it must yield items")
  found = _of_user(file, list, itertools.islice(made, MOST_ITEMS + 1))
  if not 1 <= len(found) <= MOST_ITEMS:
    many = f"more than {MOST_ITEMS:,}" if found else "no"
    raise UserError(
      f"sweep() of {file.__file__} yields {many} items: it must be 1 to {MOST_ITEMS:,}"
    )
  return found


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """The settings of `FILE` or `FILE:ARGUMENT`, with the flags `overrides` applied.

  An override is `--config.FIELD=VALUE`; FIELD may be `arms.NAME.FIELD`, too, for any field of
  `select`, `arms.NAME.train.FIELD` for any of `train`, and `tests.NAME.FIELD` for any of `evaluate`.
  Raises UserError.
  """
  name, _, argument = path.partition(":")
  return override(settings(module(name), *([argument] if argument else [])), overrides)


def override(
  config: ml_collections.ConfigDict, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
  """The settings with the flags of `load` applied. Raises UserError."""
  for text in overrides:
    _check_override(config, text)
  known = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=known, sys_argv=["", *overrides])
    rest = known(["", *overrides])[1:]
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    text = next((x for x in overrides if f"flag {x}:" in str(error)), None)
    if text is None:
      raise UserError(f"{' '.join(overrides)}: {error}") from None
    field, _, value = text.lstrip("-").removeprefix("config.").partition("=")
    node: typing.Any = config
    for part in field.split("."):
      node = node[part]
    kind = "dict" if isinstance(node, ml_collections.ConfigDict) else type(node).__name__
    raise UserError(f"{field} is {value!r}: it must be of type {kind}") from None
  if rest:
    raise UserError(
      f"{' '.join(rest)}: there is no such argument; settings are --config.FIELD=VALUE"
    )
  return typing.cast(ml_collections.ConfigDict, known["config"].value)


def _of_user(file: ModuleType, call: typing.Callable, *arguments: typing.Any) -> typing.Any:
  """`call(*arguments)`, code of a config file: what it raises is one message with its line."""
  try:
    return call(*arguments)
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    path = file.__file__
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
      lines = [error.lineno]
    where = f", line {lines[-1]}" if lines else ""
    raise UserError(f"{path}{where}: {type(error).__name__}: {error}") from None


def _check_override(config: ml_collections.ConfigDict, text: str) -> None:
  """Raises UserError when `--config.FIELD=VALUE` names no field; adds a variant's, to be set."""
  match = re.fullmatch(r"--?(?:no)?config\.([\w.-]+)(?:=.*)?", text, re.DOTALL)
  if not match:  # a value that stands alone, or a form that only ml_collections understands
    return
  *parents, name = match[1].split(".")
  at: typing.Any = config
  for i, part in enumerate(parents):
    _add(config, at, part, parents[:i])
    at = _child(at, part, parents[:i])
  _add(config, at, name, parents)
  _child(at, name, parents)


def _add(config: ml_collections.ConfigDict, at: typing.Any, name: str, parents: list[str]) -> None:
  """Adds the field `name` to the changes `at`, which stand at `parents`, if they may have it."""
  match parents:
    case ["arms", _] if name == "train":
      value: typing.Any = ml_collections.ConfigDict(type_safe=False)
    case ["arms", _, "train"]:
      value = _child(config.train, name, parents)
    case ["arms", _, "train", "terms", _] | ["train", "terms", _]:
      from gen_ssd import config as config_lib

      term = ml_collections.ConfigDict(config_lib.plain(config_lib.Term()))
      value = _child(term, name, parents)
    case [variants, _] if variants in VARIANTS:
      value = _child(config.get(VARIANTS[variants], {}), name, parents)
    case _:
      return
  if isinstance(at, ml_collections.ConfigDict) and name not in at:
    with at.unlocked():
      at[name] = value  # of the right type; it is replaced at once


def _child(node: typing.Any, name: str, parents: list[str]) -> typing.Any:
  """node[name]. Raises UserError that names what there is instead."""
  where = ".".join(parents)
  if not isinstance(node, ml_collections.ConfigDict):
    raise UserError(f"{where}.{name} is not a field: {where} is a single setting")
  if name not in node:
    near = difflib.get_close_matches(name, node, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(node) or 'none'}"
    raise UserError(f"{where}{'.' * bool(where)}{name} is not a field; {hint}")
  return node[name]
