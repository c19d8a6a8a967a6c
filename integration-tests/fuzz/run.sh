#!/usr/bin/env bash
# Fuzzes each target for a while, guided by coverage (libFuzzer), from what earlier runs have found worth keeping. Fails
# at the first input that breaks something, says where it is, and how to run it again.
set -euo pipefail

usage="usage: run.sh SECONDS [TARGET...]    fuzz each of these targets, or all, for so long
       run.sh TARGET FILE           run one input again"
[[ $# -ge 1 ]] || { echo "$usage" >&2; exit 2; }

cd "$(dirname "$0")/../.."
work=$PWD/target/fuzz
triple=x86_64-unknown-linux-gnu
limits=(-max_len=4096 -timeout=10 -rss_limit_mb=2048)

# What libFuzzer wants to know of the code; and overflows are found too. A target of its own: what runs while building is
# not instrumented.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1"
CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
  CARGO_PROFILE_RELEASE_LTO=off RUSTFLAGS=$coverage \
  cargo build --quiet --release --locked --target $triple --target-dir "$work" -p headstart-fuzz --features libfuzzer

run() { "$work/$triple/release/$1" "${limits[@]}" "${@:2}"; }

if [[ $# -eq 2 && -f $2 ]]; then
  run "$1" "$2"
  exit
fi
seconds=$1
shift
[[ $# -gt 0 ]] || set -- wire server client records frame configuration
for target; do
  corpus=$work/corpus/$target
  mkdir -p "$corpus" "$work/found"
  log=$work/$target.log
  if ! run "$target" -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$work/found/$target-" \
    "$corpus" "integration-tests/fuzz/seeds/$target" >"$log" 2>&1; then
    tail -n 40 "$log"
    echo "FAILED: $target; again with: bash integration-tests/fuzz/run.sh $target FILE"
    exit 1
  fi
  edges=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  printf '%-14s %9s inputs in %s s, %5s edges reached\n' "$target" "$runs" "$seconds" "$edges"
done
