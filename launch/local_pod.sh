#!/usr/bin/env bash
# A pod on this machine: N CPU processes with fake devices that form one run.
#
#   bash launch/local_pod.sh N [--devices D] [--logs DIR] [--port PORT] [--grace SECONDS] -- ARGS
#
#   bash launch/local_pod.sh 2 --devices 4 -- --config=configs/smcl.py:synthetic --workdir=runs/pod
#
# Starts `${PYTHON:-python} -m vireid_jax.main ARGS` N times, each with D fake devices (default 1),
# told by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID to find each other.
#
#   DIR/<i>.log   what process i wrote, and DIR/pids its process id in line i+1
#   output        the same lines, each with "[i] " before it
#   signals       SIGTERM (also SIGHUP) and SIGINT go on to every process; a second one kills
#   leftovers     SECONDS after a failure or a signal (default: VIREID_HEARTBEAT_TIMEOUT + 60) what
#                 still runs is told to stop, and 10 s later it is killed
#
# Exit code: 0 if every process ended with 0; 42 if every failure was 42 (stopped, saved; repeat
# the command); otherwise the other failure that came first; 2 for a wrong command line.
set -uo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

die() {
  echo "error: $*" >&2
  exit 2
}
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  die "this is bash $BASH_VERSION, expected 4.4 or newer; on a Mac: brew install bash"
fi

whole() { [[ $1 =~ ^[0-9]+$ ]]; }
usage="local_pod.sh N [--devices D] [--logs DIR] [--port PORT] [--grace SECONDS] -- ARGS"
n=${1-}
[[ $n =~ ^[1-9][0-9]*$ ]] || die "N is '$n', expected a number of processes; usage: $usage"
shift
silence=${VIREID_HEARTBEAT_TIMEOUT:-100}
whole "$silence" || die "VIREID_HEARTBEAT_TIMEOUT is '$silence', expected a whole number of seconds"
devices=1 logs="" port="" grace=$((silence + 60))
while (($#)) && [[ $1 != -- ]]; do
  name=${1%%=*}
  case $name in
    --devices | --logs | --port | --grace) ;;
    *) die "unknown option $1 (options of vireid_jax come after --); usage: $usage" ;;
  esac
  if [[ $1 == *=* ]]; then
    value=${1#*=}
  else
    (($# >= 2)) || die "$name lacks its value; usage: $usage"
    value=$2
    shift
  fi
  shift
  [[ $name == --logs ]] || whole "$value" || die "$name is '$value', expected a whole number"
  printf -v "${name#--}" %s "$value"
done
[[ ${1-} == -- ]] || die "-- is missing before the arguments of vireid_jax.main; usage: $usage"
shift
((devices >= 1)) || die "--devices is $devices, expected at least 1"
if [[ -z $logs ]]; then
  logs=$(mktemp -d "${TMPDIR:-/tmp}/vireid_pod.XXXXXX") || die "no folder for the logs; pass --logs"
fi
mkdir -p "$logs" || die "cannot make the folder of --logs, $logs"
rm -f "$logs/pids"
for ((i = 0; i < n; i++)); do
  rm -f "$logs/$i.pipe"
  mkfifo "$logs/$i.pipe" || die "cannot make a pipe in $logs; pass --logs of a local folder"
done

# Below 32768, where Linux takes the ports of outgoing connections from.
taken() { (exec 3<>"/dev/tcp/localhost/$1") 2>/dev/null; }
if [[ -z $port ]]; then
  for _ in {1..50}; do
    port=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    taken "$port" || break
    port=""
  done
  [[ -n $port ]] || die "found no free port in 50 tries; pass --port"
fi

# The caller's own XLA flags stay, but for the two that are set here.
xla_flags=""
for flag in ${XLA_FLAGS-}; do
  case $flag in
    --xla_force_host_platform_device_count=* | --xla_cpu_multi_thread_eigen=*) ;;
    *) xla_flags+="$flag " ;;
  esac
done
xla_flags+="--xla_force_host_platform_device_count=$devices --xla_cpu_multi_thread_eigen=false"

# Copies lines to a log and, marked, to the output. It outlives signals, to lose no last words.
copy() {
  trap '' INT TERM HUP
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s\n' "$line" >&3
    printf '[%s] %s\n' "$1" "$line"
  done <"$logs/$1.pipe" 3>"$logs/$1.log"
}

# From here on there is no $(...) or >(...): bash 5.2 fails to parse one that a trap interrupts.
pids=() copies=() codes=()
deadline="" told="" killed="" messages=2

# Each process leads a group of its own (set -m): its children can be killed with it.
to_all() {
  local i
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]-} ]] || kill "-$1" -- "${2-}${pids[i]}" 2>/dev/null
  done
}
kill_all() {
  killed=1
  to_all KILL -
}
# shellcheck disable=SC2329  # called by the traps
on_signal() {
  if [[ -n $told ]]; then
    echo "local_pod: a second signal, killing what still runs" >&"$messages"
    kill_all
  else
    echo "local_pod: SIG$1 goes on to the processes" >&"$messages"
    told=1 deadline=$((SECONDS + grace))
    to_all "${1/HUP/TERM}"
  fi
}
trap 'on_signal TERM' TERM
trap 'on_signal HUP' HUP
trap 'on_signal INT' INT
trap 'kill_all' EXIT

echo "local_pod: $n processes x $devices devices, coordinator localhost:$port, logs in $logs" >&2
for ((i = 0; i < n; i++)); do
  copy "$i" &
  copies+=($!)
  # Job control only here. Without it bash starts background commands with SIGINT ignored; with
  # it everywhere, Ctrl-C would not reach this script. Proxies hang the coordinator's connections.
  set -m
  (
    exec env -u http_proxy -u https_proxy -u HTTP_PROXY -u HTTPS_PROXY -u all_proxy -u ALL_PROXY \
      -u JAX_LOCAL_DEVICE_IDS JAX_PLATFORMS=cpu "JAX_COORDINATOR_ADDRESS=localhost:$port" \
      "JAX_NUM_PROCESSES=$n" "JAX_PROCESS_ID=$i" "XLA_FLAGS=$xla_flags" "NPROC=${NPROC:-32}" \
      PYTHONUNBUFFERED=1 "${PYTHON:-python}" -m vireid_jax.main "$@"
  ) >"$logs/$i.pipe" 2>&1 </dev/null &
  pids+=($!)
  set +m
done
printf '%s\n' "${pids[@]}" >"$logs/pids.new" && mv "$logs/pids.new" "$logs/pids"
[[ -z $told ]] || to_all TERM # those that started after the signal
messages=4
exec 4>&2 2>/dev/null # bash would print the whole command of a process that was killed

alive() { kill -0 "$1" 2>/dev/null; }
left=$n first="" saved=""
while ((left)); do
  for i in "${!pids[@]}"; do
    if [[ -z ${codes[i]-} ]] && ! alive "${pids[i]}"; then
      wait "${pids[i]}" 2>/dev/null
      codes[i]=$?
      kill -KILL -- "-${pids[i]}" 2>/dev/null # children that it left behind
      left=$((left - 1))
      echo "local_pod: process $i ended with ${codes[i]}" >&4
      if ((codes[i] == 42)); then
        saved=42
      elif ((codes[i])); then
        first=${first:-${codes[i]}}
      fi
      ((codes[i] == 0)) || deadline=${deadline:-$((SECONDS + grace))}
    fi
  done
  if ((left)) && [[ -n $deadline ]] && ((SECONDS > deadline)); then
    if [[ -z $told ]]; then
      echo "local_pod: $left processes still run $grace s after a failure, telling them to stop" >&4
      told=1 deadline=$((SECONDS + 10))
      to_all TERM
    elif [[ -z $killed ]]; then
      echo "local_pod: $left processes do not stop, killing them" >&4
      kill_all
    fi
  fi
  ((left)) && sleep 0.1
done
for ((i = 0; i < 50; i++)); do # the last lines; something that escaped may hold the pipe
  rest=0
  for pid in "${copies[@]}"; do alive "$pid" && rest=1; done
  ((rest)) || break
  sleep 0.1
done
((rest)) && kill -KILL "${copies[@]}" 2>/dev/null
for ((i = 0; i < n; i++)); do rm -f "$logs/$i.pipe"; done
trap - EXIT
exit "${first:-${saved:-0}}"
