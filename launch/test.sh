#!/usr/bin/env bash
# All tests, after installing what is missing. Arguments go to pytest.
#   OPTIML_TEST_ORACLES=1   also installs torch and runs the live comparisons with Hugging Face's OPT
#   OPTIML_REAL_DATA=DIR    folder with real upstream data (default ../shared/data if it exists)
set -euo pipefail
. "$(dirname "$0")/install.sh"
ruff check --quiet . && ruff format --quiet --check .
exec python -m pytest "$@"
