#!/usr/bin/env bash
# A run on TPUs in a GKE cluster, with xpk:
#
#   launch/xpk.sh --name=NAME --project=PROJECT --zone=ZONE --cluster=CLUSTER --type=v6e-64 \
#     [--spot | --reservation=NAME] [--storage=NAME] [options] \
#     -- --config=FILE --workdir=/FOLDER [flags of gen_ssd.main]
#
# xpk puts the committed files of this checkout on a Python image and starts it on every host; the
# hosts install the lock file and run the same command. GKE starts all of them again after a
# preemption (an exit code of 127 to 255), but not after a mistake (2) or a bug (1). The cluster
# must exist, and --storage, from `xpk storage`, must show the workdir's folder to all hosts.
#
#   --retries=20      new starts at most
#   --timeout=1800    seconds for all hosts to start
#   --poll=15         seconds between looks
#   --dirty           send changes that are not committed, too
#   --autodelete      delete the workload at the end, however the run ends
#   --dry-run         print the commands; run none
# shellcheck disable=SC2154  # `options` sets the variables of the options
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

spot=no flags=spot
option name "$name_pattern" "$name_right"
option project "$word_pattern" 'the name of a Google Cloud project'
option zone '[a-z]+-[a-z]+[0-9]+(-[a-z])?' 'a zone, as us-east5-a'
option cluster "$name_pattern" "the cluster's name: $name_right"
option type "$word_pattern" 'a TPU type of xpk, as v6e-64 or tpu7x-4x4x4'
option reservation "($word_pattern)?" 'the name of a reservation' ''
option storage "($word_pattern)?" 'the name of a storage of xpk' ''
options "$@"
[ "$spot" = no ] || [ -z "$reservation" ] || mistake '--spot and --reservation exclude each other'
[ -z "$setup" ] || mistake '--setup is not for GKE: mount the workdir with --storage'

cluster_flags=(--cluster="$cluster" --project="$project" --zone="$zone")
delete_command=(xpk workload delete --workload="$name" "${cluster_flags[@]}" --force)
delete() { does "${delete_command[@]}"; }

create() {  # unless it is there
  local files=$scratch/files kind=()
  does xpk workload list "${cluster_flags[@]}" --filter-by-job="$name" || exit 1  # points kubectl there
  if [ "$dry_run" = no ] && kubectl get jobset "$name" >/dev/null 2>&1; then
    say "workload $name is there: following it"
    return
  fi
  if [ "$spot" = yes ]; then kind+=(--spot); fi
  if [ -n "$reservation" ]; then kind+=(--reservation="$reservation"); fi
  if [ -n "$storage" ]; then kind+=(--storage="$storage"); fi
  # One process for all chips of a host, as everywhere else.
  if [[ $type = tpu7x* ]]; then kind+=(--no-use-parallel-containers); fi
  make_copy "$scratch/files.tar.gz"
  does mkdir -p "$files"
  does tar -xzf "$scratch/files.tar.gz" -C "$files"
  if [ "$dry_run" = no ]; then echo "$label" >"$files/REVISION"; fi
  does xpk workload create --workload="$name" "${cluster_flags[@]}" --tpu-type="$type" \
    --num-slices=1 --base-docker-image=python:3.11 --script-dir="$files" \
    --max-restarts="$retries" --termination-grace-period-seconds=60 "${kind[@]}" \
    --command="bash launch/worker.sh setup tpu && exec bash launch/worker.sh run $workdir -- $(
      quoted "${main_flags[@]}"
    )" || exit 1
}

label=xpk.google.com/workload=$name
index='{.metadata.labels.batch\.kubernetes\.io/job-completion-index}'

pods() {  # a line for each: its index, name, phase
  kubectl get pods -l "$label" -o "jsonpath={range .items[*]}$index {.metadata.name} {.status.phase}{\"\\n\"}{end}"
}

waiting() {  # the hosts that are not running, as NUMBER (PHASE), of those that exist
  pods | awk '$3 == "Pending" { print "worker " $1 " (" $2 ")" }' | paste -sd, | sed 's/,/, /g'
}

state() {  # Completed, Failed or nothing while it runs
  kubectl get jobset "$name" -o 'jsonpath={.status.conditions[?(@.status=="True")].type}' |
    grep -o 'Completed\|Failed' | head -n 1 || true
}

if [ "$dry_run" = yes ]; then
  create
  does kubectl get jobset "$name"
  does kubectl get pods -l "$label"
  does kubectl logs -f -l "$label,batch.kubernetes.io/job-completion-index=0"
  if [ "$autodelete" = yes ]; then delete; fi
  exit 0
fi

create
waited=0 shown='' log=''
while true; do
  end=$(state)
  if [ -n "$end" ]; then break; fi
  first=$(pods | awk '$1 == 0 && $3 == "Running" { print $2 }' | tail -n 1)
  if [ -z "$(waiting)" ] && [ -n "$first" ]; then
    waited=-1
  elif [ "$waited" != -1 ] && [ "$waited" -ge "$timeout" ]; then
    say "not started within $timeout s: $(waiting). See: kubectl describe pods -l $label"
    finish 1
  fi
  if [ -n "$first" ] && [ "$first" != "$shown" ]; then  # worker 0 is new: follow its log
    if [ -n "$log" ]; then kill "$log" 2>/dev/null || true; fi
    kubectl logs -f "$first" &
    log=$! shown=$first
  fi
  sleep "$poll"
  if [ "$waited" != -1 ]; then waited=$((waited + poll + 1)); fi
done
if [ -n "$log" ]; then wait "$log" || true; fi
if [ "$end" = Completed ]; then
  say "done: $workdir"
  finish 0
fi
say "the workload failed; each host's exit code is in $workdir/launch/worker-N.exit: 2 is a mistake," \
  "1 a bug, and neither is tried again; others were, up to $retries times"
finish 1
