#!/usr/bin/env bash
# From a fresh machine to a trained DeepLabv3+ and pictures of what it sees: no data to download.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh requirements.txt
python -m jaxseg.main --config configs/deeplabv3p.py:synthetic --workdir runs/quickstart "$@"
echo "(in a new shell first: source .venv/bin/activate)"
