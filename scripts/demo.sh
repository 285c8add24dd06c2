#!/usr/bin/env bash
# From a fresh checkout to a command in a real VM.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build run
step "kiln, release" cargo build --locked --release --package kiln-cli
step "guest agent, static" build_static_agent
kiln=$target_dir/release/kiln
export KILN_HOME=$user_home
share_downloads "$test_home" "$user_home"
step "image mini" "$kiln" image build mini --agent "$static_agent"

# quoted WORD…: the words as typed in a shell.
quoted() {
    local word
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]]; then printf ' %s' "$word"; else printf ' %s' "${word@Q}"; fi
    done
}

# Shows a command, its output and its time from start to end, boot included.
show() {
    local started ended code=0
    printf '\n$ kiln%s\n' "$(quoted "$@")"
    started=$(date +%s%3N)
    "$kiln" "$@" || code=$?
    ended=$(date +%s%3N)
    printf '  [exit code %d, %d.%03d s]\n' "$code" $(((ended - started) / 1000)) $(((ended - started) % 1000))
    return "$code"
}

show run -- uname -a
# shellcheck disable=SC2016 # the guest's shell expands it
show run -e NAME=kiln -- sh -c 'echo "hello from $NAME, pid $$, $(nproc) CPU"'
show run -i -- sha256sum <LICENSE
show run -- sh -c 'exit 3' || true

printf '\nthis host: %s; try: %s run -t -- sh\n' "$(uname -sr)" "$kiln"
