#!/usr/bin/env bash
# Reports which lines the units, properties and the protocol suite reach; fails if wire, detect or agent are below the floor.
#
# Counters are in files mapped into the programs (`%c`), so an agent that a test kills still counts.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build test coverage

export CARGO_TARGET_DIR=$target_dir/coverage # other flags, so its own folder: the usual builds stay valid
profiles=$CARGO_TARGET_DIR/profiles
report=$CARGO_TARGET_DIR/report
rm -rf "$profiles" "$report"
mkdir -p "$profiles" "$report"

export RUSTFLAGS="-C instrument-coverage -C llvm-args=-runtime-counter-relocation"
export LLVM_PROFILE_FILE="$CARGO_TARGET_DIR/build-scripts.profraw"
step "kiln and the tests, instrumented" build_tests

export LLVM_PROFILE_FILE="$profiles/%m%c.profraw"
export_test_environment "$CARGO_TARGET_DIR/debug/kiln" "$CARGO_TARGET_DIR/debug/kiln-agent"
tests=0
cargo nextest run --locked --workspace --profile quick "${nextest_output[@]}" </dev/null || tests=$?

programs() {
    cargo build --locked --workspace --bins --tests --message-format json 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
}
mapfile -t objects < <(LLVM_PROFILE_FILE=/dev/null programs | sed 's/^/--object=/')

merge() { "$(llvm_tool llvm-profdata)" merge --sparse --failure-mode=all --output "$report/merged.profdata" "$profiles"; }
export_lines() {
    "$(llvm_tool llvm-cov)" export --format=lcov --instr-profile "$report/merged.profdata" "${objects[@]}" \
        --sources "$root/crates" >"$report/lcov.info"
}
render() {
    "$(llvm_tool llvm-cov)" show --format=html --output-dir "$report" --instr-profile "$report/merged.profdata" \
        "${objects[@]}" --sources "$root/crates"
}
step "merge profiles" merge
step "lines" export_lines
step "pages in $report/index.html" render

unset RUSTFLAGS LLVM_PROFILE_FILE
CARGO_TARGET_DIR=$target_dir cargo xtask coverage "$report/lcov.info" --floor 80 wire detect agent
exit "$tests"
