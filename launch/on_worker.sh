#!/usr/bin/env bash
# What launch/tpu_vm.sh has every worker do: start, status, logs and stop of the job on this host.
#
#   bash launch/on_worker.sh start [NAME=VALUE ...] -- [ARGS of vireid_jax.main]
#   bash launch/on_worker.sh status | logs [LINES] | stop
#   bash launch/on_worker.sh idle      fails, with a message, if the job runs
#
# The job is launch/supervise.sh under systemd, or in a session of its own where there is no
# systemd: it outlives the ssh session, and it gets SIGTERM when the machine shuts down.
#
#   UNIT            name of the job (vireid)
#   ENV_DIR         environment that setup_host.sh made (~/vireid_env)
#   STATE_DIR       log, state and process id (~/.vireid)
#   STOP_SECONDS    time between SIGTERM and SIGKILL (300)
#   NAME=VALUE      environment of the job
set -euo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

unit=${UNIT:-vireid}
env=${ENV_DIR:-$HOME/vireid_env}
state=${STATE_DIR:-$HOME/.vireid}
stop_s=${STOP_SECONDS:-300}
if [[ ! $stop_s =~ ^[0-9]+$ ]]; then
  echo "error: STOP_SECONDS is '$stop_s', expected a whole number" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
log=$state/$unit.log
pid_file=$state/$unit.pid
mkdir -p "$state"

with_systemd() {
  [[ -d ${SYSTEMD_DIR:-/run/systemd/system} ]] && command -v systemd-run >/dev/null
}
running() {
  if with_systemd; then
    systemctl is-active --quiet "$unit"
  else
    [[ -s $pid_file ]] && kill -0 "$(<"$pid_file")" 2>/dev/null
  fi
}

refuse_if_running() {
  if running; then
    echo "error: $(uname -n): job $unit runs already; see it with logs, end it with stop" >&2
    exit 1
  fi
}

action=${1-}
shift || true
case $action in
  start)
    refuse_if_running
    settings=()
    while (($#)) && [[ $1 != -- ]]; do
      if [[ ! $1 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then
        echo "error: '$1' stands before --, expected NAME=VALUE" >&2
        exit 2
      fi
      settings+=("$1")
      shift
    done
    shift || true
    job=(env PYTHONUNBUFFERED=1 "${settings[@]}"
      bash "$root/launch/supervise.sh" --status "$state/status.json"
      -- "$env/bin/python" -m vireid_jax.main "$@")
    if with_systemd; then
      sudo systemctl reset-failed "$unit" 2>/dev/null || true
      # KillMode=mixed: SIGTERM to supervise.sh alone, which passes it on once; after that long
      # SIGKILL to all. Locked memory is unlimited: TPU drivers pin what they transfer.
      sudo systemd-run --unit="$unit" --uid="$(id -u)" --gid="$(id -g)" \
        --working-directory="$root" --property=KillMode=mixed \
        --property="TimeoutStopSec=$stop_s" --property=LimitNOFILE=65536 \
        --property=LimitMEMLOCK=infinity "--property=StandardOutput=append:$log" \
        "--property=StandardError=append:$log" "--setenv=HOME=$HOME" "${job[@]}"
    else
      ulimit -Sn "$(ulimit -Hn)"
      cd "$root"
      nohup setsid "${job[@]}" >>"$log" 2>&1 </dev/null &
      echo $! >"$pid_file"
    fi
    echo "started $unit on $(uname -n), log $log"
    ;;
  idle) refuse_if_running ;;
  status)
    if running; then echo "$(uname -n): $unit runs"; else echo "$(uname -n): $unit does not run"; fi
    [[ ! -s $state/status.json ]] || cat "$state/status.json"
    ;;
  logs)
    [[ -f $log ]] || { echo "no log yet: $log" && exit 0; }
    tail -n "${1:-50}" "$log"
    ;;
  stop)
    running || { echo "$(uname -n): $unit does not run" && exit 0; }
    if with_systemd; then
      sudo systemctl stop "$unit"
    else
      pid=$(<"$pid_file")
      kill -TERM "$pid"
      for ((i = 0; i < 10 * stop_s; i++)); do
        running || break
        sleep 0.1
      done
      if running; then kill -KILL -- "-$pid"; fi
    fi
    echo "$(uname -n): $unit stopped"
    ;;
  *)
    echo "error: the action is '$action', expected start, status, logs, stop or idle" >&2
    exit 2
    ;;
esac
