#!/usr/bin/env bash
# Compares lmtrain with transformers and PEFT on tiny random models: `bash launch/parity.sh [--only NAME] [--dry]`.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install parity
cd -- "$root"
exec "$VENV/bin/python" -m experiments.parity "$@"
