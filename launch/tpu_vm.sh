#!/usr/bin/env bash
# Trains on a Cloud TPU VM (v2 to v6e), one host or a pod slice, got as a queued resource:
#
#   export PROJECT=my-project ZONE=us-west4-a TPU_NAME=segment TPU_TYPE=v5litepod-16
#   export SHARED=gs://my-bucket
#   bash launch/tpu_vm.sh all --config configs/deeplabv3p.py:cityscapes \
#       --config.data.root=/mnt/jaxseg/data/cityscapes --workdir /mnt/jaxseg/runs/cityscapes
#
#   create              asks for the TPU and waits for it; it is billed from then on
#   setup               copies this checkout to every worker and makes its Python there
#   run ARGUMENTS       trains on all workers and follows the log of worker 0; starts again after
#                       exit status 42, and with SPOT=1 on a new TPU when this one is taken away
#   logs [WORKER]       follows the log of a worker
#   status              the TPU's state, and what runs on it
#   stop                ends the training; it saves first
#   fetch --workdir W   copies a run's folder to runs/
#   delete              deletes the TPU; asks first
#   all ARGUMENTS       create, setup, run, fetch, delete
#
# --dry-run shows the commands and runs nothing; --yes deletes without asking.
#
#   RUNTIME_VERSION     the TPU's system image; by default that of the type
#   SPOT=1              cheaper, and taken away when others pay more
#   SHARED              gs://BUCKET or HOST:/SHARE, mounted at /mnt/jaxseg on every worker. The
#                       workdir and the data lie there, unless there is one worker and no SPOT
#   RESTARTS            how often training is started again, 20 by default
#   POLL                seconds between two looks at the TPU, 30 by default
#
# What is built on is Google's Cloud TPU API, which gets no new types: see launch/gke_xpk.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
source launch/tpu_training.sh
take_options "$@"
set -- ${arguments[@]+"${arguments[@]}"}
command="${1:-}"
[ $# -gt 0 ] && shift

case "$command" in
    create | setup | run | logs | status | stop | fetch | delete | all) ;;
    "")
        usage
        exit 2
        ;;
    *) die "tpu_vm.sh: what is '$command'? create, setup, run, logs, status, stop, fetch, delete \
or all" ;;
esac
require PROJECT my-project "the Google Cloud project that pays" \
    ZONE us-west4-a "a zone that has the TPU" \
    TPU_NAME segment "the name to give the TPU" \
    TPU_TYPE v5litepod-16 "its type and size"

size="${TPU_TYPE##*-}" # in cores, two on a chip, for v2 to v4 and v5p; in chips for the others
case "$size" in
    *[!0-9]*) size=0 ;;
esac
case "${TPU_TYPE%-*}-$size" in
    v2-[1-9]* | v3-[1-9]* | v4-[1-9]*) runtime=tpu-ubuntu2204-base hosts=$((size > 8 ? size / 8 : 1)) ;;
    v5p-[1-9]*) runtime=v2-alpha-tpuv5 hosts=$((size > 8 ? size / 8 : 1)) ;;
    v5litepod-[1-9]*) runtime=v2-alpha-tpuv5-lite hosts=$((size > 8 ? size / 4 : 1)) ;;
    v6e-[1-9]*) runtime=v2-alpha-tpuv6e hosts=$((size > 8 ? size / 4 : 1)) ;;
    tpu7x-*) die "TPU_TYPE=$TPU_TYPE: not to be had as a TPU VM; launch/gke_xpk.sh runs on it" ;;
    *) die "TPU_TYPE=$TPU_TYPE: expected v2-N, v3-N, v4-N, v5p-N (N cores), v5litepod-N or v6e-N \
(N chips), for example TPU_TYPE=v5litepod-16" ;;
esac
runtime="${RUNTIME_VERSION:-$runtime}"
case "${SHARED:-}" in
    "" | gs://[a-z0-9]* | *:/*) ;;
    *) die "SHARED=$SHARED: expected gs://BUCKET or HOST:/SHARE" ;;
esac
case "${SHARED:-}" in
    gs://*/*) die "SHARED=$SHARED: expected a whole bucket, as SHARED=gs://my-bucket" ;;
esac
need gcloud "it is part of the Google Cloud CLI, https://cloud.google.com/sdk/docs/install"
where=(--project="$PROJECT" --zone="$ZONE")
poll="${POLL:-30}"
scratch="$(mktemp -d)"
follows="" # what goes on without this script

# The queued resource's state, 'absent', or 'unknown' where gcloud could not tell.
resource_state() {
    local output
    if output="$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
        '--format=value(state.state)' 2>"$scratch/error")"; then
        printf '%s' "$output"
    elif grep -q NOT_FOUND "$scratch/error"; then
        printf absent
    else
        cat "$scratch/error" >&2
        printf unknown
    fi
}

# However this ends: what goes on costing money.
bill() {
    local status=$? remove="bash launch/tpu_vm.sh delete"
    trap - EXIT INT TERM
    if [ -z "$dry_run" ]; then
        case "$(resource_state)" in
            absent) say "$TPU_NAME does not exist: nothing of it is billed" ;;
            SUSPENDED | FAILED) say "$TPU_NAME has no machines, and is not billed; $remove" ;;
            WAITING_FOR_RESOURCES | ACCEPTED)
                say "STILL QUEUED: $TPU_NAME ($TPU_TYPE) is billed from when it is there, also \
if nobody waits for it. To prevent that: $remove"
                ;;
            unknown)
                say "PERHAPS STILL BILLED: Google could not be asked about $TPU_NAME ($TPU_TYPE, \
$ZONE). To make sure: $remove"
                ;;
            *)
                say "STILL BILLED: $TPU_NAME ($TPU_TYPE, $ZONE), whether anything runs on it or \
not. To end that: $remove"
                if [ -n "$follows" ]; then
                    say "$follows"
                fi
                ;;
        esac
        if [ -n "${SHARED:-}" ]; then
            say "$SHARED is stored, and billed, until you delete it yourself"
        fi
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap bill EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

on_workers() { # on_workers WORKER|all COMMAND
    execute gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

worker() { # worker WORKER|all ARGUMENTS of tpu_worker.sh
    on_workers "$1" "$(quoted bash jaxseg/launch/tpu_worker.sh "${@:2}")"
}

# What to know before anything is paid for.
check_arguments() {
    local workdir
    workdir="$(flag_value --workdir "$@")"
    if [ -z "$workdir" ]; then
        die "give --workdir=FOLDER, where the run is kept, as --workdir=/mnt/jaxseg/runs/cityscapes"
    fi
    case "$workdir" in
        *://*) die "--workdir=$workdir: expected a folder; with SHARED=gs://BUCKET the bucket is \
at /mnt/jaxseg, as in --workdir=/mnt/jaxseg/runs/cityscapes" ;;
        /mnt/jaxseg/*)
            if [ -z "${SHARED:-}" ]; then
                die "--workdir=$workdir: set SHARED to what is mounted there, for example \
SHARED=gs://my-bucket"
            fi
            ;;
        *)
            if [ "$hosts" -gt 1 ] || [ -n "${SPOT:-}" ]; then
                die "--workdir=$workdir: lies on the disk of each worker, where the $hosts workers \
do not share it and which goes with the TPU. Set SHARED=gs://BUCKET and give \
--workdir=/mnt/jaxseg/$workdir"
            fi
            ;;
    esac
}

create() {
    local state=absent spot=()
    if [ -n "${SPOT:-}" ]; then
        spot=(--spot)
    fi
    if [ -z "$dry_run" ]; then
        state="$(resource_state)"
    fi
    if [ -n "${SPOT:-}" ] && [[ "$state" =~ ^(SUSPENDING|SUSPENDED|FAILED)$ ]]; then
        say "$TPU_NAME was taken away, with its disks; it is created anew"
        remove
        state=absent
    fi
    case "$state" in
        absent)
            say "asking for $TPU_NAME: $TPU_TYPE in $ZONE${SPOT:+, spot}, workers: $hosts; it is \
billed from when it is there"
            execute gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" \
                --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" --runtime-version="$runtime" \
                ${spot[@]+"${spot[@]}"} || die "$TPU_NAME could not be created. Is the zone right \
(gcloud compute tpus accelerator-types list $(quoted "${where[@]}")), the API enabled \
(gcloud services enable tpu.googleapis.com --project=$PROJECT), and enough quota there for \
$TPU_TYPE${SPOT:+ as spot} (console, IAM & Admin, Quotas)?"
            ;;
        SUSPENDING | SUSPENDED | FAILED)
            die "$TPU_NAME exists and is $state, which is final: bash launch/tpu_vm.sh delete, \
then create it again"
            ;;
        unknown) die "Google could not be asked about $TPU_NAME" ;;
        *) say "$TPU_NAME exists already" ;;
    esac
    wait_until_active
}

wait_until_active() {
    local state before="" failures=0
    if [ -n "$dry_run" ]; then
        execute gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
            '--format=value(state.state)'
        say "  (every $poll s until it is ACTIVE)"
        return
    fi
    while true; do
        state="$(resource_state)"
        if [ "$state" != "$before" ]; then
            say "$(date +%H:%M:%S) $TPU_NAME: $state"
            before="$state"
        fi
        case "$state" in
            ACTIVE) return ;;
            absent) die "$TPU_NAME is gone: somebody deleted it" ;;
            SUSPENDING | SUSPENDED | FAILED) die "$TPU_NAME: $state before it was there. Why: \
gcloud compute tpus queued-resources describe $TPU_NAME $(quoted "${where[@]}")" ;;
            unknown)
                failures=$((failures + 1))
                [ "$failures" -lt 10 ] || die "Google cannot be asked about $TPU_NAME"
                ;;
        esac
        sleep "$poll"
    done
}

setup() {
    pack "$scratch/jaxseg.tgz"
    (
        cd "$scratch"
        execute gcloud compute tpus tpu-vm scp jaxseg.tgz "$TPU_NAME:" "${where[@]}" --worker=all
    )
    # Code that was removed here must not be found there; what else lies there stays.
    on_workers all "mkdir -p jaxseg && rm -rf jaxseg/jaxseg jaxseg/configs && \
tar -xzf jaxseg.tgz -C jaxseg"
    worker all setup
}

fetch() {
    local workdir rest
    check_arguments "$@"
    workdir="$(flag_value --workdir "$@")"
    workdir="${workdir%/}"
    rest="${workdir#/mnt/jaxseg/}"
    execute mkdir -p "runs/${workdir##*/}"
    case "$workdir ${SHARED:-}" in
        "/mnt/jaxseg/"*" gs://"*) # needs no TPU
            execute gcloud storage rsync --recursive "$SHARED/$rest" "runs/${workdir##*/}"
            ;;
        /*) execute gcloud compute tpus tpu-vm scp --recurse "$TPU_NAME:$workdir" runs/ \
            "${where[@]}" --worker=0 ;;
        *) execute gcloud compute tpus tpu-vm scp --recurse "$TPU_NAME:jaxseg/$workdir" runs/ \
            "${where[@]}" --worker=0 ;;
    esac
}

remove() {
    execute gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
}

delete() {
    if confirm "delete $TPU_NAME ($TPU_TYPE, $ZONE) and everything on its own disks?"; then
        remove
    else
        say "not deleted"
    fi
}

case "$command" in
    create | setup | delete) "$command" ;;
    run | fetch) "$command" "$@" ;;
    logs) worker "${1:-0}" follow +1 ;;
    status)
        if [ -z "$dry_run" ]; then
            say "$TPU_NAME: $(resource_state)"
        fi
        worker all status
        ;;
    stop) worker all stop ;;
    all)
        check_arguments "$@"
        create
        setup
        run "$@"
        fetch "$@"
        delete
        ;;
esac
