#!/usr/bin/env bash
# Long campaigns in real VMs: the tests whose names start with `soak_`.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build run test
step "guest agent, static" build_static_agent
step "kiln and the tests" build_tests
step "image mini" build_test_image "$target_dir/debug/kiln"

export_test_environment "$target_dir/debug/kiln" "$static_agent"
cargo nextest run --locked --workspace --profile soak "${nextest_output[@]}" </dev/null
