#!/usr/bin/env bash
# Runs a verb on the GPUs of this machine: launch/gpu_node.sh train --gin_file=gin/runs/FILE.gin ...
#   OPTIML_FLAVOUR     cuda13 (default) or cuda12; see docs/pod.md
#   OPTIML_PROCESSES   1 (default): one process with all GPUs; N: N processes, with an equal share each
#   OPTIML_GPUS        number of GPUs (default: as many as nvidia-smi lists)
#   OPTIML_RESTARTS    how often a failed run is restarted (default 3)
# The output of process 0 appears here too; every process has a file in $OPTIML_LOGS (logs/).
# SIGTERM and Ctrl-C are passed on: training saves and exits with 75 or 130.
set -euo pipefail
OPTIML_FLAVOUR=${OPTIML_FLAVOUR-cuda13}
. "$(dirname "$0")/install.sh"
. "$ROOT/launch/environment.sh"
[ $# -gt 0 ] || fail "give a verb to run: $0 train --gin_file=gin/runs/FILE.gin"

processes=${OPTIML_PROCESSES:-1}
if [ "$processes" = 1 ] && [ "$1" != train ]; then exec optiml "$@"; fi
gpus=${OPTIML_GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}
[ "$((gpus % processes))" = 0 ] || fail "OPTIML_PROCESSES=$processes does not divide the $gpus GPUs of this machine"
share=$((gpus / processes))
if [ "$processes" != 1 ]; then
  export JAX_NUM_PROCESSES=$processes
  export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-localhost:$((20000 + $$ % 10000))}
fi

pids=() stopped=0
# A terminal sends Ctrl-C to the processes, too; a second one would end them at once.
trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

wait_for_all() { # their worst status
  local pid own status=0
  for pid in "${pids[@]}"; do
    own=0
    # A signal ends the first wait early; the second one is for the process itself.
    wait "$pid" || { wait "$pid" || own=$?; }
    [ "$own" -le "$status" ] || status=$own
  done
  return "$status"
}

run_processes() {
  pids=()
  if [ "$processes" = 1 ]; then
    optiml "$@" &
    pids=($!)
  else
    for ((i = 0; i < processes; i++)); do
      export JAX_PROCESS_ID=$i
      if [ "$share" -gt 0 ]; then
        export JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $((i * share + share - 1)))
      fi
      exec_logged "process_$i" optiml "$@" --gin.Run.distributed=True &
      pids+=($!)
    done
    tail --pid="${pids[0]}" -n 0 -F "$LOGS/process_0.log" 2>/dev/null &
  fi
  wait_for_all
}

for ((attempt = 0; ; attempt++)); do
  status=0
  run_processes "$@" || status=$?
  wait
  [ "$status" = 0 ] || [ "$processes" = 1 ] || echo "a process failed ($status): see $LOGS/process_*.log" >&2
  if [ "$stopped" = 1 ] || ! again "$status" "$attempt"; then exit "$status"; fi
  echo "started again ($((attempt + 1)) of ${OPTIML_RESTARTS:-3}): the run continues from its newest checkpoint" >&2
done
