# Sourced by the scripts that restart runs. docs/reliability.md explains the exit statuses.

# again STATUS ATTEMPT: whether a run with this exit status is restarted: one that failed (1), stalled
# (76), or was ended by an abort, the kernel or a fault (134 to 139; 255: ssh lost it). Not one that
# is done (0), that the user must fix (2, 126, 127), or that was stopped on purpose (75, 130, 143).
again() {
  case $1 in 1 | 76 | 13[4-9] | 255) [ "$2" -lt "${OPTIML_RESTARTS:-3}" ] ;; *) return 1 ;; esac
}
