#!/usr/bin/env bash
# launch/local.sh N [options] -- --config=... --workdir=... [flags of dualtoken_jax.main]
#
# Runs one training as N processes on this machine, joined by jax.distributed on localhost, and starts them again
# for as long as a restart helps. Same --workdir = resume.
#
#   --max-restarts=100   restarts before giving up
#   --grace=30           seconds that the others have to end by themselves after one has died; then they are killed
#   --backoff=1          seconds before the first restart; doubles up to 60, and begins anew after a minute of training
#   --logs=DIR           one log per process (default: runs/local_logs)
#   --gpu-per-process    process i sees only GPU i (default: every process sees all devices)
#   --dry-run            print the commands and do nothing
#   PYTHON=...           interpreter (default: python)
#
# Exit codes: 0 finished; 1 and 2 as main's, a restart does not help; 75 stopped by SIGTERM or Ctrl-C, or out of
# restarts: the same command goes on. Needs bash 5.1 or newer.
set -euo pipefail

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  echo "error: $1" >&2
  exit 2
}

count='' max_restarts=100 grace=30 backoff=1 logs=runs/local_logs gpu_per_process=false dry_run=false
while (($#)); do
  case $1 in
    --max-restarts=*) max_restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --backoff=*) backoff=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --gpu-per-process) gpu_per_process=true ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    [1-9] | [1-9][0-9] | [1-9][0-9][0-9]) count=$1 ;;
    *) usage "unknown argument $1; main's flags come after --" ;;
  esac
  shift
done
[[ $count ]] || usage "the number of processes is missing"
[[ $max_restarts$grace$backoff =~ ^[0-9]+$ ]] || usage "--max-restarts, --grace and --backoff are whole numbers"
cd "$(dirname "$0")/.."
command=("${PYTHON:-python}" -m dualtoken_jax.main "$@")

environment() { # of process $1 with the coordinator at port $2
  local settings=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$2" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1")
  if $gpu_per_process; then settings+=("JAX_LOCAL_DEVICE_IDS=$1"); fi
  echo "${settings[@]}"
}

if $dry_run; then
  for ((rank = 0; rank < count; rank++)); do
    environment "$rank" PORT | tr '\n' ' '
    printf '%q ' "${command[@]}" && printf '>>%q 2>&1 &\n' "$logs/process_$rank.log"
  done
  exit 0
fi

mkdir -p "$logs"
exec 9>"$logs/lock"
flock -n 9 || { echo "error: a run with --logs=$logs is already going on" >&2 && exit 1; }

free_port() { # below the range that the kernel hands out to clients
  local port
  while port=$((10000 + RANDOM % 20000)) && (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

signal_all() { for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done; }

any_alive() {
  for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && return; done
  return 1
}

helps() { (($1 == 75 || $1 >= 128)); } # whether starting again may mend exit code $1

# One attempt; its verdict is in `verdict`. The first process to fail decides, because its end explains the others';
# but an error that a neighbour of an orderly stop (75) reports by itself is the error.
attempt() {
  local port rank first=0 code deadline
  port=$(free_port) pids=()
  for ((rank = 0; rank < count; rank++)); do
    # shellcheck disable=SC2046  # one word per setting
    env $(environment "$rank" "$port") "${command[@]}" </dev/null >>"$logs/process_$rank.log" 2>&1 9>&- &
    pids+=($!)
  done
  while ((first == 0 && ${#pids[@]})); do
    local ended=''
    wait -n -p ended "${pids[@]}" || first=$?
    if [[ ! ${ended:-} ]]; then # a signal to this script, not an end
      first=0
      continue
    fi
    for rank in "${!pids[@]}"; do [[ ${pids[rank]} == "$ended" ]] && unset "pids[$rank]"; done
  done
  verdict=$first
  ((${#pids[@]})) || return 0
  deadline=$((SECONDS + grace))
  while any_alive && ((SECONDS < deadline)); do sleep 0.2; done
  any_alive && echo "the others did not end within $grace s and are killed"
  for pid in "${pids[@]}"; do
    code=0
    kill -0 "$pid" 2>/dev/null && kill -KILL "$pid" && first=137
    wait "$pid" || code=$?
    if ((first == 75 && code != 0)) && ! helps "$code"; then verdict=$code; fi
  done
}

stopped=false pids=()
trap 'stopped=true; signal_all TERM' TERM INT # background processes of a script do not get Ctrl-C themselves
for ((restart = 0, pause = backoff; ; restart++)); do
  begin=$SECONDS
  attempt
  ((verdict)) || exit 0
  echo "attempt $restart ended with exit code $verdict; logs are in $logs"
  helps "$verdict" || exit "$verdict"
  if $stopped || ((restart >= max_restarts)); then exit 75; fi
  ((SECONDS - begin < 60)) || pause=$backoff
  sleep "$pause" & wait $! || true # a signal ends this wait at once
  if $stopped; then exit 75; fi
  pause=$((pause * 2 < 60 ? pause * 2 : 60))
done
