#!/usr/bin/env bash
# All tests, after installing missing packages, on all CPUs. Arguments go to pytest:
#   ./launch/test.sh -m "not slow"         those that take seconds, in a few minutes
#   ./launch/test.sh tests/data -k packing a part
#   ./launch/test.sh -n0 -x --pdb ...      in one process, for a debugger
#   OPTIML_TEST_ORACLES=1   also installs torch and runs the live comparisons with Hugging Face's OPT
#   OPTIML_REAL_DATA=DIR    folder with real upstream data (default ../shared/data if it exists)
set -euo pipefail
OPTIML_DOCS=1 . "$(dirname "$0")/install.sh"
ruff check --quiet . && ruff format --quiet --check .
exec python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart=1 --durations=10 "$@"
