#!/usr/bin/env bash
# Sets up everything in .venv and runs the tests. Arguments go to pytest: bash tests/run.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest -n 2 --dist worksteal "$@"
