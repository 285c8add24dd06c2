#!/usr/bin/env bash
# The agent's protocol suite with every agent under the address sanitizer: a bad access or a leak fails the tier.
#
# The sanitizer's runtime is part of the stable toolchain, its flag is not: RUSTC_BOOTSTRAP enables it for this one build.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build test
step "kiln and the tests" build_tests

build_sanitized_agent() {
    RUSTC_BOOTSTRAP=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-Zsanitizer=address" \
        CARGO_TARGET_DIR=$target_dir/sanitize \
        cargo build --locked --target "$GUEST_TARGET" --package kiln-agent
}
step "guest agent, sanitized" build_sanitized_agent

wrapper=$target_dir/sanitize/kiln-agent
logs=$target_dir/sanitize/logs
rm -rf "$logs"
mkdir -p "$logs"
# Freed memory is kept for a while to catch its use; only a little, because tests bound the agent's growth.
cat >"$wrapper" <<END
#!/bin/sh
ASAN_OPTIONS=log_path=$logs/agent:exitcode=99:detect_leaks=1:quarantine_size_mb=4:thread_local_quarantine_size_kb=64 \\
    exec $target_dir/sanitize/$GUEST_TARGET/debug/kiln-agent "\$@"
END
chmod +x "$wrapper"

export_test_environment "$target_dir/debug/kiln" "$wrapper"
code=0
cargo nextest run --locked --profile sanitize --package kiln-e2e "${nextest_output[@]}" </dev/null || code=$?

# A test need not check the agent's exit code, so the logs decide.
found=$(find "$logs" -type f | wc -l)
find "$logs" -type f -exec cat {} +
echo "address sanitizer: $found agents with errors"
((code == 0 && found == 0))
