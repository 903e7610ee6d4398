#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker, in ~/jaxseg there:
#
#   setup            brings Python 3.12 and makes .venv
#   mount SHARED     mounts gs://BUCKET or HOST:/SHARE at /mnt/jaxseg
#   start ARGUMENTS  starts training, which outlives the connection
#   follow LINES     shows the log from that line on (+1), or its last LINES, until training ends
#   status           HOST and: idle, running, exit STATUS, stopped, or lost (ended without a word)
#   stop             SIGTERM: jaxseg saves and exits 42
set -euo pipefail
cd "$(dirname "$0")/.."
state="$HOME/jaxseg-run"
mkdir -p "$state"
touch "$state/log"

running() { [ -e "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }

setup() {
    # The system's Python, 3.10, is too old for jax; uv brings one without root.
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    PYTHON="$(python3 -m uv python find --managed-python 3.12)"
    export PYTHON
    # shellcheck source=launch/setup.sh
    source launch/setup.sh requirements-tpu.txt
}

mount_shared() {
    if mountpoint -q /mnt/jaxseg; then
        return
    fi
    sudo mkdir -p /mnt/jaxseg
    sudo chown "$(id -u):$(id -g)" /mnt/jaxseg
    case "$1" in
        gs://*)
            if ! command -v gcsfuse >/dev/null; then
                local key=/usr/share/keyrings/cloud.google.asc
                local apt=https://packages.cloud.google.com/apt
                curl -fsSL "$apt/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
                echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
                    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
                sudo apt-get update -qq
                sudo apt-get install -y -qq gcsfuse
            fi
            # A folder that one host makes must be there for the others at once: no metadata cache.
            # A checkpoint ends with renaming its folder, which a bucket without folders of its own
            # (hierarchical namespace) does file by file, and only up to this limit.
            gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 \
                "${1#gs://}" /mnt/jaxseg
            ;;
        *)
            sudo apt-get install -y -qq nfs-common
            sudo mount -t nfs "$1" /mnt/jaxseg
            ;;
    esac
}

start() {
    if running; then
        echo "$(hostname): training runs already"
        return
    fi
    rm -f "$state/exit" "$state/stopped"
    setsid bash launch/tpu_worker.sh train "$@" >"$state/log" 2>&1 </dev/null &
    echo $! >"$state/pid"
}

train() {
    # shellcheck source=/dev/null
    source .venv/bin/activate
    export JAX_PLATFORMS=tpu,cpu
    trap : TERM HUP # the training handles them; this shell stays, to note how it ended
    local status=0
    python -m jaxseg.main "$@" || status=$?
    echo "$status" >"$state/exit"
}

follow() {
    if running; then
        tail --pid="$(cat "$state/pid")" --sleep-interval=0.2 -n "$1" -F "$state/log"
    else
        tail -n "$1" "$state/log"
    fi
}

status() {
    if running; then
        echo "$(hostname) running"
    elif [ -e "$state/stopped" ]; then
        echo "$(hostname) stopped, exit $(cat "$state/exit")"
    elif [ -e "$state/exit" ]; then
        echo "$(hostname) exit $(cat "$state/exit")"
    elif [ -e "$state/pid" ]; then
        echo "$(hostname) lost"
    else
        echo "$(hostname) idle"
    fi
}

stop() {
    if running; then
        touch "$state/stopped"
        kill -TERM -- "-$(cat "$state/pid")" # with its group: the training itself
    fi
}

case "${1:-}" in
    setup | start | train | follow | status | stop) "$@" ;;
    mount) mount_shared "$2" ;;
    *)
        echo "error: tpu_worker.sh: what is '${1:-}'?" >&2
        exit 2
        ;;
esac
