#!/usr/bin/env bash
# Three studies on the demo bench (docs/studies.md): builds it and executes the runs, two at a time.
# Run it again and it continues where it stopped. Arguments go to `optiml study`: --status, ...
set -euo pipefail
. "$(dirname "$0")/install.sh"

[ -e build/demo/vocabulary.model ] || python -m tasks.demo --out=build/demo
exec optiml study --gin_file=gin/studies/demo.gin "$@"
