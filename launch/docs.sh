#!/usr/bin/env bash
# The documentation as a site. Arguments go to mkdocs.
#   ./launch/docs.sh          serves it on http://localhost:8000 and follows changes
#   ./launch/docs.sh build    writes it to build/site
set -euo pipefail
OPTIML_DOCS=1 . "$(dirname "$0")/install.sh"
exec mkdocs "${@:-serve}"
