#!/usr/bin/env bash
# Measures everything that SPECIFICATION.md promises; the raw samples go to docs/benchmarks/.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build run images
step "kiln, release" cargo build --locked --release --package kiln-cli
step "guest agent, static" build_static_agent
step "image mini" build_test_image "$target_dir/release/kiln"

mkdir -p docs/benchmarks
KILN_HOME=$test_home KILN_AGENT=$static_agent \
    "$target_dir/release/kiln" bench --out "docs/benchmarks/$(date -u +%Y-%m-%d).json"
cargo bench --locked --package kiln-wire --bench decode
cargo bench --locked --package kiln-vdev --bench vhost_frontend
