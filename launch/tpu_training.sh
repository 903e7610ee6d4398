# shellcheck shell=bash disable=SC2034,SC2154 # the variables are those of tpu_vm.sh
# How launch/tpu_vm.sh trains, on a TPU that is there and set up; to be sourced. Training runs by
# itself on the workers: what happens here is starting it, looking on, and starting it again.

start() {
    local distributed=()
    if [ "$hosts" -gt 1 ]; then
        distributed=(--distributed)
    fi
    if [ -n "${SHARED:-}" ]; then # always: a machine that was restarted has lost it
        worker all mount "$SHARED"
    fi
    worker all start "$@" ${distributed[@]+"${distributed[@]}"}
}

# How the training stands: running, lingering (on some workers), finished, stopped, saved, lost,
# failed, mistaken; gone with the TPU; or unknown.
outcome() {
    local state lines
    state="$(resource_state)"
    if [ "$state" = unknown ]; then
        printf unknown
        return
    elif [ "$state" != ACTIVE ]; then
        printf gone
        return
    fi
    if ! lines="$(worker all status 2>"$scratch/error" | grep -v '^+')"; then
        printf unknown
        return
    fi
    printf '%s\n' "$lines" >&2
    case "$lines" in
        *" exit "*" running"* | *" running"*" exit "*) printf lingering ;;
        *" running"*) printf running ;;
        *" stopped"*) printf stopped ;;
        *" lost"* | *" idle"*) printf lost ;;
        *)
            if grep -q ' exit 2$' <<<"$lines"; then
                printf mistaken
            elif grep -qvE ' exit (0|42)$' <<<"$lines"; then
                printf failed
            elif grep -q ' exit 42$' <<<"$lines"; then
                printf saved
            else
                printf finished
            fi
            ;;
    esac
}

run() {
    local left="${RESTARTS:-20}" doubts=0 patience from=+1 now status
    check_arguments "$@"
    start "$@"
    if [ -n "$dry_run" ]; then
        worker 0 follow +1
        worker all status
        say "  (exit 42: start again${SPOT:+; TPU taken away: delete, create, setup, start})"
        return
    fi
    follows="Training goes on there. bash launch/tpu_vm.sh: logs follows it, stop ends it, run with \
the same arguments sees to it again"
    while true; do
        # Its own status says little: the connection may have been lost, or the machine.
        worker 0 follow "$from" || true
        now="$(outcome)"
        patience=0
        case "$now" in
            running) # only the connection was lost
                from=20 doubts=0
                continue
                ;;
            unknown | lingering) patience=20 ;;
            failed) patience="${SPOT:+4}" ;; # so it looks while a spot TPU is being taken away
        esac
        if [ "$doubts" -lt "${patience:-0}" ]; then
            doubts=$((doubts + 1))
            from=0
            sleep "$poll"
            continue
        fi
        case "$now" in
            saved | lost) ;;
            gone) [ -n "${SPOT:-}" ] || break ;;
            *) break ;;
        esac
        left=$((left - 1))
        if [ "$left" -lt 0 ]; then
            say "not started again: that was done ${RESTARTS:-20} times (RESTARTS)"
            break
        fi
        say "training: $now; it goes on from the newest checkpoint"
        doubts=0 from=+1
        set +e
        ( # so that a machine which is taken away meanwhile ends no more than this attempt
            set -e
            if [ "$now" = gone ]; then
                create
                setup
            fi
            start "$@"
        )
        status=$?
        set -e
        if [ "$status" != 0 ]; then
            sleep "$poll"
        fi
    done
    say "training: $now"
    case "$now" in
        finished) follows="" ;;
        lingering | unknown) exit 1 ;;
        gone)
            say "$TPU_NAME is gone, though not spot: run 'all' again to go on"
            exit 1
            ;;
        *)
            follows="What happened on worker N: bash launch/tpu_vm.sh logs N"
            exit 1
            ;;
    esac
}
