#!/usr/bin/env bash
# Makes requirements/lock-py*.txt anew from requirements.txt: the newest versions that fit, each file
# of them by its hash, for Python 3.11 and 3.12 on Linux x86-64. Needs uv (pip install uv).
#
#     bash tools/lock.sh              # as few changes as requirements.txt asks for
#     bash tools/lock.sh --upgrade    # everything to its newest version
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv >/dev/null || {
    echo "tools/lock.sh needs uv: pip install uv" >&2
    exit 2
}
for python in 3.11 3.12; do
    # Where packages come from is the business of whoever installs them.
    UV_CUSTOM_COMPILE_COMMAND="bash tools/lock.sh" uv pip compile --quiet --generate-hashes \
        --no-emit-index-url --no-emit-find-links --python-version "$python" \
        --python-platform x86_64-unknown-linux-gnu \
        --output-file "requirements/lock-py${python/./}.txt" "$@" requirements.txt
    echo "requirements/lock-py${python/./}.txt: $(grep -c '==' "requirements/lock-py${python/./}.txt") packages"
done
