#!/usr/bin/env bash
# Installs what is missing for the groups named: build run test fuzz coverage. What is there is left alone.
# Where it may not install (not root, no apt, no cargo), it says what is missing and how to get it, and exits 69.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=()   # Debian packages to install
crates=()     # programs that cargo installs
components=() # parts of the Rust toolchain
lacking=()    # what this script can't install, and how to get it

need_program() { command -v "$1" >/dev/null || packages+=("$2"); }
need_file() { [[ -e $1 ]] || packages+=("$2"); }
need_crate() { command -v "$1" >/dev/null || crates+=("$1"); }
need_component() { "$2" --version >/dev/null 2>&1 || components+=("$1"); }

lack() { lacking+=("missing: $1. Get it with:" "  $2"); }

# A busybox that needs the host's libraries can't run in an initramfs without them.
need_static_busybox() {
    local busybox
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 || packages+=(busybox-static)
}

rust_version_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

need_rust() {
    local wanted found
    wanted=$(rust_version_wanted)
    if ! command -v cargo >/dev/null; then
        lack "Rust $wanted or later (Debian 12's own is 1.63; the command needs curl)" \
            "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt,clippy"
        return
    fi
    found=$(cargo --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n' "$wanted" "$found" | sort --version-sort | head -n 1) != "$wanted" ]]; then
        lack "Rust $wanted or later, found $found" "rustup update stable"
    fi
}

collect() {
    case $1 in
    build)
        need_program gcc gcc
        need_file /usr/include/stdio.h libc6-dev
        need_rust
        ;;
    run)
        need_program qemu-system-x86_64 qemu-system-x86
        need_static_busybox
        ;;
    test)
        need_component rustfmt cargo-fmt
        need_component clippy cargo-clippy
        need_program shellcheck shellcheck
        need_program qemu-img qemu-utils
        need_crate cargo-nextest
        ;;
    fuzz) need_program g++ g++ ;;
    coverage) [[ -x $(llvm_tool llvm-cov) ]] || components+=(llvm-tools) ;;
    *)
        echo "unknown group \`$1\`" >&2
        exit 2
        ;;
    esac
}

# All that stands in the way is said at once, before anything is installed.
refuse_what_cannot_be_had() {
    if ((${#packages[@]})) && { [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; }; then
        lack "${packages[*]} (packages of Debian)" \
            "sudo apt-get update && sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    if ((${#components[@]})) && ! command -v rustup >/dev/null; then
        lack "${components[*]} (parts of the Rust toolchain)" "rustup component add ${components[*]}"
    fi
    ((${#lacking[@]})) || return 0
    printf '%s\n' "${lacking[@]}" >&2
    exit "$EXIT_HOST_LACKS"
}

apt_install() { apt-get install --yes --quiet --no-install-recommends "${packages[@]}"; }

# The lists are fetched only where they are missing or too old to install from.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt_install || { apt-get update --quiet && apt_install; }
}

install_crates() { cargo install --locked "${crates[@]}"; }

# get WHAT COMMAND…: a step, after which the host has it or lacks it.
get() { (step "install $1" "${@:2}") || exit "$EXIT_HOST_LACKS"; }

(($#)) || { echo "usage: scripts/install.sh GROUP…" >&2; exit 2; }
for group in "$@"; do collect "$group"; done
refuse_what_cannot_be_had
((!${#packages[@]})) || get "${packages[*]}" install_packages
((!${#components[@]})) || get "${components[*]}" rustup component add "${components[@]}"
((!${#crates[@]})) || get "${crates[*]}" install_crates
