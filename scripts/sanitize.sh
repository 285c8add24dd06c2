#!/usr/bin/env bash
# The agent's protocol suite with every agent under valgrind: a bad access or a definite leak fails the test it is in.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

scripts/install.sh build test sanitize
step "kiln and the tests" build_tests

wrapper=$target_dir/kiln-agent-under-valgrind
logs=$target_dir/valgrind
rm -rf "$logs"
mkdir -p "$logs"
cat >"$wrapper" <<END
#!/bin/sh
exec valgrind --quiet --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \\
    --log-file='$logs/%p.log' '$target_dir/debug/kiln-agent' "\$@"
END
chmod +x "$wrapper"

export_test_environment "$target_dir/debug/kiln" "$wrapper"
code=0
cargo nextest run --locked --profile sanitize --package kiln-e2e "${nextest_voice[@]}" </dev/null || code=$?

# A test may not look at the agent's exit code, so the logs have the last word.
find "$logs" -name '*.log' -size +0 -exec cat {} +
found=$(find "$logs" -name '*.log' -size +0 | wc -l)
agents=$(find "$logs" -name '*.log' | wc -l)
((agents)) || { echo "no agent ran under valgrind" >&2; exit 1; }
echo "valgrind: $agents agents, $found with errors"
((code == 0 && found == 0))
