"""All settings at their defaults. gen_ssd/config.py documents them."""

from gen_ssd import config


def get_config(arg=""):
  del arg
  return config.default()
