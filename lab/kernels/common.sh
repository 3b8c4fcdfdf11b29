# shellcheck shell=bash
# What get, run and all share. Sourced, never run.

HERE=$(dirname "$(readlink -f "$0")")
# Everything that lasts is below one folder; deleting it undoes every script here.
STATE=${LAB_KERNELS_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/conntrack-canary/kernels}
TOOLS=$STATE/tools
export PATH=$PATH:/usr/sbin:/sbin
# What apt says is read, and it speaks the user's language.
export LC_ALL=C

# The lines of a script's own head that begin further in.
usage() { sed -n 's/^#   *//p' "$0"; }

# fail STATUS TEXT: one clear line, and the end.
fail() {
    local status=$1
    shift
    echo "${0##*/}: $*" >&2
    exit "$status"
}

# need COMMAND...: each is installed, or one line says what is missing.
need() {
    local command missing=
    for command; do
        command -v "$command" >/dev/null || missing+=" $command"
    done
    [ -z "$missing" ] || fail 1 "missing:$missing (tools/setup kernels installs them)"
}

# take OPTION VALUE...: the value goes to the variable that is named as the option.
take() {
    [ $# -gt 1 ] || fail 2 "$1 needs a value"
    printf -v "${1#--}" %s "$2"
}

# A kernel's name is a folder's name.
check_name() {
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*$ ]] ||
        fail 2 "'$1' cannot name a kernel: use letters, digits, dots and dashes"
}

# check_number OPTION VALUE
check_number() { [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail 2 "$1 '$2' is not a whole number above 0"; }

# qemu: the one that is installed, or else the one that get unpacked.
find_qemu() {
    if [ -n "${LAB_KERNELS_QEMU-}" ]; then
        command -v "$LAB_KERNELS_QEMU" || fail 2 "LAB_KERNELS_QEMU: no program '$LAB_KERNELS_QEMU'"
    else
        command -v qemu-system-x86_64 || echo "$TOOLS/usr/bin/qemu-system-x86_64"
    fi
}
