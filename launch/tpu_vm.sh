#!/usr/bin/env bash
# A run on a Cloud TPU slice (v4 to v6e), through a queued resource:
#
#   launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --type=v6e-64 \
#     --runtime-version=v2-alpha-tpuv6e [--spot | --reserved] [options] \
#     -- --config=FILE --workdir=/FOLDER [flags of gen_ssd.main]
#
# It asks for the slice, waits for it, installs the committed files of this checkout on every
# worker, starts the same command on all of them, shows worker 0's log, and starts again with the
# same workdir after a preemption, but not after a mistake (exit code 2) or a bug (1). Ctrl-C stops
# only the following; the same command follows again.
#
#   --setup=COMMAND   run once on every worker before the installation, as to mount the workdir
#   --retries=20      new starts at most
#   --timeout=1800    seconds for all workers to start
#   --poll=15         seconds between looks
#   --dirty           send changes that are not committed, too
#   --autodelete      delete the slice at the end, however the run ends
#   --dry-run         print the commands; run none. It assumes two workers.
# shellcheck disable=SC2154  # `options` sets the variables of the options
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

spot=no reserved=no flags='spot reserved'
option name "$name_pattern" "$name_right"
option project "$word_pattern" 'the name of a Google Cloud project'
option zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, as us-east5-a'
option type 'v[0-9][a-z0-9]*-[0-9]+' 'an accelerator type, as v5p-64 or v6e-64'
option runtime-version "$word_pattern" 'a TPU software version, as v2-alpha-tpuv6e'
options "$@"
[ "$spot$reserved" != yesyes ] || mistake '--spot and --reserved exclude each other'

where=(--project="$project" --zone="$zone")
queued=(gcloud compute tpus queued-resources)
machine=(gcloud compute tpus tpu-vm)
delete_command=("${queued[@]}" delete "$name" "${where[@]}" --force --quiet)

state() {  # of the queued resource; NONE if there is none
  local answer
  if [ "$dry_run" = yes ]; then
    does "${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' >&2
    echo "${pretend:-NONE}"
  elif answer=$("${queued[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' \
    2>"$scratch/error"); then
    echo "$answer"
  elif grep -qi 'NOT_FOUND\|not found' "$scratch/error"; then
    echo NONE
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
  fi
}

create() {
  local now before='' unknown=0 asked=no kind=()
  if [ "$spot" = yes ]; then kind=(--spot); fi
  if [ "$reserved" = yes ]; then kind=(--reserved); fi
  while true; do
    now=$(state)
    if [ "$now" != "$before" ]; then say "queued resource $name: $now"; fi
    before=$now
    case $now in
      ACTIVE) break ;;
      NONE)
        does "${queued[@]}" create "$name" "${where[@]}" --node-id="$name" \
          --accelerator-type="$type" --runtime-version="$runtime_version" "${kind[@]}" || {
          say "the slice cannot be asked for: see above"
          exit 1
        }
        asked=yes pretend=ACTIVE
        ;;
      FAILED | SUSPENDED)
        if [ "$now$asked" = FAILEDyes ]; then
          say "the slice could not be made; it says:"
          "${queued[@]}" describe "$name" "${where[@]}" >&2 || true
          finish 1
        fi
        delete || exit 1
        ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        if [ "$unknown" = 5 ]; then
          say "the state of $name cannot be read: see above"
          exit 1
        fi
        ;;
    esac
    pause "$poll"
  done
  find_workers
}

find_workers() {
  local addresses
  addresses=("${machine[@]}" describe "$name" "${where[@]}" '--format=value(networkEndpoints.len())')
  if [ "$dry_run" = yes ]; then
    does "${addresses[@]}"
    workers=2
  else
    workers=$("${addresses[@]}")
  fi
}

healthy() {
  case $(state) in
    ACTIVE) ;;
    UNKNOWN) return 2 ;;
    *) return 1 ;;
  esac
}

delete() { does "${delete_command[@]}"; }
copy() { does "${machine[@]}" scp "$1" "$name:$2" "${where[@]}" --worker=all; }
on() { does "${machine[@]}" ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }

run_on_machines
