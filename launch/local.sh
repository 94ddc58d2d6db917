#!/usr/bin/env bash
# The quickstart on this machine: ./launch/local.sh [test] [main's flags ...]
# Makes .venv, installs the requirements, then runs the quickstart, or the tests with `test`.
# Needs Python 3.11 or newer (set PYTHON to choose one). Safe to run twice, also at once.
set -euo pipefail
cd "$(dirname "$0")/.."

what=run
requirements=requirements.txt
if [ "${1:-}" = test ]; then
  what=test
  requirements=requirements-test.txt
  shift
fi

python=${PYTHON:-}
for candidate in python3 python3.13 python3.12 python3.11; do
  [ -n "$python" ] && break
  "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$candidate
done
if [ -z "$python" ]; then
  echo "launch/local.sh: no Python 3.11 or newer here; install one, or set PYTHON to its path" >&2
  exit 1
fi

venv=${VENV:-.venv}
done_mark="$venv/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$what"
(
  flock 9  # a second run at once waits for the first one's installation
  if [ ! -e "$done_mark" ]; then
    echo "installing into $venv (once; about a minute) ..."
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$done_mark"
  fi
) 9>"${TMPDIR:-/tmp}/gen_ssd-$(pwd | cksum | cut -d' ' -f1).lock"

export JAX_PLATFORMS="${JAX_PLATFORMS-cpu}" PYTHONPATH=.
if [ "$what" = test ]; then
  exec "$venv/bin/python" -m pytest "$@"
fi
workdir=${WORKDIR:-runs/quickstart-$(date +%Y%m%d-%H%M%S)-$$}
exec "$venv/bin/python" -m gen_ssd.main --config=configs/quickstart.py --workdir="$workdir" "$@"
