#!/bin/sh
# fuzz.sh BUILD SECONDS MSA: runs every fuzz target in BUILD, all at once, from its corpus there and the seeds in tests/fuzz,
# and beside them the program MSA on files that are nearly right (fuzz_files.py). Fails if one finds something.
set -eu
scripts=$(realpath "$(dirname "$0")")
seeds=$PWD/tests/fuzz/seeds
msa=$(realpath "$3")
cd "$1"
seconds=$2
targets="call model_config safetensors shard_index tokenizer"
failed=""
"$scripts/fuzz_files.py" "$msa" files --seconds "$seconds" >files.log 2>&1 &
pid_files=$!
for target in $targets; do
  mkdir -p "corpus/$target"
  [ ! -d "$seeds/$target" ] || cp -n "$seeds/$target"/* "corpus/$target"
  ./fuzz_$target -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 "corpus/$target" \
    >"$target.log" 2>&1 &
  eval "pid_$target=$!"
done
for target in $targets; do
  eval "wait \$pid_$target" || failed="$failed $target"
  grep -h -E 'stat::number_of_executed_units|ERROR|SUMMARY|Test unit written' "$target.log" | sed "s/^/$target: /"
done
wait "$pid_files" || failed="$failed files"
cat files.log
[ -z "$failed" ] || { echo "fuzz: found something:$failed" >&2; exit 1; }
