#!/usr/bin/env bash
# Installs what is missing for the groups named: build run test fuzz coverage sanitize. What is there is left alone.
# Where it may not install (not root, no apt, no cargo), it says what is missing and how to get it, and exits 69.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=()   # Debian packages to install
crates=()     # programs that cargo installs
components=() # parts of the Rust toolchain

need_program() { command -v "$1" >/dev/null || packages+=("$2"); }
need_file() { [[ -e $1 ]] || packages+=("$2"); }
need_crate() { command -v "$1" >/dev/null || crates+=("$1"); }
need_component() { "$2" --version >/dev/null 2>&1 || components+=("$1"); }

# A busybox that needs the host's libraries can't run in an initramfs without them.
need_static_busybox() {
    local busybox
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 || packages+=(busybox-static)
}

rust_version_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

require_rust() {
    local wanted found
    wanted=$(rust_version_wanted)
    if ! command -v cargo >/dev/null; then
        echo "missing: Rust $wanted or later; Debian 12's own is 1.63. Get it with (needs curl):" >&2
        echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt,clippy" >&2
        exit "$EXIT_HOST_LACKS"
    fi
    found=$(cargo --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n' "$wanted" "$found" | sort --version-sort | head -n 1) != "$wanted" ]]; then
        echo "missing: Rust $wanted or later, found $found. Get it with:" >&2
        echo "  rustup update stable" >&2
        exit "$EXIT_HOST_LACKS"
    fi
}

collect() {
    case $1 in
    build)
        need_program gcc gcc
        need_file /usr/include/stdio.h libc6-dev
        require_rust
        ;;
    run)
        need_program qemu-system-x86_64 qemu-system-x86
        need_static_busybox
        ;;
    test)
        need_component rustfmt cargo-fmt
        need_component clippy cargo-clippy
        need_program shellcheck shellcheck
        need_crate cargo-nextest
        ;;
    fuzz) need_program g++ g++ ;;
    coverage) [[ -x $(llvm_tool llvm-cov) ]] || components+=(llvm-tools) ;;
    sanitize) need_program valgrind valgrind ;;
    *)
        echo "unknown group \`$1\`" >&2
        exit 2
        ;;
    esac
}

install_packages() {
    ((${#packages[@]})) || return 0
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "missing: ${packages[*]}. On Debian, get them with:" >&2
        echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${packages[*]}" >&2
        exit "$EXIT_HOST_LACKS"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # The lists are fetched only where they are missing or too old to install from.
    apt_install >/dev/null 2>&1 || { apt-get update --quiet && apt_install; } || {
        echo "failed to install: ${packages[*]}" >&2
        exit "$EXIT_HOST_LACKS"
    }
}

apt_install() { apt-get install --yes --quiet --no-install-recommends "${packages[@]}"; }

install_components() {
    local component
    for component in "${components[@]}"; do
        if ! command -v rustup >/dev/null || ! rustup component add "$component"; then
            echo "missing: the Rust component $component. Get it with: rustup component add $component" >&2
            exit "$EXIT_HOST_LACKS"
        fi
    done
}

install_crates() {
    local crate
    for crate in "${crates[@]}"; do
        if ! cargo install --locked "$crate"; then
            echo "missing: $crate. Get it with: cargo install --locked $crate" >&2
            exit "$EXIT_HOST_LACKS"
        fi
    done
}

(($#)) || { echo "usage: scripts/install.sh GROUP…" >&2; exit 2; }
for group in "$@"; do collect "$group"; done
((${#packages[@]} + ${#components[@]} + ${#crates[@]})) || exit 0
echo "installing: ${packages[*]} ${components[*]} ${crates[*]}"
install_packages
install_components
install_crates
