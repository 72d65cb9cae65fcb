#!/usr/bin/env bash
# Makes one host ready to train: Python >= 3.11 in an environment of its own, this package with the
# extra of its devices, more open files, and a bucket as a folder. Safe to repeat.
#
#   bash launch/setup_host.sh tpu|cuda|cpu [--env DIR] [--bucket BUCKET] [--mount DIR] [--fake DIR]
#
#   --env DIR        the environment (~/vireid_env)
#   --bucket BUCKET  Cloud Storage bucket to mount with gcsfuse, which is installed if need be
#   --mount DIR      where (/mnt/vireid)
#   --fake DIR       for tests: DIR stands for the home folder, and a command that would install
#                    anything or change the machine is printed instead
#
# Python: uv if it is there, else a python3.x >= 3.11, else a uv of its own (in ~/.vireid_uv), since
# the TPU images of Ubuntu 22.04 bring Python 3.10. PYTHON names another interpreter.
set -euo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

die() {
  echo "error: $*" >&2
  exit "${code:-2}"
}
usage="setup_host.sh tpu|cuda|cpu [--env DIR] [--bucket BUCKET] [--mount DIR] [--fake DIR]"
devices=${1-}
case $devices in
  tpu | cuda) extra="[$devices]" ;;
  cpu) extra="" ;;
  *) die "the devices are '$devices', expected tpu, cuda or cpu; usage: $usage" ;;
esac
shift
env="" bucket="" mount="" fake=""
while (($#)); do
  name=${1%%=*}
  case $name in
    --env | --bucket | --mount | --fake) ;;
    *) die "unknown option $1; usage: $usage" ;;
  esac
  if [[ $1 == *=* ]]; then
    value=${1#*=}
  else
    (($# >= 2)) || die "$name lacks its value; usage: $usage"
    value=$2
    shift
  fi
  shift
  [[ -n $value ]] || die "$name is empty; usage: $usage"
  printf -v "${name#--}" %s "$value"
done
[[ $bucket != gs://* && $bucket != */* ]] || die "--bucket is '$bucket', expected the name alone"
[[ -z $mount || -n $bucket ]] || die "--mount without --bucket: name the bucket to mount there"
home=${fake:-$HOME}
env=${env:-$home/vireid_env}
mount=${mount:-${fake}/mnt/vireid}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "setup_host: $*"; }
# Runs a command that changes more than files under the home folder, or downloads.
change() {
  if [[ -n $fake ]]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# --- the environment
recent='import sys; sys.exit(sys.version_info < (3, 11))'
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3.14 python3; do
    if "$candidate" -c "$recent" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}
stamp="$devices $(sha256sum <"$source/pyproject.toml") $source"
if [[ $(cat "$env/.vireid" 2>/dev/null) == "$stamp" ]]; then
  say "$env is up to date"
else
  uv=$(command -v uv || true)
  python=$(find_python)
  if [[ -z $uv && -z $python ]]; then
    command -v python3 >/dev/null || code=1 die "no python3 here, expected one to install uv with"
    say "no Python >= 3.11: a uv of its own brings one"
    change python3 -m venv "$home/.vireid_uv" ||
      code=1 die "python3 -m venv failed; on Debian and Ubuntu: sudo apt-get install python3-venv"
    change "$home/.vireid_uv/bin/pip" install --quiet uv
    uv=$home/.vireid_uv/bin/uv
  fi
  if [[ -n $uv ]]; then
    if [[ ! -x $env/bin/python ]]; then
      change "$uv" venv --python "${PYTHON:-3.12}" "$env"
    fi
    change "$uv" pip install --python "$env/bin/python" --editable "$source$extra"
  else
    # An environment that a stopped setup left half made has no pip: it is made anew.
    if ! "$env/bin/python" -m pip --version >/dev/null 2>&1; then
      change "$python" -m venv --clear "$env"
    fi
    change "$env/bin/python" -m pip install --quiet --editable "$source$extra"
  fi
  mkdir -p "$env"
  printf '%s\n' "$stamp" >"$env/.vireid"
  say "$env is ready"
fi

# --- open files: every shard of the data and every checkpoint array is one, for each reader
limits=/etc/security/limits.d/vireid.conf
hard=$(ulimit -Hn)
if [[ $hard != unlimited ]] && ((hard < 65536)); then
  say "raising the limit of open files from $hard to 65536, from the next login on"
  # shellcheck disable=SC2016  # $1 is for the inner shell
  change sudo sh -c 'printf "%s\n" "* soft nofile 65536" "* hard nofile 65536" >"$1"' sh "$limits"
fi

# --- the bucket
if [[ -n $bucket ]]; then
  if ! command -v gcsfuse >/dev/null; then
    say "installing gcsfuse"
    # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
    # shellcheck disable=SC2016  # the expansions are for the inner shell
    change sudo bash -c 'set -euo pipefail
      key=/usr/share/keyrings/cloud.google.asc
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg -o "$key"
      packages="https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main"
      echo "deb [signed-by=$key] $packages" >/etc/apt/sources.list.d/gcsfuse.list
      apt-get update -qq && apt-get install -y -qq gcsfuse'
  fi
  if mountpoint -q "$mount" 2>/dev/null; then
    say "$mount is mounted"
  else
    change sudo mkdir -p "$mount"
    change sudo chown "$(id -u):$(id -g)" "$mount"
    # A checkpoint is committed by renaming its folder, which gcsfuse refuses above this many files
    # (in a bucket with a hierarchical namespace a rename is one operation: prefer such a bucket).
    # Metadata is not cached, or a host would overlook for a minute what another one saved.
    # https://cloud.google.com/storage/docs/cloud-storage-fuse/cli-options
    change gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
      "$bucket" "$mount"
    say "gs://$bucket is $mount"
  fi
fi
