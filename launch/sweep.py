#!/usr/bin/env python3
"""`gen-ssd sweep` from a checkout that need not be installed: ./launch/sweep.py --help"""

import os
import pathlib
import sys

ROOT = str(pathlib.Path(__file__).resolve().parents[1])
sys.path[0] = ROOT  # in place of launch/
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))

from gen_ssd import __main__ as cli  # noqa: E402

sys.argv[1:1] = ["sweep"]
cli.main()
