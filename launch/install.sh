# Sourced by the other launch scripts: makes .venv with the pinned packages once, then does nothing.
#   PYTHON                the interpreter to use (default: the first of python3.11, python3.12, python3.13, python3, python)
#   OPTIML_VENV           where the environment goes (default: .venv in the project)
#   OPTIML_FLAVOUR        cpu (default), cuda12, cuda13 or tpu: also requirements-FLAVOUR.lock, JAX for it
#   OPTIML_DOCS           1 also installs requirements-docs.lock (mkdocs)
#   OPTIML_TEST_ORACLES   1 also installs requirements-oracles.lock (torch, lm-evaluation-harness)

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  local found
  found=$("${PYTHON:-python3}" --version 2>&1) || found="no Python at all"
  fail "Python 3.11 or newer is needed, found: $found; install it, or name it: PYTHON=/path/to/python3.11 $0"
}

# A package without a wheel for this Python (editdistance on 3.13) is compiled.
compiler_missing() {
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    echo " No C++ compiler was found, which editdistance needs on Python 3.13: apt-get install g++ python3-dev"
}

# install_pins STAMP FILES...: installs the files' pins unless STAMP matches these files.
install_pins() {
  local stamp="$VENV/$1" wanted file
  shift
  wanted=$(cat "$@" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "installing $* into $VENV (a few minutes, once)"
  for file in "$@"; do
    case "$file" in
      *.lock) "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$file" ||
        fail "pip could not install the pins of $file; is there a network?$(compiler_missing)" ;;
      pyproject.toml) "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-deps --no-build-isolation --editable . || fail "pip could not install the project itself" ;;
    esac
  done
  echo "$wanted" >"$stamp"
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 2
VENV=${OPTIML_VENV:-$ROOT/.venv}
if ! "$VENV/bin/python" -c '' 2>/dev/null; then
  python=$(find_python) || exit 2
  "$python" -m venv --clear "$VENV" ||
    fail "$python cannot make an environment in $VENV (on Debian: apt-get install python3-venv)"
fi
install_pins .optiml-pins requirements.lock pyproject.toml
flavour=${OPTIML_FLAVOUR:-cpu}
if [ "$flavour" != cpu ]; then
  [ -f "requirements-$flavour.lock" ] || fail "OPTIML_FLAVOUR=$flavour: choose cpu, cuda12, cuda13 or tpu"
  install_pins ".optiml-$flavour" "requirements-$flavour.lock"
fi
if [ "${OPTIML_DOCS:-0}" = 1 ]; then
  install_pins .optiml-docs requirements-docs.lock
fi
if [ "${OPTIML_TEST_ORACLES:-0}" = 1 ]; then
  install_pins .optiml-oracles requirements-oracles.lock
fi
export PATH="$VENV/bin:$PATH"
# TensorFlow only reads and writes records here; its start-up notes would hide ours.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
