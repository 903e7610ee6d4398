#!/usr/bin/env bash
# Runs N processes of one job on this machine over loopback, each with one CPU device:
#
#   bash launch/local.sh 2 --config configs/deeplabv3p.py:synthetic --workdir runs/two
#
# What process 0 prints is shown as it is, that of the others after [1], [2] ... If one fails the
# others are ended within seconds, and its exit status is passed on. --dry-run shows the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
take_options "$@"
set -- ${arguments[@]+"${arguments[@]}"}

case "${1:-}" in
    "" | *[!0-9]* | 0*) die "local.sh: give the number of processes first, \
as in: bash launch/local.sh 2 --config configs/deeplabv3p.py:synthetic --workdir runs/two" ;;
esac
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-1}"
if [ -n "$dry_run" ]; then
    say "+ export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=$JAX_NUM_CPU_DEVICES"
    for ((process = 0; process < $1; process++)); do
        say "+ $(quoted python -m jaxseg.main "${@:2}" --coordinator=127.0.0.1:PORT \
            --num_processes="$1" --process_id="$process") &"
    done
    exit 0
fi
environment requirements.txt
exec python launch/local.py "$@"
