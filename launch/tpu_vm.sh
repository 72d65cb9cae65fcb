#!/usr/bin/env bash
# A run on Cloud TPU VMs, from one chip to a pod slice, by queued resources.
#
#   bash launch/tpu_vm.sh up                 ask for the machines, wait until they are there
#   bash launch/tpu_vm.sh run -- ARGS        copy the code, set up, start on every worker
#   bash launch/tpu_vm.sh status             state of the machines and of the job
#   bash launch/tpu_vm.sh logs [LINES]       last lines of every worker
#   bash launch/tpu_vm.sh stop               save and stop the job, keep the machines
#   bash launch/tpu_vm.sh resume -- ARGS     after a preemption: new machines, the same job
#   bash launch/tpu_vm.sh down               delete the machines; ends the costs
#
# ARGS are those of vireid_jax.main; --workdir must be a folder that all workers share. Variables:
#
#   PROJECT ZONE NAME   where, and how the machines are called (required)
#   ACCELERATOR         v6e-16, v5e-16 (Google's name is v5litepod-16), v5p-32, ... (required)
#   SPOT=1|0            spot machines, cheap and taken away at any time (1), or on demand (0)
#   BUCKET MOUNT        bucket that every worker mounts with gcsfuse, and where (/mnt/vireid)
#   RUNTIME             image of the machines, where the one of ACCELERATOR is not wanted
#   QR                  name of the queued resource (NAME-qr)
#   POLL_SECONDS        between looks at a request that waits (30)
#   PASS                names of variables that go on to the job: PASS="LIBTPU_INIT_ARGS"
#
# --dry_run after the action prints the commands, as for machines that are there; for up, that are
# not; for resume, that are lost.
set -euo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

usage="tpu_vm.sh up|run|status|logs|stop|resume|down [--dry_run] [-- ARGS of vireid_jax.main]"
die() {
  echo "error: $*" >&2
  exit 2
}
fail() {
  echo "error: $*" >&2
  exit 1
}
action=${1-}
case $action in
  up | run | status | logs | stop | resume | down) shift ;;
  *)
    die "the action is '$action', expected up, run, status, logs, stop, resume or down;" \
      "usage: $usage"
    ;;
esac
dry="" lines=50 job=()
while (($#)); do
  case $1 in
    --dry_run) dry=1 ;;
    --help) exec bash "$0" --help ;;
    --)
      shift
      job=("$@")
      break
      ;;
    *)
      [[ $action == logs && $1 =~ ^[0-9]+$ ]] || die "unknown argument '$1'; usage: $usage"
      lines=$1
      ;;
  esac
  shift
done

# --- what is missing or wrong, all of it before the first command
example=(PROJECT=my-project ZONE=us-east5-b NAME=vireid ACCELERATOR=v6e-16)
for pair in "${example[@]}"; do
  name=${pair%%=*}
  [[ -n ${!name-} ]] ||
    die "$name is not set, expected something like ${pair#*=}; export $pair"
done
# https://cloud.google.com/tpu/docs/runtimes
# shellcheck disable=SC2153  # not the variable in small letters
case $ACCELERATOR in
  v6e-*) image=v2-alpha-tpuv6e ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v5e-* | v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
  *) image=${RUNTIME:-} ;;
esac
[[ -n $image ]] || die "no runtime version is known for ACCELERATOR '$ACCELERATOR', expected" \
  "v6e-N, v5p-N, v5e-N or v4-N; set RUNTIME to one of https://cloud.google.com/tpu/docs/runtimes"
image=${RUNTIME:-$image}
accelerator=${ACCELERATOR/#v5e-/v5litepod-}
case ${SPOT:=1} in
  0 | 1) ;;
  *) die "SPOT is '$SPOT', expected 1 (spot) or 0 (on demand)" ;;
esac
IFS=$' \t\n' read -rd '' -a pass <<<"${PASS-}" || true
queued=${QR:-$NAME-qr}
mount=${MOUNT:-/mnt/vireid}
place=(--project="$PROJECT" --zone="$ZONE")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

check_job() {
  local argument previous="" workdir="" advice name
  advice="a folder that every worker sees: set BUCKET and pass --workdir=$mount/runs/NAME (a bucket"
  advice+=" mounted with gcsfuse), or mount a Filestore share on all workers"
  for argument in "${job[@]}"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#*=}
    [[ $previous != --workdir ]] || workdir=$argument
    previous=$argument
  done
  ((${#job[@]})) || die "no arguments after --, expected those of vireid_jax.main; usage: $usage"
  case $workdir in
    "") die "--workdir is missing, expected $advice" ;;
    gs://*) die "--workdir is '$workdir', expected $advice" ;;
    /*) ;;
    *) die "--workdir is '$workdir', a folder on each worker's own disk; expected $advice" ;;
  esac
  [[ -n ${BUCKET-} || $workdir/ != "$mount"/* ]] ||
    die "--workdir is under $mount, expected BUCKET to say what is mounted there; set BUCKET," \
      "or MOUNT=none if you mounted it yourself"
  for name in "${pass[@]}"; do
    # Of anything but a name bash would evaluate what stands in it.
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
      die "PASS has '$name', expected names of variables, as in PASS='LIBTPU_INIT_ARGS TMPDIR'"
    [[ -n ${!name+set} ]] || die "PASS names $name, expected a variable that is set; export $name"
  done
}

# --- commands
say() { echo "tpu_vm: $*" >&2; }
do_it() {
  if [[ -n $dry ]]; then
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    printf '\n'
  else
    "$@"
  fi
}
# The request's state, empty if there is none; assumed in a dry run. The states:
# https://cloud.google.com/tpu/docs/queued-resources
look() {
  local state errors
  if [[ -n $dry ]]; then
    echo "$1"
    return
  fi
  errors=$(mktemp)
  if state=$(gcloud compute tpus queued-resources describe "$queued" "${place[@]}" \
    --format='value(state.state)' 2>"$errors"); then
    echo "$state"
  elif ! grep -q NOT_FOUND "$errors"; then
    # No access is not the same as no machines: those may be there and cost.
    cat "$errors" >&2
    rm "$errors"
    fail "cannot ask for the state of $queued; its reason is above (gcloud auth login?)"
  fi
  rm "$errors"
}
create() {
  local spot=()
  ((SPOT == 0)) || spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$queued" --node-id="$NAME" "${place[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$image" "${spot[@]}"
}
delete() {
  # --force takes the machines with it; without it a request that still has a node is refused.
  do_it gcloud compute tpus queued-resources delete "$queued" "${place[@]}" --force --quiet
}
await() {
  local state last=none
  while :; do
    state=$(look ACTIVE)
    [[ $state == "$last" ]] || say "$queued is ${state:-not there}"
    last=$state
    case $state in
      ACTIVE) return ;;
      ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES) ;;
      *)
        gcloud compute tpus queued-resources describe "$queued" "${place[@]}" >&2 || true
        fail "the request is ${state:-gone}, expected ACTIVE; its reason is above. Delete it with" \
          "tpu_vm.sh down, and try again, another zone or SPOT=0"
        ;;
    esac
    sleep "${POLL_SECONDS:-30}"
  done
}
on_workers() {
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command="$1"
}
quoted() {
  local text
  printf -v text ' %q' "$@"
  printf '%s' "${text:1}"
}

run_job() {
  local archive setup words=() name
  if [[ -n ${BUCKET-} ]]; then
    words+=("JAX_COMPILATION_CACHE_DIR=$mount/xla_cache") # at home it would go with the machine
  fi
  for name in "${pass[@]}"; do words+=("$name=${!name}"); done
  temporary=$(mktemp -d)
  trap 'rm -rf "$temporary"' EXIT
  archive=$temporary/vireid.tar.gz
  # The commit, not the folder: no data, runs or keys travel by accident.
  do_it git -C "$root" archive --format=tar.gz --output="$archive" HEAD ||
    fail "cannot pack $root, expected a git checkout; clone the project and run this from there"
  [[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] ||
    say "uncommitted changes are not copied: the workers get the last commit"
  # Set up by ssh, not by a startup script: its messages are seen here, and it can be repeated.
  setup=(bash vireid/launch/setup_host.sh tpu)
  [[ -z ${BUCKET-} ]] || setup+=(--bucket "$BUCKET" --mount "$mount")
  on_workers 'test ! -d vireid || bash vireid/launch/on_worker.sh idle'
  do_it gcloud compute tpus tpu-vm scp "$archive" "$NAME:vireid.tar.gz" "${place[@]}" --worker=all
  on_workers "rm -rf vireid && mkdir vireid && tar -xzf vireid.tar.gz -C vireid"
  on_workers "$(quoted "${setup[@]}")"
  on_workers "$(quoted bash vireid/launch/on_worker.sh start "${words[@]}" -- "${job[@]}")"
  say "started; tpu_vm.sh logs shows its output, tpu_vm.sh down ends the costs"
}

case $action in
  up)
    state=$(look "")
    case $state in
      "") create ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "$queued is $state, expected none or a sound one; tpu_vm.sh resume goes on with its" \
          "job on new machines, tpu_vm.sh down deletes it"
        ;;
      *) say "$queued is there already, $state" ;;
    esac
    await
    ;;
  run)
    check_job
    state=$(look ACTIVE)
    [[ $state == ACTIVE ]] || fail "$queued is ${state:-not there}, expected ACTIVE; tpu_vm.sh up" \
      "makes and awaits the machines, tpu_vm.sh resume replaces lost ones"
    run_job
    ;;
  resume)
    check_job
    state=$(look SUSPENDED)
    if [[ $state == ACTIVE ]]; then
      say "$queued is ACTIVE: its machines are kept, the job is started on them"
    else
      # A lost machine keeps its name taken until its request is deleted.
      case $state in
        "") create ;;
        ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES)
          say "$queued is $state: it is awaited"
          ;;
        *)
          delete
          create
          ;;
      esac
      await
    fi
    run_job
    ;;
  status)
    state=$(look ACTIVE)
    echo "$queued: ${state:-not there, nothing is paid for}"
    [[ $state != ACTIVE ]] || on_workers 'bash vireid/launch/on_worker.sh status'
    ;;
  logs) on_workers "bash vireid/launch/on_worker.sh logs $lines" ;;
  stop) on_workers 'bash vireid/launch/on_worker.sh stop' ;;
  down) delete ;;
esac
