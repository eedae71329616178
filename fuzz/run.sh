#!/usr/bin/env bash
# Runs every fuzz target for SECONDS each (default 60): fuzz/run.sh [SECONDS] [TARGET…]
# Starts from seeds/TARGET, keeps what it finds in corpus/TARGET, and a crashing input in artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked
# libFuzzer's instrumentation is an unstable compiler flag; this lets the stable compiler take it.
export RUSTC_BOOTSTRAP=1
if [ $# -eq 0 ]; then
  # Not mapfile: macOS has bash 3.2. And so a list that fails ends this.
  targets=($(cargo fuzz list))
else
  targets=("$@")
fi
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "seeds/$target"
  echo "fuzz: $target for $seconds s"
  cargo fuzz run "$target" "corpus/$target" "seeds/$target" -- -max_total_time="$seconds" -timeout=10 -max_len=65536 -print_final_stats=1
done
