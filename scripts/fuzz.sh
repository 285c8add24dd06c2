#!/usr/bin/env bash
# Fuzzes each target of fuzz/ for its share of T seconds (default 60), from its seeds and what earlier runs found.
#
# The flags are those of cargo-fuzz, which also works here: `cargo +nightly fuzz run wire_decode`. They need no nightly
# toolchain: the code under test has no unsafe code, so the address sanitizer is not needed.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=${T:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "T must be a whole number of seconds, not \`$seconds\`" >&2; exit 2; }
scripts/install.sh build fuzz

mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml)
share=$((seconds / ${#targets[@]}))
((share)) || share=1

build_targets() {
    RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1" \
        CARGO_TARGET_DIR=$target_dir/fuzz \
        cargo build --locked --release --manifest-path fuzz/Cargo.toml --target "$GUEST_TARGET" --bins
}

# Seeds are in the repository and only read; new inputs go to the corpus, crashes to artifacts.
fuzz_target() {
    local corpus=fuzz/corpus/$1 artifacts=fuzz/artifacts/$1 seeds=fuzz/seeds/$1
    mkdir -p "$corpus" "$artifacts"
    local folders=("$corpus")
    [[ ! -d $seeds ]] || folders+=("$seeds")
    "$target_dir/fuzz/$GUEST_TARGET/release/$1" -max_total_time="$share" -timeout=5 -rss_limit_mb=1024 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="$artifacts/" "${folders[@]}"
}

step "fuzz targets" build_targets
for target in "${targets[@]}"; do step "fuzz $target, $share s" fuzz_target "$target"; done
