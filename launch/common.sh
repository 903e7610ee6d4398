# shellcheck shell=bash
# What the scripts of this folder share; to be sourced.
dry_run=""
yes=""

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# The comment at the top of the script that was called.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Takes --dry-run, --yes and --help out of the arguments; the others are left in `arguments`.
take_options() {
    local argument
    arguments=()
    for argument in "$@"; do
        case "$argument" in
            --dry-run) dry_run=1 ;;
            --yes) yes=1 ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) arguments+=("$argument") ;;
        esac
    done
}

# require NAME EXAMPLE MEANING ...: refuses to go on while one of the variables is empty.
require() {
    local missing=""
    while [ $# -gt 0 ]; do
        if [ -z "${!1:-}" ]; then
            printf 'error: set %s, %s, for example %s\n' "$1" "$3" "$1=$2" >&2
            missing=1
        fi
        shift 3
    done
    if [ -n "$missing" ]; then
        exit 2
    fi
}

# need PROGRAM HOW: refuses to go on without a program; a dry run needs none.
need() {
    if [ -z "$dry_run" ] && ! command -v "$1" >/dev/null; then
        die "$1 is not installed here: $2"
    fi
}

# The words as one line that a shell reads as the same words.
quoted() {
    local word line="" quote="'" escaped="'\\''"
    for word in "$@"; do
        case "$word" in
            "" | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//$quote/$escaped}'" ;;
        esac
        line+="${line:+ }$word"
    done
    printf '%s' "$line"
}

# Shows a command and runs it; a dry run only shows it.
execute() {
    printf '+ %s\n' "$(quoted "$@")"
    if [ -z "$dry_run" ]; then
        "$@"
    fi
}

# confirm QUESTION: whether the answer is yes; without anybody to ask it is no.
confirm() {
    local answer=""
    if [ -n "$yes" ] || [ -n "$dry_run" ]; then
        return 0
    fi
    printf '%s [y/N] ' "$1"
    read -r answer || printf '(nobody to ask: no)\n'
    case "$answer" in
        y | Y | yes) return 0 ;;
        *) return 1 ;;
    esac
}

# flag_value --workdir ARGUMENTS: the flag's value among them, or nothing.
flag_value() {
    local flag="$1" value=""
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            "$flag") value="${2:-}" ;;
            "$flag"=*) value="${1#*=}" ;;
        esac
        shift
    done
    printf '%s' "$value"
}

# pack FILE: this checkout as it is now, uncommitted changes included and what git ignores not.
pack() {
    say "+ packing the files that git does not ignore into $(basename "$1")"
    if [ -n "$dry_run" ]; then
        return
    fi
    git rev-parse --is-inside-work-tree >/dev/null 2>&1 || die "$PWD is not a git checkout: \
git says there which files to copy (git init && git add . makes it one)"
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do
            if [ -e "$file" ]; then # not deleted since it was committed
                printf '%s\0' "$file"
            fi
        done | tar --null -T - -czf "$1"
}

# environment FILE: the virtual environment that is active, or .venv made from the requirements.
environment() {
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        # shellcheck source=launch/setup.sh
        source launch/setup.sh "$1"
    fi
}
