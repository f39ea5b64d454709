#!/usr/bin/env bash
# Measures LoRA beside PEFT and a soft prompt beside LoRA: `bash experiments/bench_adapters/run.sh`, or `... --dry`.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../launch/venv.sh"
install parity
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$VENV/bin/python" -m experiments.bench_adapters "$@"
