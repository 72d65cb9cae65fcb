#!/usr/bin/env bash
# One run on TPU slices by xpk, Google's helper around GKE, JobSet and Kueue.
#
#   CLUSTER=... PROJECT=... ZONE=... IMAGE=... bash launch/gke/xpk.sh NAME [--dry_run] -- ARGS
#
#   TPU_TYPE=v6e-16  NUM_SLICES=1  MAX_RESTARTS=50
#
# xpk calls itself a tool for proofs of concept (https://github.com/AI-Hypercomputer/xpk): for runs
# that matter prefer jobset.yaml, which says all that it does. Its defaults, no restarts and 30 s to
# save, lose a preempted run; hence the options below. Every restart counts towards MAX_RESTARTS.
# The volume of jobset.yaml has to be attached to the cluster (xpk storage attach) at /shared.
#
#   xpk workload list --cluster=CLUSTER ...                     what runs
#   xpk workload delete --workload=NAME --cluster=CLUSTER ...   stop it; nodes cost until the
#                                                               cluster is deleted or scales down
set -euo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

die() {
  echo "error: $*" >&2
  exit 2
}
usage="CLUSTER=... PROJECT=... ZONE=... IMAGE=... bash launch/gke/xpk.sh NAME [--dry_run] -- ARGS"
name=${1-}
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die "NAME is '$name', expected small letters, digits and hyphens; usage: $usage"
shift
dry=""
if [[ ${1-} == --dry_run ]]; then
  dry=1
  shift
fi
[[ ${1-} == -- ]] || die "-- is missing before the arguments of vireid_jax.main; usage: $usage"
shift
for variable in CLUSTER PROJECT ZONE IMAGE; do
  [[ -n ${!variable-} ]] || die "$variable is not set; usage: $usage"
done
workdir=""
for argument in "$@"; do [[ $argument != --workdir=* ]] || workdir=${argument#*=}; done
[[ $workdir == /* ]] ||
  die "--workdir is '$workdir', expected a folder that all hosts share; pass" \
    "--workdir=/shared/runs/$name"

# xpk wants one string, which a shell in the container reads.
command="ulimit -l 68719476736 && exec python -m vireid_jax.main"
for argument in "$@"; do printf -v command '%s %q' "$command" "$argument"; done
line=(xpk workload create --workload="$name" --cluster="$CLUSTER" --project="$PROJECT"
  --zone="$ZONE" --tpu-type="${TPU_TYPE:-v6e-16}" --num-slices="${NUM_SLICES:-1}"
  --docker-image="$IMAGE" --max-restarts="${MAX_RESTARTS:-50}" "--restart-on-exit-codes=42,43,143"
  --termination-grace-period-seconds=120 --command="$command")
if [[ -n $dry ]]; then
  printf '%q' "${line[0]}"
  printf ' %q' "${line[@]:1}"
  echo
else
  "${line[@]}"
fi
