#!/usr/bin/env bash
# launch/tpu_worker.sh start|status|stop|log NAME [flags of dualtoken_jax.main]
#
# One worker of a TPU slice: runs the training detached from ssh, at most once, and keeps its exit code.
# tpu_vm.sh calls it on every worker. Everything lies under ~/dualtoken:
#   code, venv      as tpu_setup.sh made them
#   shared          the mounted bucket or NFS share; the workdir is shared/NAME
#   runs/NAME       lock, log and exit code of this worker
#
# status prints one line: "dualtoken-worker NAME absent", "... running" or "... exited CODE".
set -euo pipefail

action=${1:?start, status, stop or log} name=${2:?name of the run}
shift 2
home=$HOME/dualtoken run=$HOME/dualtoken/runs/$name

# The lock is held by the training's own processes: no stale pid file after a reboot, no second start in a race.
is_running() { [[ -e $run/lock ]] && ! flock -n "$run/lock" true; }

status() {
  local word=absent
  if is_running; then
    word=running
  elif [[ -s $run/exit_code ]]; then
    word="exited $(<"$run/exit_code")"
  elif [[ -e $run/lock ]]; then
    word="exited 137" # nobody was left to write a code
  fi
  echo "dualtoken-worker $name $word"
}

# Keeps the exit code of the command; survives the SIGTERM that a shutdown sends to every process.
keep_exit_code() {
  local code=0
  trap : TERM
  "$@" || code=$?
  echo "$code" >"$run/exit_code.new"
  mv "$run/exit_code.new" "$run/exit_code"
}

start() {
  mkdir -p "$run"
  exec 9>>"$run/lock"
  flock -n 9 || return 0 # it runs already
  rm -f "$run/exit_code"
  cd "$home/code"
  export EPATH_USE_TF=0
  (
    trap '' HUP # ignored by Python too: the end of the ssh session is not the run's
    keep_exit_code "$home/venv/bin/python" -m dualtoken_jax.main --workdir="$home/shared/$name" "$@"
  ) </dev/null >>"$run/log" 2>&1 &
  echo $! >"$run/pid"
}

stop() {
  is_running || return 0
  local wrapper
  wrapper=$(<"$run/pid")
  pkill -TERM -P "$wrapper" || true
  flock -w "${STOP_SECONDS:-60}" "$run/lock" true && return
  echo "no end after ${STOP_SECONDS:-60} s: killing"
  pkill -KILL -P "$wrapper" || true
  flock -w 10 "$run/lock" true
}

case $action in
  start) start "$@" && status ;;
  status) status ;;
  stop) stop && status ;;
  log) tail -n 100 -F "$run/log" ;;
  *) echo "error: unknown action $action; start, status, stop or log" >&2 && exit 2 ;;
esac
