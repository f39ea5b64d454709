#!/usr/bin/env bash
# Compares the evaluator with lm-eval and transformers: `bash experiments/evaluator/run.sh --root DIR --smollm2 DIR [--quick]`.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../launch/venv.sh"
install lm-eval,parity
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$VENV/bin/python" -m experiments.evaluator "$@"
