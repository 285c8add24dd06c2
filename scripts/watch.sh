#!/usr/bin/env bash
# Runs test-quick now and after each change of a source file. It polls with one stat per file and second, which needs no other program.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

sources() { find Cargo.toml Cargo.lock .config crates e2e xtask -type f -printf '%p %T@\n' | sort; }

while true; do
    seen=$(sources)
    scripts/test-quick.sh || true
    echo "waiting for a change (Ctrl-C to end)"
    while [[ $(sources) == "$seen" ]]; do sleep 1; done
done
