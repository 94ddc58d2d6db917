"""Where tests find the repository and, beside it, real data that is not part of it."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"  # tests that need it are skipped where it is absent
