#!/usr/bin/env bash
# A run on a TPU slice of Compute Engine (TPU7x, v6e, v5p): a managed instance group whose machines
# are created together, with a workload policy that connects them.
#
#   launch/mig.sh --name=NAME --project=PROJECT --zone=ZONE --topology=4x4x4 \
#     [--machine-type=tpu7x-standard-4t] [--spot | --reservation=NAME] [options] \
#     -- --config=FILE --workdir=/FOLDER [flags of gen_ssd.main]
#
# It makes the policy, the template and the group where they are missing, and then does what
# launch/tpu_vm.sh does, with the same options: --setup, --retries, --timeout, --poll, --dirty,
# --autodelete and --dry-run.
#
#   --image-family    of the machines; the default is for TPU7x. Its project is
#                     ubuntu-os-accelerator-images.
# shellcheck disable=SC2154  # `options` sets the variables of the options
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

spot=no flags=spot
option name "$name_pattern" "$name_right"
option project "$word_pattern" 'the name of a Google Cloud project'
option zone '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, as us-central1-c'
option topology '[0-9]+x[0-9]+(x[0-9]+)?' 'the chips in each direction, as 4x4x4'
option machine-type '[a-z0-9]+-[a-z0-9]+-[0-9]+t' 'a TPU machine, as tpu7x-standard-4t' \
  tpu7x-standard-4t
option image-family "$word_pattern" 'an image family' ubuntu-accel-2404-amd64-tpu-tpu7x
option reservation "($word_pattern)?" 'the name of a reservation' ''
options "$@"
[ "$spot" = no ] || [ -z "$reservation" ] || mistake '--spot and --reservation exclude each other'

chips=$((${topology//x/*})) per_machine=${machine_type##*-}
workers=$((chips / ${per_machine%t}))
((workers * ${per_machine%t} == chips && workers > 0)) || mistake "--topology is '$topology':" \
  "its $chips chips must be a multiple of the ${per_machine%t} in a $machine_type"

where=(--project="$project" --zone="$zone")
region=${zone%-*}
# Their names tell their settings, because an old one is used again.
policy=$name-$topology
template=$name-$(quoted "$machine_type" "$image_family" "$spot" "$reservation" | cksum | cut -d' ' -f1)
group=(gcloud compute instance-groups managed)
delete_command=("${group[@]}" delete "$name" "${where[@]}" --quiet)
instances=()

there() {  # COMMAND ...: whether what it describes exists; not, in a dry run
  if [ "$dry_run" = yes ]; then
    does "$@"
    return 1
  fi
  "$@" >/dev/null 2>"$scratch/error" && return 0
  grep -qi 'not found\|notFound\|NOT_FOUND' "$scratch/error" && return 1
  cat "$scratch/error" >&2
  exit 1
}

create() {
  local made waited=0 kind=()
  if [ "$spot" = yes ]; then kind=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
  if [ -n "$reservation" ]; then
    kind=(--provisioning-model=RESERVATION_BOUND --reservation-affinity=specific
      --reservation="$reservation" --instance-termination-action=DELETE)
  fi
  local policies=(gcloud compute resource-policies)
  if ((workers > 1)) && ! there "${policies[@]}" describe "$policy" --project="$project" \
    --region="$region"; then
    does "${policies[@]}" create workload-policy "$policy" --project="$project" --region="$region" \
      --type=HIGH_THROUGHPUT --accelerator-topology="$topology" || exit 1
  fi
  local templates=(gcloud compute instance-templates)
  if ! there "${templates[@]}" describe "$template" --project="$project"; then
    does "${templates[@]}" create "$template" --project="$project" --machine-type="$machine_type" \
      --image-family="$image_family" --image-project=ubuntu-os-accelerator-images \
      --maintenance-policy=TERMINATE --boot-disk-size=200GB --scopes=cloud-platform \
      "${kind[@]}" || exit 1
  fi
  if ! there "${group[@]}" describe "$name" "${where[@]}"; then
    made=("${group[@]}" create "$name" "${where[@]}" --template="$template" --size="$workers"
      --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing)
    if ((workers > 1)); then
      made+=(--workload-policy="projects/$project/regions/$region/resourcePolicies/$policy")
    fi
    does "${made[@]}" || exit 1
  fi
  until list_instances; do
    if [ "$waited" = 0 ]; then say "waiting for the $workers machines of $name"; fi
    waited=1
    pause "$poll"
  done
}

list_instances() {  # sets instances; 0 if all are running, 1 if not, 2 if there is no answer
  local command answer
  command=("${group[@]}" list-instances "$name" "${where[@]}" '--format=value(instance.basename(),status)')
  if [ "$dry_run" = yes ]; then
    does "${command[@]}"
    mapfile -t instances < <(seq -f "$name-%g" 0 $((workers - 1)))
    return
  fi
  answer=$("${command[@]}" 2>"$scratch/error") || {
    grep -qi 'not found\|notFound\|NOT_FOUND' "$scratch/error" && return 1
    cat "$scratch/error" >&2
    return 2
  }
  mapfile -t instances < <(awk '$2 == "RUNNING" { print $1 }' <<<"$answer" | sort)
  [ ${#instances[@]} = "$workers" ]
}

healthy() { list_instances; }
delete() { does "${delete_command[@]}"; }

copy() {
  local instance
  for instance in "${instances[@]}"; do
    does gcloud compute scp "$1" "$instance:$2" "${where[@]}" || return 1
  done
}

on() { does gcloud compute ssh "${instances[$1]}" "${where[@]}" --command="$2"; }

run_on_machines
