#!/usr/bin/env bash
# Runs all tests. Everything is built once; a success is one line, a failure is shown in full.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# with_newer WHAT VARIABLE=VALUE…: the tests of vhost-user in real VMs again, with another QEMU or kernel.
with_newer() {
    echo "vhost-user again, with $1"
    env "${@:2}" cargo nextest run --locked --package kiln-e2e --test run --filterset 'test(/(^|::)vm_vhost/)' \
        "${nextest_output[@]}" </dev/null
}

# A network card on a TAP device, if this user can make one in its own network namespace. The engine's tests make such
# namespaces themselves, so they must run as root, at least in a user namespace.
test_with_tap() {
    if unshare --map-root-user --net ip tuntap add tap0 mode tap 2>/dev/null; then
        local as_root=()
        [[ $EUID == 0 ]] || as_root=(unshare --map-root-user)
        "${as_root[@]}" cargo nextest run --locked --package kiln-e2e --package kiln-engine --test run --test vm_network \
            --run-ignored only --filterset 'test(/(^|::)vm_.*_tap_/)' "${nextest_output[@]}" </dev/null
    else
        echo "skip  a network card on a TAP device: no /dev/net/tun, or no network namespace for this user"
    fi
}

# Images of root filesystems, mounted by this host's kernel.
test_with_loop() {
    if [[ $EUID == 0 ]] && losetup --find >/dev/null 2>&1 && { modprobe erofs 2>/dev/null || grep -qw erofs /proc/filesystems; }; then
        cargo nextest run --locked --package kiln-rootfs --test erofs --run-ignored only \
            --filterset 'test(/^mounted::/)' "${nextest_output[@]}" </dev/null
    else
        echo "skip  images mounted by the host: not root, no loop device, or no EROFS in this kernel"
    fi
}

# Layers with devices, and with files of other owners, which tar unpacks.
test_as_root() {
    if [[ $EUID == 0 ]]; then
        cargo nextest run --locked --package kiln-rootfs --test layers --run-ignored only \
            --filterset 'test(/(^|::)as_root_/)' "${nextest_output[@]}" </dev/null
    else
        echo "skip  layers compared with what tar unpacks: not root"
    fi
}

# Tests that make namespaces, mounts and tables of rules, so they need root itself: networks of VMs, and a full disk.
test_namespaces() {
    local makes='ip tuntap add tap0 mode tap vnet_hdr && nft list tables'
    if [[ $EUID == 0 ]] && unshare --net --mount sh -c "$makes" >/dev/null 2>&1; then
        cargo nextest run --locked --package kiln-net --package kiln-e2e --run-ignored only \
            --filterset '(package(kiln-net) and not test(/own_a_slot|join_a_lab/)) or test(/vm_(nat|lab|volumes)::as_root_/)' \
            "${nextest_output[@]}" </dev/null
    else
        echo "skip  networks of VMs and a full disk: they need root, /dev/net/tun and nft"
    fi
}

# QEMU 10 and Linux 6.12, each if it is present.
test_with_newer() {
    local qemu=${KILN_TEST_QEMU10:-$newer/usr/bin/qemu-system-x86_64} linux=${KILN_TEST_LINUX612:-$newer/linux.deb}
    if [[ -x $qemu ]]; then
        with_newer "QEMU 10" KILN_QEMU="$qemu"
    else
        echo "skip  vhost-user with QEMU 10: not at $qemu (scripts/install.sh newer, or set KILN_TEST_QEMU10)"
    fi
    if [[ -e $linux ]]; then
        step "image mini with Linux 6.12" build_newer_image "$target_dir/debug/kiln" "$linux"
        with_newer "Linux 6.12" KILN_HOME="$newer_home"
        echo "kernels again, with Linux 6.12"
        env KILN_TEST_LINUX612="$linux" cargo nextest run --locked --package kiln-e2e --test run --run-ignored only \
            --filterset 'test(/(^|::)linux_612_/)' "${nextest_output[@]}" </dev/null
        [[ ! -x $qemu ]] || with_newer "QEMU 10 and Linux 6.12" KILN_QEMU="$qemu" KILN_HOME="$newer_home"
    else
        echo "skip  vhost-user and kernels with Linux 6.12: no package at $linux (scripts/install.sh newer, or set KILN_TEST_LINUX612)"
    fi
}

scripts/install.sh build run test backends images
# If Debian's backports are not available, the tests that need them are skipped with a line.
scripts/install.sh newer || echo "no QEMU 10 and Linux 6.12 from Debian's backports"

step "format" cargo fmt --all --check
step "shell scripts" shellcheck --severity=warning --external-sources --source-path=SCRIPTDIR scripts/*.sh .ci/run
step "clippy" cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
# Tests turn features on, so code that only they use looks used above. This is the program that users get.
step "clippy, without the features of tests" cargo clippy --locked --package kiln-cli --package kiln-agent --quiet -- -D warnings
step "repository rules" cargo xtask tidy
step "guest agent, static" build_static_agent
step "test tool for guests, static" build_guest_tool
step "kiln and the tests" build_tests
step "image mini" build_test_image "$target_dir/debug/kiln"

export_test_environment "$target_dir/debug/kiln" "$static_agent"
cargo nextest run --locked --workspace "${nextest_output[@]}" </dev/null
test_with_tap
test_with_loop
test_as_root
test_namespaces
test_with_newer
step "doctests" cargo test --locked --workspace --doc
echo "all tests passed in $SECONDS s"
