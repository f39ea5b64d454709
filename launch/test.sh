#!/usr/bin/env bash
# Installs lmtrain with what the tests need, checks style and types, and runs the tests: `bash launch/test.sh [pytest arguments]`.
# Those marked `slow` are left out: whole runs, comparisons, several processes, further cases; all tests: `bash launch/test.sh -m ''`.
# Another interpreter: `PYTHON=python3.12 VENV=.venv312 bash launch/test.sh`.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install test
cd -- "$root"
failed=()
"$VENV/bin/ruff" check --quiet --output-format concise . || failed+=('ruff check')
"$VENV/bin/ruff" format --check --quiet . || failed+=('ruff format --check (run ruff format)')
"$VENV/bin/ty" check --no-progress --output-format concise --python "$VENV" || failed+=('ty check')
((${#failed[@]} == 0)) || say "lmtrain: failed: $(printf '%s, ' "${failed[@]}" | sed 's/, $//'); the tests run, but the exit code is 1"
# A worker takes whole files: it then makes the fixtures of a file, and traces its programs, once.
"$VENV/bin/python" -m pytest -n logical --maxprocesses 8 --dist loadfile -m 'not slow' "$@" && exit "$((${#failed[@]} > 0))"
