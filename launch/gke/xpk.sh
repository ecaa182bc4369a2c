#!/usr/bin/env bash
# launch/gke/xpk.sh --name=RUN --cluster=C --type=v5litepod-256 --image=IMAGE --storage=S [options] -- --config=...
#
# The same run through XPK, on a cluster that XPK made (`xpk cluster create --spot`). Same --name = resume, once the
# workload of that name has ended and is deleted (`xpk workload delete`).
#
#   --storage=S          a storage that `xpk storage attach` mounts at /shared; the workdir is /shared/RUN
#   --slices=1
#   --max-restarts=100   XPK's own default is 0: a spot workload would end with its first preemption
#   --xpk-flag=FLAG      any other flag of `xpk workload create`, such as --zone=Z or --project=P, repeatable
#   --dry-run            print the command and do nothing
#
# Exit codes: XPK's; 2 for wrong usage.
set -euo pipefail

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  echo "error: $1" >&2
  exit 2
}

name='' cluster='' type='' image='' storage='' slices=1 max_restarts=100 dry_run=false xpk_flags=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --storage=*) storage=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --xpk-flag=*) xpk_flags+=("${1#*=}") ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    *) usage "unknown argument $1; main's flags come after --" ;;
  esac
  shift
done
for option in name cluster type image storage; do [[ ${!option} ]] || usage "--$option is missing"; done

# XPK runs this in a shell; exec makes Python the process that its SIGTERM reaches. Of the exit codes, XPK restarts on
# those of signals by itself, on 75 when told to, and on no other.
training="exec python -m dualtoken_jax.main --workdir=/shared/$name$( (($# == 0)) || printf ' %q' "$@")"
command=(xpk workload create "--workload=$name" "--cluster=$cluster" "--tpu-type=$type" "--num-slices=$slices"
  "--docker-image=$image" "--storage=$storage" "--max-restarts=$max_restarts" --restart-on-exit-codes=75
  --termination-grace-period-seconds=60 "${xpk_flags[@]}" "--command=$training")
if $dry_run; then
  printf '%q' "${command[0]}" && printf ' %q' "${command[@]:1}" && echo
else
  "${command[@]}"
fi
