#!/usr/bin/env bash
# Every test there is. Everything is built once; what passes is a line, what fails is shown whole.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build run test

step "format" cargo fmt --all --check
step "shell scripts" shellcheck --severity=warning --external-sources --source-path=SCRIPTDIR scripts/*.sh .ci/run
step "clippy" cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
step "repository rules" cargo xtask tidy
step "guest agent, static" build_static_agent
step "kiln and the tests" build_tests
step "image mini" build_test_image "$target_dir/debug/kiln"

export_test_environment "$target_dir/debug/kiln" "$static_agent"
cargo nextest run --locked --workspace "${nextest_voice[@]}" </dev/null
step "doctests" cargo test --locked --workspace --doc
echo "all tests passed in $SECONDS s"
