#!/usr/bin/env bash
# The quickstart on this machine: ./launch/local.sh [main's flags ...]
# All checks and tests:           ./launch/local.sh test
# Some tests, without the checks: ./launch/local.sh test tests/config_test.py [pytest's flags ...]
#
# Makes .venv and installs into it, with uv where it is there and with pip otherwise, the versions
# of the lock file if this Python has one. Needs Python 3.11 or newer.
# Set PYTHON to choose one, VENV and WORKDIR for other folders. Safe to run twice, also at once.
set -euo pipefail
cd "$(dirname "$0")/.."

what=run
if [ "${1:-}" = test ]; then
  what="test"
  shift
fi

python=${PYTHON:-}
for candidate in python3 python3.13 python3.12 python3.11; do
  [ -n "$python" ] && break
  "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$candidate
done
if [ -z "$python" ]; then
  echo "launch/local.sh: no Python 3.11 or newer found; install one, or set PYTHON to its path" >&2
  exit 1
fi

requirements=(-e . -r requirements.txt)
[ "$what" = test ] && requirements+=(-r requirements-test.txt)
lock=requirements-lock-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
[ -e "$lock" ] && requirements+=(-c "$lock")

venv=${VENV:-.venv}
done_mark="$venv/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$what"
(
  flock 9  # a second run at once waits for the first one's installation
  if [ ! -e "$done_mark" ]; then
    echo "installing into $venv (once; about a minute) ..."
    "$python" -m venv "$venv"
    if command -v uv >/dev/null; then
      uv pip install --quiet --python "$venv/bin/python" "${requirements[@]}"
    else
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore "${requirements[@]}"
    fi
    touch "$done_mark"
  fi
) 9>"${TMPDIR:-/tmp}/gen_ssd-$(pwd | cksum | cut -d' ' -f1).lock"

export JAX_PLATFORMS="${JAX_PLATFORMS-cpu}" PYTHONPATH=.
if [ "$what" = test ]; then
  if [ $# = 0 ]; then
    bin=$venv/bin
    "$bin/ruff" check --quiet .
    "$bin/ruff" format --quiet --check .
    "$bin/lint-imports" --no-cache
    "$bin/pyright" --pythonpath "$bin/python"
    set -- --numprocesses=2 --dist=loadfile  # a test file stays in one process, with its fixtures
  fi
  exec "$venv/bin/python" -m pytest "$@"
fi
# Large memory pages: an update of the bundled student takes about a fifth less time.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
workdir=${WORKDIR:-runs/quickstart-$(date +%Y%m%d-%H%M%S)-$$}
exec "$venv/bin/python" -m gen_ssd.main --config=configs/quickstart.py --workdir="$workdir" "$@"
