#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster (v4 to v6e, TPU7x) as a JobSet, by way of XPK:
#
#   export PROJECT=my-project ZONE=us-east5-a CLUSTER=my-cluster TPU_TYPE=v6e-16
#   export WORKLOAD=segment STORAGE=jaxseg-bucket
#   bash launch/gke_xpk.sh storage my-bucket     # once for a cluster
#   bash launch/gke_xpk.sh create --config configs/deeplabv3p.py:cityscapes \
#       --config.data.root=/mnt/jaxseg/data/cityscapes --workdir /mnt/jaxseg/runs/cityscapes
#
#   storage BUCKET     attaches a bucket to the cluster, as STORAGE, at /mnt/jaxseg
#   create ARGUMENTS   queues the training; it starts again by itself after exit status 42
#   logs               follows the log of worker 0
#   list               the workloads of the cluster
#   delete             ends the training, which saves first; asks
#
# --dry-run shows the commands and runs nothing; --yes deletes without asking.
#
#   SPOT=1    spot capacity, on clusters that make their nodes when they are needed
#   SLICES    how many slices of TPU_TYPE, 1 by default
#   IMAGE     a container image with jaxseg and requirements-tpu.txt in its working directory (see
#             docs/scale.md). Without it this checkout is laid on python:3.12, which needs no Docker
#             file, but installs the packages at every start, on TPUs that are paid for
#
# xpk comes by: pip install xpk. It makes clusters, too (xpk cluster create), and tells Google what
# it is used for, unless: xpk config set send-telemetry false
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
take_options "$@"
set -- ${arguments[@]+"${arguments[@]}"}
command="${1:-}"
[ $# -gt 0 ] && shift

case "$command" in
    storage | create | logs | list | delete) ;;
    "")
        usage
        exit 2
        ;;
    *) die "gke_xpk.sh: what is '$command'? storage, create, logs, list or delete" ;;
esac
require PROJECT my-project "the Google Cloud project that pays" \
    ZONE us-east5-a "the cluster's zone" \
    CLUSTER my-cluster "the cluster, made by xpk cluster create"
where=(--project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER")

case "$command" in
    create | logs | delete) require WORKLOAD segment "the name of this training" ;;
esac
case "$command" in
    create | storage) require STORAGE jaxseg-bucket "the name of the storage to mount" ;;
esac
if [ "$command" = logs ]; then
    need kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
else
    need xpk "pip install xpk, in a virtual environment of its own"
fi

bill() {
    local status=$?
    trap - EXIT
    rm -rf "${scratch:-}"
    if [ -z "$dry_run" ]; then
        say "STILL BILLED: the nodes of the cluster $CLUSTER, whether anything runs on them or \
not, and its storage. To end that: xpk cluster delete $(quoted "${where[@]}")"
    fi
    exit "$status"
}
trap bill EXIT

storage() {
    if [ -z "${1:-}" ]; then
        die "give the bucket, as in: bash launch/gke_xpk.sh storage my-bucket"
    fi
    execute xpk storage attach "$STORAGE" "${where[@]}" --type=gcsfuse --bucket="${1#gs://}" \
        --mount-point=/mnt/jaxseg --readonly=false --size=1 --auto-mount=false \
        --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,rename-dir-limit=100000
}

create() {
    local size chips distributed=() training image=() spot=()
    require TPU_TYPE v6e-16 "its type and size"
    size="${TPU_TYPE##*-}" # chips, or cores, two on a chip; or a topology as 2x2x4, of chips
    if [[ ! "$TPU_TYPE" =~ ^(v4|v5litepod|v5p|v6e|tpu7x)-[1-9][0-9]*(x[1-9][0-9]*){0,2}$ ]]; then
        die "TPU_TYPE=$TPU_TYPE: expected v4-N, v5p-N or tpu7x-N (N cores), v5litepod-N or v6e-N \
(N chips), for example TPU_TYPE=v6e-16"
    fi
    case "$TPU_TYPE $size" in
        *" "*x* | v5litepod-* | v6e-*) chips=$((${size//x/*})) ;;
        *) chips=$((size / 2)) ;;
    esac
    if [ "$chips" -gt 4 ] || [ "${SLICES:-1}" -gt 1 ]; then # four chips on a machine
        distributed=(--distributed)
    fi
    case "$(flag_value --workdir "$@")" in
        /mnt/jaxseg/?*) ;;
        *) die "--workdir: give a folder of the storage, which outlives the pods, as in \
--workdir=/mnt/jaxseg/runs/cityscapes" ;;
    esac
    # exec: SIGTERM goes to the training, not to a shell around it.
    training="export JAX_PLATFORMS=tpu,cpu; exec $(quoted python -m jaxseg.main "$@" \
        ${distributed[@]+"${distributed[@]}"})"
    if [ -n "${IMAGE:-}" ]; then
        image=(--docker-image="$IMAGE")
    else
        scratch="$(mktemp -d)"
        pack "$scratch/jaxseg.tgz"
        mkdir "$scratch/jaxseg"
        if [ -z "$dry_run" ]; then
            tar -xzf "$scratch/jaxseg.tgz" -C "$scratch/jaxseg"
            cd "$scratch"
        fi
        image=(--base-docker-image=python:3.12 --script-dir=jaxseg)
        training="set -e; source launch/setup.sh requirements-tpu.txt; $training"
    fi
    if [ -n "${SPOT:-}" ]; then
        spot=(--spot)
    fi
    # XPK starts again after 42 and after signals (127 to 255), not after other failures.
    execute xpk workload create "${where[@]}" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" \
        --num-slices="${SLICES:-1}" "${image[@]}" --storage="$STORAGE" --max-restarts=50 \
        --termination-grace-period-seconds=120 ${spot[@]+"${spot[@]}"} --command="$training"
}

logs() {
    execute kubectl logs --follow --tail=-1 --container=jax-tpu \
        --selector="jobset.sigs.k8s.io/jobset-name=$WORKLOAD,batch.kubernetes.io/job-completion-index=0"
}

delete() {
    if confirm "end the training $WORKLOAD on $CLUSTER? Its checkpoints stay"; then
        execute xpk workload delete "${where[@]}" --workload="$WORKLOAD" --force
    else
        say "not deleted"
    fi
}

case "$command" in
    list) execute xpk workload list "${where[@]}" ;;
    *) "$command" "$@" ;;
esac
