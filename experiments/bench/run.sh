#!/usr/bin/env bash
# Measures lmtrain beside a plain PyTorch GPT: `bash experiments/bench/run.sh`, or `... --dry` for toy sizes, written nowhere.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../launch/venv.sh"
export PIP_CONSTRAINT=$here/constraints.txt
install bench
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$VENV/bin/python" -m experiments.bench "$@"
