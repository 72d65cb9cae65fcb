#!/usr/bin/env bash
# Keeps one command running on this host until it is done, is told to stop or keeps failing.
#
#   bash launch/supervise.sh [OPTIONS] -- COMMAND ...
#
#   --max_failures N   failures in a row without progress before giving up (3)
#   --max_lost N       the same for lost processes, which are seldom the command's fault (20)
#   --backoff SECONDS  wait before a restart (10); doubles with each one in a row, up to 300
#   --workdir DIR      folder of the run; default: the --workdir of COMMAND
#   --status FILE      where its state goes as JSON; default: DIR/supervise/<host name>.json
#
# What it does with the exit code of COMMAND (those of python -m vireid_jax.main):
#
#   0                   done: 0
#   42                  stopped and saved: restarts at once, or later if nothing new was saved
#   43 134 137 143      this process or another of the run was lost: restarts after a while
#   75                  another process works in DIR, say the command of a supervisor that was
#                       killed: tries again after a while, as often as it takes
#   2 126 127 130       wrong command line, no such command, Ctrl-C: that code, at once
#   1 and any other     restarts after a while; gives up with that code after N failures
#
# A restart makes progress, and the counts begin anew, when the newest step under DIR/checkpoints
# has grown since it. SIGTERM (also SIGHUP) and SIGINT go on to COMMAND; nothing is restarted then,
# and its exit code is this script's (42: the scheduler is to start the same command again).
set -uo pipefail
[[ ${1-} != --help ]] || exec awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"

die() {
  echo "error: $*" >&2
  exit 2
}
usage="supervise.sh [--max_failures N] [--max_lost N] [--backoff SECONDS] [--workdir DIR] "
usage+="[--status FILE] -- COMMAND ..."
max_failures=3 max_lost=20 backoff=10 workdir="" status=""
while (($#)) && [[ $1 != -- ]]; do
  name=${1%%=*}
  case $name in
    --max_failures | --max_lost | --backoff | --workdir | --status) ;;
    *) die "unknown option $1 (the command comes after --); usage: $usage" ;;
  esac
  if [[ $1 == *=* ]]; then
    value=${1#*=}
  else
    (($# >= 2)) || die "$name lacks its value; usage: $usage"
    value=$2
    shift
  fi
  shift
  case $name in
    --max_failures | --max_lost | --backoff)
      [[ $value =~ ^(0|[1-9][0-9]*)$ ]] || die "$name is '$value', expected a whole number"
      ;;
  esac
  printf -v "${name#--}" %s "$value"
done
[[ ${1-} == -- ]] || die "-- is missing before the command; usage: $usage"
shift
(($#)) || die "the command after -- is missing; usage: $usage"

if [[ -z $workdir ]]; then
  previous=""
  for argument in "$@"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#*=}
    [[ $previous != --workdir ]] || workdir=$argument
    previous=$argument
  done
fi
host=${HOSTNAME:-$(uname -n)}
if [[ -z $status && -n $workdir ]]; then
  status=$workdir/supervise/$host.json # every host has its own: the folder is shared
fi
if [[ -n $status ]]; then
  mkdir -p "$(dirname "$status")" || die "cannot make the folder of --status, $status"
fi

say() { echo "supervise: $*" >&2; }

# From here on there is no $(...): bash 5.2 fails to parse one that a trap interrupts. Functions
# leave what they find in a variable.
now() { TZ=UTC printf -v time '%(%Y-%m-%dT%H:%M:%SZ)T' -1; }

# The newest committed step, -1 if there is none: unfinished saves have other names than numbers.
newest() {
  local folder step
  best=-1
  for folder in "$workdir"/checkpoints/*/; do
    folder=${folder%/}
    step=${folder##*/}
    [[ $step =~ ^[0-9]{1,18}$ ]] || continue
    ((10#$step <= best)) || best=$((10#$step))
  done
}

# A JSON string. Control characters have no place in host names and commands: they become "?".
quoted() {
  text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text="\"${text//[[:cntrl:]]/?}\""
}

restarts=0 failures=0 lost=0 busy=0 code=null attempt="" command=""
for argument in "$@"; do printf -v command '%s%q ' "$command" "$argument"; done
quoted "${command% }" && command=$text
quoted "$host" && host=$text
now && started=$time

# Writes the state by a rename: whoever reads the file finds all of it, or the one before.
note() {
  [[ -n $status ]] || return 0
  local step
  newest
  step=$best
  ((step >= 0)) || step=null
  now
  {
    printf '{"state": "%s", "host": %s, ' "$1" "$host"
    printf '"restarts": %s, "failures": %s, "lost": %s, ' "$restarts" "$failures" "$lost"
    printf '"last_exit_code": %s, "step": %s, ' "$code" "$step"
    printf '"started": "%s", "attempt_started": "%s", ' "$started" "$attempt"
    printf '"updated": "%s", "command": %s}\n' "$time" "$command"
  } >"$status.$$" && mv -f "$status.$$" "$status" && return
  say "cannot write $status"
}

told="" child=""
# shellcheck disable=SC2329  # called by the traps
on_signal() {
  told=$1
  say "SIG$1${child:+ goes on to the command}"
  [[ -z $child ]] || kill "-$1" "$child" 2>/dev/null
}
trap 'on_signal TERM' TERM HUP
trap 'on_signal INT' INT
trap '[[ -z $child ]] || kill -KILL -- "-$child" 2>/dev/null' EXIT

finish() {
  note "$1"
  say "$1, exit code $2"
  exit "$2"
}
# A signal ends the `wait`, not the sleep: traps run at once.
nap() {
  sleep "$1" &
  wait $!
}

while :; do
  newest && before=$best
  now && attempt=$time
  # Job control gives the command a group of its own, and SIGINT as it would have it in a terminal
  # (bash starts background commands with SIGINT ignored).
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  [[ -z $told ]] || kill "-$told" "$child" 2>/dev/null # the signal came while it started
  note running
  for ((tick = 1; ; tick++)); do
    kill -0 "$child" 2>/dev/null || break
    nap 0.25
    ((tick % 120)) || note running # every half minute
  done
  wait "$child"
  code=$?
  kill -KILL -- "-$child" 2>/dev/null # what it left behind would hold the devices
  child=""
  newest && after=$best
  say "the command ended with $code, newest step $after (before: $before)"
  if ((after > before)); then
    failures=0 lost=0
  fi

  case $code in
    0) finish 'done' 0 ;;
    2 | 126 | 127 | 130) finish failed "$code" ;;
  esac
  [[ -z $told ]] || finish stopped "$code"
  wait_s=$backoff count=0
  busy=$((code == 75 ? busy + 1 : 0))
  case $code in
    75) count=$busy ;;
    42)
      lost=$((after > before ? 0 : lost + 1)) count=$lost
      # The first restart is free; one that saves nothing new must not spin.
      ((count > 1)) || wait_s=0
      ;;
    43 | 134 | 137 | 143)
      lost=$((after > before ? 0 : lost + 1)) count=$lost
      if ((lost >= max_lost)); then
        say "lost $lost times in a row without a new checkpoint"
        finish failed "$code"
      fi
      ;;
    *)
      failures=$((after > before ? 0 : failures + 1)) count=$failures
      if ((failures >= max_failures)); then
        say "$failures failures in a row without a new checkpoint; its messages are above"
        finish failed "$code"
      fi
      ;;
  esac
  for ((i = 1; i < count && wait_s < 300; i++)); do wait_s=$((wait_s * 2)); done
  ((wait_s <= 300 || wait_s == backoff)) || wait_s=300
  if ((wait_s)); then
    say "restart in $wait_s s"
    note waiting
    until=$((SECONDS + wait_s))
    while [[ -z $told ]] && ((SECONDS < until)); do nap 0.25; done
    [[ -z $told ]] || finish stopped "$code"
  fi
  restarts=$((restarts + 1))
done
