#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster; start it on the login node, in tmux:
#
#   launch/slurm.sh --name=NAME --nodes=2 --gpus-per-node=8 [--processes=node|gpu] \
#     [--partition=NAME] [--account=NAME] [--time=1-00:00:00] [--cuda=13] [options] \
#     -- --config=FILE --workdir=/FOLDER [flags of gen_ssd.main]
#
# It puts the committed files of this checkout, and their installation, beside the run in
# WORKDIR/launch, submits a job that starts one process per node (or GPU), shows worker 0's log,
# and submits again with the same workdir after a preemption or at the end of --time, but not after
# a mistake (exit code 2) or a bug (1). Ctrl-C stops only the log here.
#
#   --setup=COMMAND   run in the job before the processes, as to load modules
#   --retries=20      new submissions at most
#   --timeout=1800    seconds for all processes to start, once the job runs
#   --poll=15         seconds between looks
#   --dirty           send changes that are not committed, too
#   --dry-run         print the commands; run none
# shellcheck disable=SC2154  # `options` sets the variables of the options
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

option name "$name_pattern" "$name_right"
option nodes '[1-9][0-9]{0,3}' 'the number of nodes'
option gpus-per-node '[1-9][0-9]?' 'the number of GPUs of a node'
option processes 'node|gpu' 'node (one process per node) or gpu (one per GPU)' node
option partition "($word_pattern)?" 'the name of a partition' ''
option account "($word_pattern)?" 'the name of an account' ''
option time '([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}' 'a time limit, as 1-00:00:00' 1-00:00:00
option cuda '12|13' '12 or 13' 13
options "$@"
[[ $workdir = /* ]] || mistake "--workdir is '$workdir': it must be the absolute path of a folder" \
  "that all nodes see"
[ "$autodelete" = no ] || mistake '--autodelete is not for Slurm: a job ends with its processes'

files=$workdir/launch/${revision:0:12}
each=1
if [ "$processes" = gpu ]; then each=$gpus_per_node; fi
workers=$((nodes * each))

install() {  # into the shared folder, once for a revision
  does mkdir -p "$files"
  make_copy "$scratch/files.tar.gz"
  does tar -xzf "$scratch/files.tar.gz" -C "$files"
  if [ "$dry_run" = no ]; then echo "$label" >"$files/REVISION"; fi
  does bash "$files/launch/worker.sh" setup "cuda$cuda"
}

job() {  # the script of the job
  local one_process
  one_process=$(quoted bash "$files/launch/worker.sh" run "$workdir" -- "${main_flags[@]}")
  echo '#!/usr/bin/env bash'
  echo "rm -f $workdir/launch/worker-*.exit $workdir/launch/worker-*.started"
  if [ -n "$setup" ]; then printf '%s\n' "$setup"; fi
  # JAX finds the number of processes, and which one this is, in Slurm's variables. With one
  # process per node it would use one GPU only, if it were not told which.
  # shellcheck disable=SC2016  # expanded in the job
  echo 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
  # shellcheck disable=SC2016
  echo 'export JAX_COORDINATOR_ADDRESS=$head:8476 JAX_COORDINATOR_PORT=8476'
  if [ "$processes" = node ]; then
    echo "export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus_per_node - 1)))"
  fi
  echo "srun --ntasks=$workers --ntasks-per-node=$each --kill-on-bad-exit=0 $one_process"
}

submit() {  # sets id
  local submitted
  submitted=(sbatch --parsable --requeue --job-name="$name" --nodes="$nodes"
    --ntasks-per-node="$each" --gpus-per-node="$gpus_per_node" --exclusive --time="$time"
    --signal=TERM@120 --open-mode=append --output="$workdir/launch/slurm-%j.log")
  if [ -n "$partition" ]; then submitted+=(--partition="$partition"); fi
  if [ -n "$account" ]; then submitted+=(--account="$account"); fi
  if [ "$dry_run" = yes ]; then
    does "${submitted[@]}" "$workdir/launch/job.sh"
    say "where $workdir/launch/job.sh is"
    job
    id=0
    return
  fi
  rm -f "$workdir"/launch/worker-*.exit "$workdir"/launch/worker-*.started
  job >"$workdir/launch/job.sh"
  id=$("${submitted[@]}" "$workdir/launch/job.sh") || {
    say "Slurm does not accept the job: see above"
    exit 1
  }
  id=${id%%;*}
  say "submitted job $id; scancel $id stops it"
}

look_here() { read_poll "$(bash launch/worker.sh poll "$workdir" "$workers" "$seen")"; }

follow_job() {  # until it leaves the queue; then codes are those of its processes
  local state waited=0 who
  while true; do
    # An unreachable controller is not the end of the job; an id it has forgotten is.
    if state=$(squeue --noheader --jobs="$id" --format=%T 2>"$scratch/error"); then
      :
    elif grep -qi 'invalid job id' "$scratch/error"; then
      state=''
    else
      state=UNKNOWN
    fi
    look_here
    if [ -z "$state" ]; then break; fi
    if [[ " ${codes[*]} " != *' ? '* ]]; then
      waited=-1
    elif [ "$state" = RUNNING ] && [ "$waited" != -1 ]; then
      if [ "$waited" -ge "$timeout" ]; then
        who=$(numbers_of '?')
        say "worker ${who// /, } of $workers did not start within $timeout s of job $id: there is" \
          "no $workdir/launch/worker-${who%% *}.started. Either its node is down, or it does not" \
          "see $workdir; see $workdir/launch/slurm-$id.log. Cancelling the job."
        scancel "$id"
        exit 1
      fi
      waited=$((waited + poll + 1))
    fi
    pause "$poll"
  done
  for _ in 1 2 3; do  # a shared folder may be late
    if [[ " ${codes[*]} " != *' - '* ]]; then return; fi
    pause "$poll"
    look_here
  done
}

install || {
  say "the installation failed: see above"
  exit 1
}
if [ "$dry_run" = yes ]; then
  submit
  does squeue --noheader --jobs="$id" --format=%T
  exit 0
fi
id=$(squeue --noheader --me --name="$name" --format=%i | head -n 1)
if [ -n "$id" ]; then say "job $id is there: following it"; fi
for ((attempt = 0; attempt <= retries; attempt++)); do
  if [ -z "$id" ]; then submit; fi
  follow_job
  if [[ ${codes[*]} =~ ^[?\ ]+$ ]]; then
    say "job $id ended before a process started: see $workdir/launch/slurm-$id.log; not trying again"
    exit 1
  fi
  id=''
  result=$(verdict)
  case $result in
    0)
      say "done: $workdir"
      exit 0
      ;;
    again) say "preempted or stopped (exit codes: ${codes[*]}); submitting again with the same workdir" ;;
    *)
      who=$(numbers_of "$result")
      say "worker ${who// /, } ended with exit code $result: the log above and" \
        "$workdir/launch/worker-${who%% *}.log say why; not trying again"
      exit "$result"
      ;;
  esac
done
say "gave up after $retries retries; the same command continues"
exit 1
