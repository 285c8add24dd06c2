#!/usr/bin/env bash
# Units, properties and the protocol suite against the agent as cargo built it for the tests: no VM, no image, no root.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build test

step "kiln and the tests" build_tests
export_test_environment "$target_dir/debug/kiln" "$target_dir/debug/kiln-agent"
cargo nextest run --locked --workspace --profile quick "${nextest_output[@]}" </dev/null
