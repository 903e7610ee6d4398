# shellcheck shell=bash
# Makes .venv from a requirements file and activates it; to be sourced: source launch/setup.sh FILE
# PYTHON names the interpreter to use (3.11 or newer); without it the newest one found is taken that
# every pinned package has wheels for.
requirements="${1:-requirements.txt}"
if [ ! -x .venv/bin/python ]; then
    for candidate in "${PYTHON:-}" python3 python3.12 python3.13 python3.11; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found="$candidate"
            break
        fi
    done
    if [ -z "${found:-}" ]; then
        echo "jaxseg needs Python 3.11 or newer; none was found. Install one, or set PYTHON=/path/to/python3" >&2
        exit 2
    fi
    echo "making .venv with $("$found" --version)"
    "$found" -m venv .venv || {
        echo "$found cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2
        exit 2
    }
fi
stamp=".venv/installed-$(basename "$requirements" .txt)-$(cat requirements*.txt | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements (about 2.4 GB with TensorFlow)"
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet -r "$requirements"
    touch "$stamp"
fi
# shellcheck source=/dev/null
source .venv/bin/activate
