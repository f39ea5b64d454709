#!/usr/bin/env bash
# Installs lmtrain with what the tests need, lints, and runs the tests: `bash launch/test.sh [pytest arguments]`.
# Another interpreter: `PYTHON=python3.12 VENV=.venv312 bash launch/test.sh`.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install test
cd -- "$root"
lint=0
"$VENV/bin/ruff" check --quiet --output-format concise . || lint=$?
((lint == 0)) || say 'lmtrain: lines that ruff refuses stand above, so this ends in failure whatever the tests say'
"$VENV/bin/python" -m pytest -n logical --maxprocesses 8 "$@" && exit "$lint"
