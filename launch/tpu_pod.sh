#!/usr/bin/env bash
# Runs a verb on every host of a TPU slice, from a machine with gcloud:
#   TPU=my-slice ZONE=us-east5-a launch/tpu_pod.sh train --gin_file=gin/runs/optiml_30b.gin ...
# The first call copies this folder to the hosts and installs it there; later ones do so again only
# with OPTIML_COPY=1.
#   TPU, ZONE            the slice, and where it is
#   PROJECT              of the cloud (default: gcloud's own)
#   OPTIML_FOLDER        on the hosts (default: optiml_jax in the home folder)
#   OPTIML_RESTARTS      how often a run that failed, stalled or was preempted is restarted
#                        (default 10): the script waits for the slice, and the run continues from its newest
#                        checkpoint; not after an error that only its user can fix (2)
# Run.data must be on a file system that all hosts see; Run.run_dir and Run.cache_dir there or in a bucket.
# Every host has its log in OPTIML_FOLDER/logs; the output of host 0 appears here too.
set -euo pipefail
fail() { echo "error: $*" >&2; exit 2; }
: "${TPU:?say which slice: TPU=NAME}" "${ZONE:?say where it is: ZONE=us-east5-a}"
[ $# -gt 0 ] || fail "give a verb to run: $0 train --gin_file=gin/runs/FILE.gin"
cd "$(dirname "$0")/.."
OPTIML_RESTARTS=${OPTIML_RESTARTS:-10}
. launch/again.sh
place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
folder=${OPTIML_FOLDER:-optiml_jax}

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" "${place[@]}" --worker=all --command="$1"; }

# files: of this folder as it is, edited and new ones too, but for what git ignores.
files() {
  local file
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
  done
}

copy() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  files | tar --null --files-from=- -czf "$archive"
  gcloud compute tpus tpu-vm scp "$archive" "$TPU:optiml.tar.gz" "${place[@]}" --worker=all
  rm "$archive"
  on_all "mkdir -p $folder && tar -xzf optiml.tar.gz -C $folder"
}

if [ "${OPTIML_COPY:-0}" = 1 ] || ! on_all "test -d $folder"; then copy; fi
command="cd $folder && launch/tpu_host.sh $(printf '%q ' "$@")"
for ((attempt = 0; ; attempt++)); do
  if on_all "$command"; then exit 0; else status=$?; fi
  # A host that is taken away ends its processes with SIGTERM (75, 143).
  case $status in 75 | 143) kind=1 ;; *) kind=$status ;; esac
  if ! again "$kind" "$attempt"; then
    echo "error: start $((attempt + 1)) ended with $status; the logs are on the hosts in $folder/logs" >&2
    exit "$status"
  fi
  echo "ended with $status; waiting for $TPU to be READY, then the run continues"
  until [ "$(gcloud compute tpus tpu-vm describe "$TPU" "${place[@]}" --format='value(state)' 2>/dev/null)" = READY ]; do sleep 30; done
  on_all "test -d $folder" || copy
done
