#!/usr/bin/env bash
# One host's part of launch/tpu_pod.sh: installs once, runs the verb, shows the output of host 0.
set -euo pipefail
OPTIML_FLAVOUR=${OPTIML_FLAVOUR-tpu}
. "$(dirname "$0")/install.sh"
. "$ROOT/launch/environment.sh"
log="process_$(hostname)"
exec_logged "$log" optiml "$@" --gin.Run.distributed=True &
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT HUP
case $(hostname) in
  *-w-0) tail --pid="$child" -n 0 -F "$LOGS/$log.log" 2>/dev/null & ;;
esac
status=0
wait "$child" || { wait "$child" || status=$?; }
exit "$status"
