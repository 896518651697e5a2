# What tests/run and tests/bench/run share: how a missing program is installed. Sourced, not run.

source "$(dirname "${BASH_SOURCE[0]}")/../deploy/release/program.sh"

# The Debian packages of those PROGRAM:PACKAGE that do not run, one a line.
packages_of_missing() {
    local program
    for program in "$@"; do
        if ! runs "${program%%:*}"; then echo "${program#*:}"; fi
    done
}

install_debian_packages() {
    if (($# == 0)); then return; fi
    echo "installing $*"
    if ! runs apt-get || ((EUID != 0)); then
        fail "missing here, by Debian's names: $*; only root of a Debian can have them installed"
    fi
    quietly apt_get update
    quietly apt_get install --yes --no-install-recommends "$@"
}

# Programs of root are found without root's PATH.
runs() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null; }

# Shows what a command said only when it failed.
quietly() {
    local said
    if ! said=$("$@" 2>&1); then
        echo "$said" >&2
        fail "this failed: $*"
    fi
}
