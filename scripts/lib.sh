# Shared by the scripts in this folder: paths, how steps are shown, how the binaries are built. Sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034 # the variables are used by the scripts that source this

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

[[ ":$PATH:" == *":$HOME/.cargo/bin:"* ]] || export PATH="$HOME/.cargo/bin:$PATH"

readonly EXIT_HOST_LACKS=69
readonly GUEST_TARGET=x86_64-unknown-linux-gnu

verbose=${VERBOSE:-}
target_dir=${CARGO_TARGET_DIR:-$root/target}
[[ $target_dir == /* ]] || target_dir=$root/$target_dir
export CARGO_TARGET_DIR=$target_dir

static_agent=$target_dir/$GUEST_TARGET/agent/kiln-agent
guest_tool=$target_dir/$GUEST_TARGET/debug/kiln-e2e-guest
tools=$target_dir/tools # programs that scripts/install.sh installs only for the tests
newer=$tools/newer      # a newer QEMU and kernel than Debian 12's, if they were installed
user_home=${KILN_HOME:-$([[ $(id -u) == 0 ]] && echo /var/lib/kiln || echo "$HOME/.local/share/kiln")}
test_home=$target_dir/kiln-home
newer_home=$target_dir/kiln-home-newer

# step TITLE COMMAND…: a success is one line; a failure is shown in full and ends the script.
step() {
    local title=$1 log started=$SECONDS code=0
    shift
    if [[ -n $verbose ]]; then
        printf '==> %s: %s\n' "$title" "$*"
        "$@" || exit $?
        return
    fi
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || code=$?
    if ((code == 0)); then
        printf 'ok    %s (%d s)\n' "$title" $((SECONDS - started))
    else
        printf 'FAIL  %s (%d s): %s\n' "$title" $((SECONDS - started)) "$*"
        cat "$log"
    fi
    rm -f "$log"
    ((code == 0)) || exit "$code"
}

# The agent for guests. It is linked statically, by a variable that only its own target sees, so that
# this build never invalidates builds for the host.
build_static_agent() {
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --profile agent --target "$GUEST_TARGET" --package kiln-agent
}

# What tests run in guests that have only busybox; static for the same reason.
build_guest_tool() {
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --target "$GUEST_TARGET" --package kiln-e2e-guest
}

# All programs and tests of the workspace at once: one set of features, so nothing is compiled twice.
build_tests() {
    cargo build --locked --workspace --bins --tests
}

# llvm_tool NAME: a tool of the same LLVM that rustc contains; Debian's are older and can't read its files.
llvm_tool() {
    printf '%s/../bin/%s\n' "$(rustc --print target-libdir)" "$1"
}

# Copies the downloads of another $KILN_HOME into this one, so that the kernel package is downloaded once.
share_downloads() {
    local from=$1/cache to=$2/cache
    [[ -d $from ]] || return 0
    mkdir -p "$to"
    cp --archive --link --no-clobber "$from/." "$to/" 2>/dev/null || cp --archive --no-clobber "$from/." "$to/"
}

# build_test_image KILN: the one image that all tests share, in its own $KILN_HOME.
build_test_image() {
    share_downloads "$user_home" "$test_home"
    KILN_HOME=$test_home "$1" image build mini --cached --agent "$static_agent"
}

# build_newer_image KILN PACKAGE: the same image with another kernel, in another home.
build_newer_image() {
    KILN_HOME=$newer_home "$1" image build mini --agent "$static_agent" --kernel-deb "$2"
}

# The environment of the tests: see CONTRIBUTING.md.
export_test_environment() {
    export KILN_BIN=$1 KILN_AGENT_BIN=$2
    export KILN_HOME=$test_home
    export KILN_TEST_GUEST_TOOL=$guest_tool
    export KILN_TEST_VIRTIOFSD=${KILN_TEST_VIRTIOFSD:-$tools/bin/virtiofsd}
    export KILN_TEST_VHOST_DEVICE_VSOCK=${KILN_TEST_VHOST_DEVICE_VSOCK:-$tools/bin/vhost-device-vsock}
    export KILN_TEST_VHOST_DEVICE_RNG=${KILN_TEST_VHOST_DEVICE_RNG:-$tools/bin/vhost-device-rng}
    export KILN_TEST_VHOST_DEVICE_SCSI=${KILN_TEST_VHOST_DEVICE_SCSI:-$tools/bin/vhost-device-scsi}
}

# What nextest prints: failures in full, successes as a count.
nextest_output=(--cargo-quiet --show-progress none --status-level fail --final-status-level fail)
[[ -z $verbose ]] || nextest_output=(--status-level all --success-output immediate)
