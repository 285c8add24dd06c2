#!/usr/bin/env bash
# Builds the release kiln and the static guest agent, in a place at which `kiln` finds it.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build
step "kiln, release" cargo build --locked --release --package kiln-cli
step "guest agent, static" build_static_agent
echo "$target_dir/release/kiln"
echo "$static_agent"
