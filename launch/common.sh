# shellcheck shell=bash disable=SC2034  # some variables are for the scripts that read this file
# What the launch scripts have in common: options, the copy of this checkout, and the loop that
# starts the run on every worker, follows it, and starts it again after a preemption.

script=launch/$(basename "$0")
revision='' label=''
dry_run=no autodelete=no dirty=no retries=20 timeout=1800 poll=15 setup=''
flags='' main_flags=()  # of gen_ssd.main
workdir=''

say() { echo "$script: $*" >&2; }

mistake() {
  say "$*"
  exit 2
}

# Options: each script calls `option NAME PATTERN 'what is right' [DEFAULT]` for its own, then
# `options "$@"`; flags='NAME ...' are those without a value. An option is then the shell variable of its name (- becomes _). Without a default
# it is required.
declare -A pattern=() right=() required=()

option() {
  pattern[$1]=$2 right[$1]=$3
  if [ $# = 4 ]; then printf -v "${1//-/_}" %s "$4"; else required[$1]=1; fi
}

name_pattern='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
word_pattern='[A-Za-z0-9][A-Za-z0-9._:/-]*'
name_right='at most 40 lower-case letters, digits and hyphens, beginning with a letter'

options() {
  option retries '[0-9]{1,3}' 'a whole number, 0 to 999' "$retries"
  option timeout '[0-9]{1,6}' 'a number of seconds' "$timeout"
  option poll '[0-9]{1,4}' 'a number of seconds' "$poll"
  local key value
  while [ $# -gt 0 ]; do
    if [[ $1 = --* && " dry-run autodelete dirty $flags " = *" ${1#--} "* && $1 != -- ]]; then
      key=${1#--}
      printf -v "${key//-/_}" yes
      shift
      continue
    fi
    case $1 in
      --)
        shift
        break
        ;;
      --help | -h)
        sed -n '2,/^# shellcheck/{/^# shellcheck/!s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
      --*=*)
        key=${1%%=*} value=${1#*=}
        shift
        ;;
      --*)
        key=$1 value=${2-}
        [ $# -ge 2 ] || mistake "$1 needs a value"
        shift 2
        ;;
      *) mistake "'$1' is not an option; gen_ssd's own flags come after --" ;;
    esac
    key=${key#--}
    if [ "$key" = setup ]; then
      setup=$value
      continue
    fi
    [ -n "${pattern[$key]-}" ] || mistake "--$key is not an option; they are" \
      "$(printf -- '--%s ' "${!pattern[@]}" setup dry-run autodelete dirty)${flags:+--${flags// / --} }(see --help)"
    [[ $value =~ ^(${pattern[$key]})$ ]] || mistake "--$key is '$value': it must be ${right[$key]}"
    printf -v "${key//-/_}" %s "$value"
    unset "required[$key]"
  done
  for key in "${!required[@]}"; do mistake "--$key is missing: ${right[$key]}"; done
  main_flags=("$@")
  check_main_flags "$@"
  check_checkout
}

check_main_flags() {
  local flag config=''
  for flag in "$@"; do
    case $flag in
      --workdir=*) workdir=${flag#*=} ;;
      --config=*) config=${flag#*=} ;;
    esac
  done
  [ -n "$config" ] || mistake "give gen_ssd's own flags after --, with --config=FILE among them"
  [[ $workdir =~ ^(gs:/)?/[A-Za-z0-9._=/-]+$ ]] || mistake "--workdir is '$workdir': it must be" \
    "a folder (letters, digits, . _ = -) that all workers see: one of a bucket, as in" \
    "-- --workdir=gs://BUCKET/runs/a, or the absolute path of a shared folder"
}

check_checkout() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
  revision=$(git rev-parse --verify --quiet HEAD) || mistake "$PWD is not a git checkout"
  label=$revision
  if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    [ "$dirty" = yes ] || mistake "there are changes that are not committed: commit them, so that" \
      "the run can be traced to a revision, or give --dirty to send them as they are"
    label=$revision-dirty
    revision=$(git rev-parse "$(git stash create)^{tree}")  # leaves branches and files as they are
  fi
  local config
  config=$(printf '%s\n' "${main_flags[@]}" | sed -n 's/^--config=\([^:]*\).*/\1/p' | tail -n 1)
  if [[ $config != /* ]] && ! git cat-file -e "$revision:$config" 2>/dev/null; then
    mistake "--config is '$config': it must be a file that is committed here"
  fi
}

quoted() { printf '%q ' "$@"; }

does() {  # runs a command; a dry run prints it instead
  if [ "$dry_run" = yes ]; then
    echo "+ $(quoted "$@")"
  else
    "$@"
  fi
}

pause() { if [ "$dry_run" = no ]; then sleep "$1"; fi; }

make_copy() {  # FILE: the committed files as a .tar.gz
  does git archive --format=tar.gz -o "$1" "$revision"
}

# The loop for machines that are reached by ssh. The script defines
#   create        makes the machines if they are not there; returns when all are ready
#   healthy       0 if all machines are still there, 1 if not, 2 if that cannot be found out
#   delete        deletes them
#   copy FILE DESTINATION, and on WORKER COMMAND (run there by a shell)
# and `create` sets workers (how many).
home_of_copy() { echo "gen_ssd-${revision:0:12}"; }

on_all() {  # COMMAND: on all workers at once; names those where it fails
  local i failed=() pids=()
  if [ "$dry_run" = yes ]; then
    for ((i = 0; i < workers; i++)); do on "$i" "$1"; done
    return
  fi
  for ((i = 0; i < workers; i++)); do
    on "$i" "$1" </dev/null >"$scratch/worker-$i" 2>&1 &
    pids+=($!)
  done
  for ((i = 0; i < workers; i++)); do wait "${pids[i]}" || failed+=("$i"); done
  if [ ${#failed[@]} = 0 ]; then return; fi
  say "failed on worker ${failed[*]} of $workers; worker ${failed[0]} says:"
  tail -n 20 "$scratch/worker-${failed[0]}" >&2
  return 1
}

install_on_all() {
  local folder
  folder=$(home_of_copy)
  make_copy "$scratch/$folder.tar.gz" || return 1
  copy "$scratch/$folder.tar.gz" "$folder.tar.gz" || return 1
  on_all "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && echo $label >$folder/REVISION" \
    || return 1
  if [ -n "$setup" ]; then on_all "$setup" || return 1; fi
  on_all "bash $folder/launch/worker.sh setup $extra"
}

# Sets codes, one a worker (- runs, ? has not started), and prints what is new in worker 0's log.
look() {
  local answer ask
  ask="bash $(home_of_copy)/launch/worker.sh poll $workdir $workers $seen"
  if [ "$dry_run" = yes ]; then
    on 0 "$ask"
    read -ra codes < <(yes 0 | head -n "$workers" | xargs)
    return
  fi
  answer=$(on 0 "$ask" </dev/null) || return 1
  read_poll "$answer"
}

read_poll() {  # the answer of worker.sh poll
  local first=${1%%$'\n'*}
  [[ $first = codes* ]] || return 1
  read -ra codes <<<"${first#codes}"
  seen=${codes[0]} codes=("${codes[@]:1}")
  if [[ $1 = *$'\n'* ]]; then printf '%s\n' "${1#*$'\n'}"; fi
}

numbers_of() {  # CODE: the workers that have it
  local i found=()
  for i in "${!codes[@]}"; do
    if [[ ${codes[i]} = "$1" ]]; then found+=("$i"); fi
  done
  echo "${found[*]}"
}

# What the exit codes of all workers mean: 0, `again`, or the code with which to stop. When one
# worker is killed or its machine is gone, the others end with 2 because they lose it: so whether
# any was killed counts first.
verdict() {
  local code result=0
  for code in "${codes[@]}"; do
    case $code in
      130 | 137 | 143 | - | '?')
        echo again
        return
        ;;
      0) ;;
      *) if [ "$result" != 1 ]; then result=$code; fi ;;
    esac
  done
  echo "$result"
}

# Waits for the end of the run on all workers: leaves codes. 1 when the machines are gone.
follow() {
  local unreachable=0 waited=0 after=0 health
  while true; do
    if look; then
      unreachable=0
      if [[ " ${codes[*]} " != *' ? '* ]]; then waited=-1; fi
      if [[ " ${codes[*]} " != *' - '* && $waited = -1 ]]; then return 0; fi
      if [ "$waited" -ge "$timeout" ]; then missing; fi
      # One has failed. The others notice within half a minute; who does not is gone.
      if [[ " ${codes[*]} " =~ ' '[1-9] ]]; then
        if [ "$after" -ge "$grace" ]; then return 0; fi
        after=$((after + poll + 1))
      fi
    else
      health=0
      healthy || health=$?
      [ "$health" != 1 ] || return 1
      # If nothing answers, it is this machine that is offline: wait.
      if [ "$health" = 0 ]; then unreachable=$((unreachable + 1)); fi
      [ "$unreachable" -lt 20 ] || return 1
    fi
    pause "$poll"
    if [ "$waited" != -1 ]; then waited=$((waited + poll + 1)); fi
  done
}

missing() {
  local who
  who=$(numbers_of '?')
  say "worker ${who// /, } of $workers did not start within $timeout s: there is no" \
    "$workdir/launch/worker-${who%% *}.started. Either it is down, or it does not see the same" \
    "$workdir as worker 0 (see --setup in launch/README.md)"
  finish 1
}

finish() {  # CODE: the end of the script
  if [ "$autodelete" = yes ]; then
    delete || say "deleting failed: delete it by hand, it costs money"
  elif [ "$dry_run" = no ]; then
    say "the machines are still there and cost money: give --autodelete, or delete them with" \
      "$(quoted "${delete_command[@]}")"
  fi
  exit "$1"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'say "stopped following; the run goes on, and costs money. The same command follows it again."; exit 130' INT
workers=1 codes=() seen=0 grace=90 extra=tpu delete_command=()

run_on_machines() {
  local attempt result folder health
  folder=$(home_of_copy)
  for ((attempt = 0; attempt <= retries; attempt++)); do
    create
    result=again
    if install_on_all && on_all "bash $folder/launch/worker.sh start $workdir -- $(
      quoted "${main_flags[@]}"
    )"; then
      if follow; then result=$(verdict); else lost; fi
    elif healthy; then
      say "the installation failed on machines that are there: see above"
      finish 1
    fi
    case $result in
      0)
        if [ "$dry_run" = no ]; then say "done: $workdir"; fi
        finish 0
        ;;
      again) say "preempted or stopped (exit codes: ${codes[*]}); starting again with the same workdir" ;;
      *) stop "$result" ;;
    esac
    health=0
    healthy || health=$?
    if [ "$health" = 1 ]; then lost; else on_all "bash $folder/launch/worker.sh stop" || true; fi
  done
  say "gave up after $retries retries; the same command continues"
  finish 1
}

lost() {
  say "the machines are gone or cannot be reached: making new ones"
  delete || true
}

stop() {  # CODE: an exit code that is never tried again
  local who
  who=$(numbers_of "$1")
  say "worker ${who// /, } ended with exit code $1: the log above and" \
    "$workdir/launch/worker-${who%% *}.log say why; not trying again"
  finish "$1"
}
