"""The defaults. gen_ssd/config.py explains every setting; name the models with flags."""

from gen_ssd import config


def get_config(arg=""):
  del arg
  return config.default()
