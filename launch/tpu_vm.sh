#!/usr/bin/env bash
# launch/tpu_vm.sh COMMAND --name=RUN --zone=ZONE --type=TYPE --storage=STORAGE [options] -- --config=... [main's flags]
#
# Trains on Cloud TPU VMs that are asked for as a queued resource named RUN. Same --name = resume.
#
#   create     ask for the slice, unless it is there or asked for already
#   run        code, environment and storage on every worker, then start; nothing happens where it runs already
#   babysit    create, wait, run, and again after every preemption or crash until the training is finished
#   status     state of the queued resource, and one line per worker
#   logs       follow the log of worker 0
#   stop       SIGTERM to the training: it saves and ends; the slice stays (and is paid for)
#   delete     give the slice back; checkpoints stay in the storage
#
#   --type=v5litepod-256     accelerator type
#   --storage=gs://BUCKET    or SERVER:/SHARE of Filestore; the workdir is its folder RUN. A bucket needs a
#                            hierarchical namespace: checkpoints are committed by renaming a folder
#   --slices=1               slices of that type
#   --on-demand              not spot
#   --project=PROJECT        default: gcloud's own
#   --runtime-version=V      default: by type
#   --create-flag=FLAG       any other flag of `gcloud compute tpus queued-resources create`, repeatable
#   --max-restarts=100       restarts and re-creations before babysit gives up
#   --poll=60                seconds between two looks; the pause after a failure doubles from here up to 16 times
#   --dry-run                print the commands and do nothing
#
# Exit codes: 0 done; 1 a command failed, or the training did and a restart does not mend it; 2 wrong usage, of this or
# of main; 75 babysit ran out of restarts: the same command goes on. Ctrl-C ends babysit, not the training.
# Needs bash 4.4 or newer, git, and gcloud with a project and, for many workers, its key in ssh-agent.
set -euo pipefail

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  echo "error: $1" >&2
  exit 2
}

say() { echo "$(date +%H:%M:%S) $*" >&2; }

command=${1:-}
(($# == 0)) || shift
name='' zone='' type='' storage='' slices=1 tier=--spot project='' runtime='' max_restarts=100 poll=60 dry_run=false
create_flags=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --storage=*) storage=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --on-demand) tier='' ;;
    --project=*) project=${1#*=} ;;
    --runtime-version=*) runtime=${1#*=} ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --max-restarts=*) max_restarts=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --) shift && break ;;
    *) usage "unknown argument $1; main's flags come after --" ;;
  esac
  shift
done
main_flags=("$@")
needed=(name zone)
case $command in
  create) needed+=(type) ;;
  run) needed+=(storage) ;;
  babysit) needed+=(type storage) ;;
  status | logs | stop | delete) ;;
  *) usage "COMMAND is create, run, babysit, status, logs, stop or delete, not '$command'" ;;
esac
for option in "${needed[@]}"; do [[ ${!option} ]] || usage "$command needs --$option"; done
$dry_run || command -v gcloud >/dev/null || { echo "error: gcloud is not installed" >&2 && exit 1; }
[[ $name =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] || usage "--name=$name: small letters, digits and -, 50 at most"
[[ ! $storage || $storage =~ ^(gs://[a-z0-9._-]+|[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]+)$ ]] || usage "--storage=$storage: gs://BUCKET or SERVER:/SHARE"
[[ $max_restarts =~ ^[0-9]+$ && $poll =~ ^[0-9]+$ && $slices =~ ^[1-9][0-9]*$ ]] ||
  usage "--max-restarts, --poll and --slices are whole numbers"
[[ " ${main_flags[*]} " != *" --workdir"* ]] || usage "the workdir is the folder $name of --storage; leave --workdir out"

if [[ ! $runtime ]]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    '') ;;
    *) usage "no runtime version is known for --type=$type; give --runtime-version (TPU7x and later: use launch/gke)" ;;
  esac
fi

cd "$(dirname "$0")/.."
where=("--zone=$zone")
[[ ! $project ]] || where+=("--project=$project")

tpus() { # gcloud compute tpus "$@"; only shown in a dry run
  if $dry_run; then
    printf 'gcloud compute tpus' && printf ' %q' "$@" && echo
  else
    gcloud compute tpus "$@"
  fi
}

on_all() { tpus queued-resources ssh "$name" "${where[@]}" --node=all --worker=all --command="$1"; }

worker() { # action [flags]: tpu_worker.sh's command line for a remote shell
  local action=$1
  shift
  printf 'bash dualtoken/code/launch/tpu_worker.sh %s %q' "$action" "$name"
  (($# == 0)) || printf ' %q' "$@"
}

# ABSENT, gcloud's own word, or UNKNOWN when gcloud cannot be asked just now.
state() {
  local errors word
  errors=$(mktemp)
  if word=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>"$errors"); then
    echo "${word:-UNKNOWN}"
  elif grep -qiE 'not[ _]?found' "$errors"; then
    echo ABSENT
  else
    say "gcloud: $(tail -n 1 "$errors")"
    echo UNKNOWN
  fi
  rm -f "$errors"
}

create() {
  local nodes=("--node-id=$name") flags=()
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  [[ ! $tier ]] || flags+=("$tier")
  tpus queued-resources create "$name" "${where[@]}" "${nodes[@]}" "--accelerator-type=$type" \
    "--runtime-version=$runtime" "${flags[@]}" "${create_flags[@]}"
}

create_unless_there() {
  local now=ABSENT
  $dry_run || now=$(state)
  case $now in
    ABSENT) create ;;
    FAILED | SUSPENDED) say "$name is $now: asking again" && delete && create ;;
    UNKNOWN) return 1 ;;
    *) say "$name is $now already" ;;
  esac
}

delete() { tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

delete_unless_gone() {
  if ! $dry_run && [[ $(state) == ABSENT ]]; then
    say "$name is gone already"
  else
    delete
  fi
}

# The committed code, packed once, so that every restart runs the same.
pack_code() {
  [[ ! ${code:-} ]] || return 0
  if $dry_run; then
    code=code.tar.gz
    echo "git archive --format=tar.gz --output=$code HEAD"
    return
  fi
  packed=$(mktemp -d)
  trap 'rm -rf "$packed"' EXIT
  code=$packed/code.tar.gz
  git archive --format=tar.gz --output="$code" HEAD
  [[ ! $(git status --porcelain) ]] || say "uncommitted changes are left out: the workers get HEAD"
}

run() {
  pack_code
  tpus queued-resources scp "$code" launch/tpu_setup.sh "$name:" "${where[@]}" --node=all --worker=all || return
  on_all "bash tpu_setup.sh code.tar.gz $storage" || return
  on_all "$(worker start "${main_flags[@]}")"
}

run_unless_running() {
  local now=idle
  $dry_run || now=$(training)
  case $now in
    running | partly) say "$name runs already" ;;
    unreachable) say "$name cannot be reached: it is $(state)" && return 1 ;;
    *) run ;;
  esac
}

# What the workers say together: running, partly (some have ended), finished, "failed CODE", idle or unreachable.
training() {
  local lines running ended fatal
  lines=$(on_all "if [ -e dualtoken/code ]; then $(worker status); else echo dualtoken-worker $name absent; fi" |
    grep "^dualtoken-worker $name ") || { echo unreachable && return; }
  running=$(grep -c ' running$' <<<"$lines") || true
  ended=$(grep -c ' exited ' <<<"$lines") || true
  # Only 0, 75 and the codes of signals are no errors for good.
  fatal=$(sed -nE 's/.* exited ([0-9]+)$/\1/p' <<<"$lines" | awk '$1 != 0 && $1 != 75 && $1 < 128' | head -n 1)
  if [[ $fatal ]]; then
    echo "failed $fatal"
  elif ((running && running < $(wc -l <<<"$lines"))); then
    echo partly
  elif ((running)); then
    echo running
  elif ((ended)) && ! grep -qE ' (absent|exited [1-9][0-9]*)$' <<<"$lines"; then
    echo finished
  else
    echo idle
  fi
}

nodes_are_gone() { # a preempted node can leave its queued resource ACTIVE
  local node nodes=("$name") word
  if ((slices > 1)); then
    nodes=()
    for ((node = 0; node < slices; node++)); do nodes+=("$name-$node"); done
  fi
  for node in "${nodes[@]}"; do
    word=$(gcloud compute tpus tpu-vm describe "$node" "${where[@]}" --format='value(state)' 2>&1) || true
    if [[ $word =~ PREEMPTED|TERMINATED|STOPPED|NOT_FOUND|"not found" ]]; then
      say "node $node is ${BASH_REMATCH[0]}"
      return 0
    fi
  done
  return 1
}

restarts=0 pause=$poll started=false partly=0
count_restart() {
  if ((restarts >= max_restarts)); then
    say "gave up after $restarts restarts; the same command goes on"
    exit 75
  fi
  restarts=$((restarts + 1))
  say "restart $restarts of $max_restarts in $pause s: $1"
  sleep "$pause"
  pause=$((pause * 2 < poll * 16 ? pause * 2 : poll * 16))
}

ask_again() { # what fails here shows in the next state
  started=false
  delete && create || true
}

start() { if run; then started=true; else count_restart "could not start"; fi; }

# One look at an ACTIVE slice. How an earlier command's training ended counts for nothing: it may have been mended.
tend() {
  local word
  word=$(training)
  [[ $word == partly ]] || partly=0
  if ! $started && [[ $word =~ ^(finished|failed|idle) ]]; then
    start
    return
  fi
  case $word in
    running) started=true pause=$poll ;;
    partly) # those left notice it and end with 75, unless they hang
      partly=$((partly + 1))
      ((partly < 10)) || on_all "$(worker stop)" || true
      ;;
    finished) say "finished" && exit 0 ;;
    failed*)
      say "the training ended with exit code ${word#failed }, which a restart does not mend; see logs"
      on_all "$(worker stop)" || true
      exit "${word#failed }"
      ;;
    idle) count_restart "the training has ended early" && start ;;
    unreachable) ! nodes_are_gone || { count_restart "preempted" && ask_again; } ;;
  esac
}

babysit() {
  local now
  pack_code
  [[ $(state) != UNKNOWN ]] || { say "gcloud does not answer; see above" && exit 1; }
  while :; do
    now=$(state)
    case $now in
      ABSENT) create || count_restart "the request was refused" ;;
      FAILED | SUSPENDED) count_restart "the queued resource is $now" && ask_again ;;
      ACTIVE) tend ;;
      *) say "$name is $now" ;;
    esac
    sleep "$poll"
  done
}

show_babysit() { # the commands of a run without trouble, in order
  create_unless_there
  tpus queued-resources describe "$name" "${where[@]}" '--format=value(state.state)'
  run
  on_all "$(worker status)"
}

case $command in
  create) create_unless_there ;;
  run) run_unless_running ;;
  babysit) if $dry_run; then show_babysit; else babysit; fi ;;
  status)
    $dry_run || echo "$name is $(state)"
    on_all "$(worker status)"
    ;;
  logs) tpus queued-resources ssh "$name" "${where[@]}" --node=0 --worker=0 --command="$(worker log)" ;;
  stop) on_all "$(worker stop)" ;;
  delete) delete_unless_gone ;;
esac
