#!/usr/bin/env bash
# Installs what is missing for the given groups: build run test backends images newer fuzz coverage. Installed programs are
# not changed. `backends` are programs that tests of vhost-user connect to; `images` are programs that make images, volumes
# and networks, which the tests compare with; `newer` are QEMU 10 and Linux 6.12 of Debian's backports, unpacked
# below target/ and not installed.
# If it may not install (not root, no apt, no cargo), it prints what is missing and how to get it, and exits with 69.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=()   # Debian packages to install
crates=()     # programs that cargo installs
components=() # parts of the Rust toolchain
tool_crates=() # programs that cargo installs below target/, for the tests alone
get_newer=     # set if QEMU 10 and Linux 6.12 are to be unpacked
lacking=()    # what this script can't install, and how to get it

# Pinned: docs/ describes their behaviour, and another version may behave differently.
readonly VIRTIOFSD=virtiofsd@1.14.0
readonly VHOST_DEVICE_VSOCK=vhost-device-vsock@0.3.0
readonly VHOST_DEVICE_RNG=vhost-device-rng@0.1.0
readonly VHOST_DEVICE_SCSI=vhost-device-scsi@0.1.0
readonly NEWER_SUITE=bookworm NEWER_POCKET=bookworm-backports

need_program() { command -v "$1" >/dev/null || packages+=("$2"); }
need_file() { [[ -e $1 ]] || packages+=("$2"); }
need_crate() { command -v "$1" >/dev/null || crates+=("$1"); }
# Cargo's own record names the version: not each program has --version.
need_tool_crate() {
    [[ -x $tools/bin/${1%@*} ]] && grep -qs "^\"${1%@*} ${1#*@} " "$tools/.crates.toml" || tool_crates+=("$1")
}
need_component() { "$2" --version >/dev/null 2>&1 || components+=("$1"); }

lack() { lacking+=("missing: $1. Get it with:" "  $2"); }

# A busybox that needs the host's libraries can't run in an initramfs without them.
need_static_busybox() {
    local busybox
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 || packages+=(busybox-static)
}

rust_version_required() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

need_rust() {
    local required found
    required=$(rust_version_required)
    if ! command -v cargo >/dev/null; then
        lack "Rust $required or later (Debian 12's own is 1.63; the command needs curl)" \
            "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt,clippy"
        return
    fi
    found=$(cargo --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n' "$required" "$found" | sort --version-sort | head -n 1) != "$required" ]]; then
        lack "Rust $required or later, found $found" "rustup update stable"
    fi
}

# The mirror that this host has its Debian 12 from; it has the backports, too.
newer_mirror() {
    # shellcheck disable=SC2016 # apt expands it
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Codename: $NEWER_SUITE" \
        2>/dev/null | head -n 1
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
        need_program fsck.erofs erofs-utils
        need_program tar2sqfs squashfs-tools-ng
        need_program python3 python3
        need_program buildah buildah
        need_program skopeo skopeo
        need_program umoci umoci
        need_program docker-registry docker-registry
        need_program htpasswd apache2-utils
        need_program openssl openssl
        need_crate cargo-nextest
        ;;
    backends)
        need_program qemu-storage-daemon qemu-system-common
        need_program ip iproute2
        need_program pkg-config pkg-config
        need_file /usr/include/cap-ng.h libcap-ng-dev
        need_file /usr/include/seccomp.h libseccomp-dev
        need_tool_crate "$VIRTIOFSD"
        need_tool_crate "$VHOST_DEVICE_VSOCK"
        need_tool_crate "$VHOST_DEVICE_RNG"
        need_tool_crate "$VHOST_DEVICE_SCSI"
        ;;
    images)
        need_program buildah buildah
        need_program crun crun
        need_program skopeo skopeo
        need_program umoci umoci
        need_program docker-registry docker-registry
        need_program htpasswd apache2-utils
        need_program openssl openssl
        need_program fsck.erofs erofs-utils
        need_program tar2sqfs squashfs-tools-ng
        need_program mmdebstrap mmdebstrap
        need_program mke2fs e2fsprogs
        need_program nft nftables
        need_program ip iproute2
        ;;
    newer)
        [[ -n $(newer_mirror) ]] || lack "an apt that knows Debian 12, for QEMU 10 and Linux 6.12 of $NEWER_POCKET" \
            "set KILN_TEST_QEMU10 and KILN_TEST_LINUX612 to a qemu-system-x86_64 and a kernel package of your own"
        [[ -x $newer/usr/bin/qemu-system-x86_64 && -e $newer/linux.deb ]] || get_newer=1
        ;;
    fuzz) need_program g++ g++ ;;
    coverage) [[ -x $(llvm_tool llvm-cov) ]] || components+=(llvm-tools) ;;
    *)
        echo "unknown group \`$1\`" >&2
        exit 2
        ;;
    esac
}

# Prints all that is missing at once, before anything is installed.
refuse_if_lacking() {
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

# The lists are downloaded only if they are missing or too old to install from.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt_install || { apt-get update --quiet && apt_install; }
}

install_crates() { cargo install --locked "${crates[@]}"; }

# Tests do not need them to be fast, and without optimisation they are built in half the time.
install_tool_crates() {
    local code=0
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$tools/build \
        cargo install --locked --debug --force --root "$tools" "${tool_crates[@]}" || code=$?
    rm -rf "$tools/build"
    return "$code"
}

# apt with its own lists and cache: it neither reads nor changes the system's, so it needs no root.
newer_apt() {
    local program=$1
    shift
    "$program" --quiet -o Dir::Etc::SourceList="$newer/apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$newer/apt/lists" -o Dir::Cache="$newer/apt/cache" -o Debug::NoLocking=1 "$@"
}

unpack_newer() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror kernel package
    mirror=$(newer_mirror)
    rm -rf "$newer"
    mkdir -p "$newer/apt/lists/partial" "$newer/apt/cache/archives/partial" "$newer/apt/packages"
    echo "deb [signed-by=$keyring] $mirror $NEWER_POCKET main" >"$newer/apt/sources.list"
    newer_apt apt-get update
    kernel=$(newer_apt apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-6\.12\.\)/\1/p')
    [[ -n $kernel ]] || { echo "$NEWER_POCKET has no Linux 6.12" >&2; return 1; }
    (cd "$newer/apt/packages" && newer_apt apt-get download \
        "$kernel" qemu-system-x86 qemu-system-common qemu-system-data seabios)
    for package in "$newer"/apt/packages/*.deb; do
        case ${package##*/} in
        linux-image-*) mv "$package" "$newer/linux.deb" ;;
        *) dpkg -x "$package" "$newer" ;;
        esac
    done
    rm -rf "$newer/apt"
    "$newer/usr/bin/qemu-system-x86_64" --version
}

# get WHAT COMMAND…: a step that installs WHAT; if it fails, the host lacks it.
get() { (step "install $1" "${@:2}") || exit "$EXIT_HOST_LACKS"; }

(($#)) || { echo "usage: scripts/install.sh GROUP…" >&2; exit 2; }
for group in "$@"; do collect "$group"; done
refuse_if_lacking
((!${#packages[@]})) || get "${packages[*]}" install_packages
((!${#components[@]})) || get "${components[*]}" rustup component add "${components[@]}"
((!${#crates[@]})) || get "${crates[*]}" install_crates
((!${#tool_crates[@]})) || get "${tool_crates[*]} (for the tests)" install_tool_crates
[[ -z $get_newer ]] || get "QEMU 10 and Linux 6.12 (for the tests)" unpack_newer
