"""Every setting at its default; gen_ssd/config.py says what each means."""

from gen_ssd import config


def get_config(arg=""):
  del arg
  return config.default()
