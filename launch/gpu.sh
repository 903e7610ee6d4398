#!/usr/bin/env bash
# Trains on all NVIDIA GPUs of this machine, in one process:
#
#   bash launch/gpu.sh --config configs/deeplabv3p.py:cityscapes --workdir runs/cityscapes
#
# Says what is missing, makes .venv, and does not fall back to the CPU. CUDA_VISIBLE_DEVICES=0,1
# takes a part of the GPUs. --dry-run shows the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
take_options "$@"
set -- ${arguments[@]+"${arguments[@]}"}

command=(python -m jaxseg.main "$@")
query=(nvidia-smi '--query-gpu=index,name,memory.total,driver_version' '--format=csv,noheader')
if [ -n "$dry_run" ]; then
    execute "${query[@]}"
    say "+ source launch/setup.sh requirements-gpu.txt"
    say "+ JAX_PLATFORMS=cuda,cpu $(quoted "${command[@]}")"
    exit 0
fi
need nvidia-smi "this machine has no NVIDIA driver, or not on PATH. Install the driver \
(580 or newer for CUDA 13); launch/local.sh trains on the CPU"
gpus="$("${query[@]}" 2>&1)" ||
    die "nvidia-smi finds no GPU that works: $gpus. Is the driver loaded, and, in a container, \
were the GPUs passed on (docker run --gpus all)?"
printf 'GPU %s\n' "$gpus"
driver="${gpus##*, }"
if [ "${driver%%.*}" -lt 580 ] 2>/dev/null; then
    die "the driver $driver is too old for CUDA 13, which requirements-gpu.txt installs: \
install driver 580 or newer, or put jax[cuda12] there"
fi
environment requirements-gpu.txt
# By default jax trains on the CPU where CUDA does not start; with this it stops and says why.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"
status=0
"${command[@]}" || status=$?
if [ "$status" = 42 ]; then
    say "saved; the same command goes on from there"
fi
exit "$status"
