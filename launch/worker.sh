#!/usr/bin/env bash
# What the other scripts of this folder run on every worker, in the copy that they sent there.
#
#   worker.sh setup EXTRA                          install into .venv, with jax[EXTRA]; once
#   worker.sh start WORKDIR -- MAIN_FLAGS ...      start the run in the background; once
#   worker.sh run WORKDIR -- MAIN_FLAGS ...        the same in the foreground
#   worker.sh stop                                 stop it
#   worker.sh poll WORKDIR WORKERS SEEN            how it goes, and the log after SEEN bytes
#
# Each worker writes WORKDIR/launch/worker-N.started, .log, and at the end .exit (its exit code). If
# WORKDIR is in a bucket (gs://), the log goes there at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
python_version=3.11

setup() {  # EXTRA: tpu, cuda12 or cuda13
  local lock=requirements-lock-$python_version.txt mark
  mark=.venv/.installed-$(cat requirements.txt "$lock" | cksum | cut -d' ' -f1)-$1
  exec 9>.setup.lock
  flock 9  # a second setup at once waits for the first
  if [ -e "$mark" ]; then return; fi
  export PATH="$HOME/.local/bin:$PATH"
  # uv brings its own Python: the machines' images have an older one.
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --clear --python "$python_version" .venv
  uv pip install --quiet --python .venv/bin/python -e . -r requirements.txt gcsfs "jax[$1]" -c "$lock"
  touch "$mark"
}

metadata() {  # what a Google machine is told about itself; nothing elsewhere
  curl -sf -m 5 -H Metadata-Flavor:Google \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" || true
}

find_place() {  # number: which worker this is. Leaves finding the others to JAX where it can.
  local hosts first
  export JAX_COORDINATOR_PORT=8476  # JAX's own choice, 8482, is closed by Google's firewall rule
  number=${SLURM_PROCID:-${TPU_WORKER_ID:-}}  # Slurm, GKE
  if [ -n "$number" ]; then return; fi
  number=$(metadata agent-worker-number)
  number=${number:-0}
  hosts=$(metadata worker-network-endpoints)
  if [[ $hosts = *,* ]]; then  # names, or name:id:address
    first=${hosts%%,*}
    export JAX_COORDINATOR_ADDRESS=${first##*:}:$JAX_COORDINATOR_PORT
  fi
}

# The marks of workers are files in WORKDIR/launch. If that is in a bucket, this worker's are also here.
find_marks() {  # WORKDIR: marks
  workdir=$1 marks=$1/launch
  if [[ $1 = gs://* ]]; then marks=$HOME/.gen_ssd/${1#gs://}; fi
  mkdir -p "$marks"
}

bucket() {  # COMMAND ...: of bucket.py, if the workdir is in a bucket
  if [[ $workdir = gs://* ]]; then PYTHONPATH=. .venv/bin/python launch/bucket.py "$@"; fi
}

forget() {  # MARK ...
  rm -f "${@/#/$marks/}"
  bucket remove "${@/#/$workdir/launch/}"
}

run() {  # WORKDIR -- MAIN_FLAGS ...
  local code=0
  find_marks "$1"
  shift 2
  find_place
  bucket fetch "$workdir/launch/worker-$number.log" "$marks/worker-$number.log"  # of another machine
  forget "worker-$number.exit"
  echo "$(hostname) $(cat REVISION 2>/dev/null)" >"$marks/worker-$number.started"
  bucket put "$marks/worker-$number.started" "$workdir/launch"
  export JAX_COMPILATION_CACHE_DIR=$workdir/programs PYTHONPATH=. PYTHONUNBUFFERED=1
  trap : TERM INT  # Python gets the signal too; this shell stays to write its exit code
  .venv/bin/python -m gen_ssd.main "$@" >>"$marks/worker-$number.log" 2>&1 &
  local pid=$!
  trap 'kill -TERM $pid 2>/dev/null' TERM
  trap 'kill -INT $pid 2>/dev/null' INT
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break  # else a signal ended the wait, not the run
  done
  wait "$pid" 2>/dev/null || code=$?
  echo "$code" >"$marks/.exit-$number"
  mv "$marks/.exit-$number" "$marks/worker-$number.exit"
  bucket put "$marks/worker-$number".{log,exit} "$workdir/launch"
  return "$code"
}

pid() { cat "$HOME/.gen_ssd.pid" 2>/dev/null || echo none; }
running() { grep -qas worker.sh "/proc/$(pid)/cmdline"; }

start() {  # WORKDIR -- MAIN_FLAGS ...
  if running; then
    if [ "$(cat "$HOME/.gen_ssd.command")" = "$PWD $*" ]; then return; fi
    echo "launch/worker.sh: another run is in progress here, of $(cat "$HOME/.gen_ssd.command");" \
      "end it first, with: bash $(basename "$PWD")/launch/worker.sh stop" >&2
    exit 2
  fi
  find_place
  find_marks "$1"
  forget "worker-$number.exit" "worker-$number.started"
  nohup bash launch/worker.sh run "$@" </dev/null >.launch.log 2>&1 9>&- &
  echo $! >"$HOME/.gen_ssd.pid"
  echo "$PWD $*" >"$HOME/.gen_ssd.command"
}

stop() {  # the run that `start` left here, so that all begin again together
  local i
  for ((i = 0; i < 125; i++)); do  # a training saves first, in 20 seconds at most
    running || return 0
    if [ "$i" = 0 ]; then kill -TERM "$(pid)" || true; fi
    sleep 0.2
  done
  pkill -KILL -P "$(pid)" || true
}

poll() {  # WORKDIR WORKERS SEEN: "codes SIZE CODE ...", then what is new
  # in worker 0's log of SIZE bytes. A code is - while a worker runs, and ? before it has started.
  local i codes=()
  find_marks "$1"
  all=$marks
  if [[ $1 = gs://* ]]; then
    all=$(mktemp -d)
    trap 'rm -rf "$all"' EXIT
    bucket get "$workdir/launch" "$all"
  fi
  for ((i = 0; i < $2; i++)); do
    if [ -e "$all/worker-$i.exit" ]; then
      codes+=("$(cat "$all/worker-$i.exit")")
    elif [ -e "$all/worker-$i.started" ]; then
      codes+=(-)
    else
      codes+=('?')
    fi
  done
  local size=0 from=$3
  if [ -e "$marks/worker-0.log" ]; then size=$(stat -c %s "$marks/worker-0.log"); fi
  if ((size < from)); then from=0; fi  # another machine, another log
  if ((size - from > 100000)); then from=$((size - 100000)); fi
  echo "codes $size ${codes[*]}"
  if ((size > from)); then  # tail may be cut off, when the log has grown meanwhile
    { tail -c "+$((from + 1))" "$marks/worker-0.log" || true; } | head -c $((size - from))
  fi
}

command=$1
shift
case $command in
  setup | start | run | stop | poll) "$command" "$@" ;;
  *)
    echo "launch/worker.sh: setup, start, run, stop or poll, not $command" >&2
    exit 2
    ;;
esac
