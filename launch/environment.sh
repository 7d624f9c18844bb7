# Sourced by the scripts that start several processes: the environment, and one log file per process.
#   OPTIML_LOGS                       folder of the log files (default: logs)
#   OPTIML_RESTARTS                   how often a failed run is restarted (default: 3)
#   XLA_PYTHON_CLIENT_MEM_FRACTION    share of a GPU's memory that JAX allocates (default here: .92; JAX's
#                                     own .75 leaves 30 GB of a 40 GB card)
#   XLA_FLAGS, LIBTPU_INIT_ARGS       flags of XLA for GPUs and TPUs, in addition to those of
#                                     optiml_jax/sharding/xla_flags, over which they take precedence

xla_flags() { grep '^--' "$(dirname "${BASH_SOURCE[0]}")/../optiml_jax/sharding/xla_flags/$1.txt" | tr '\n' ' '; }
case ${OPTIML_FLAVOUR-} in
cuda*) export XLA_FLAGS="$(xla_flags gpu)${XLA_FLAGS-}" ;;
tpu) export LIBTPU_INIT_ARGS="$(xla_flags tpu)${LIBTPU_INIT_ARGS-}" ;;
esac
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
export PYTHONUNBUFFERED=1
LOGS=${OPTIML_LOGS:-logs}
mkdir -p "$LOGS" || fail "cannot make the log folder $LOGS; name another one: OPTIML_LOGS=/path $0"

. "$(dirname "${BASH_SOURCE[0]}")/again.sh"

# exec_logged NAME COMMAND...: becomes the command (signals reach it), its output in $LOGS/NAME.log,
# which is appended to.
exec_logged() {
  local log="$LOGS/$1.log"
  shift
  printf '\n# %s on %s: %s\n' "$(date -Is)" "$(hostname)" "$*" >>"$log"
  exec "$@" >>"$log" 2>&1
}
