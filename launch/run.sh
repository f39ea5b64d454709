#!/usr/bin/env bash
# Installs lmtrain once, then runs it: `bash launch/run.sh [verb] [flags]`, from any folder.
# Without arguments it trains the quickstart.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"
install ''
(($#)) || set -- train --config=configs/quickstart.py --workdir=runs/quickstart
exec "$VENV/bin/lmtrain" "$@"
