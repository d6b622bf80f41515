#!/bin/sh
# The whole method on real text: trains a small model with MSA from scratch and its dense twin on the same batches,
# evaluates both on held-out files, measures attention per new token as the context grows, continues a held-out file,
# and writes OUT/report.html. Usage: scripts/demo.sh MSA_BINARY OUT
set -eu
[ $# -eq 2 ] || { echo "usage: scripts/demo.sh MSA_BINARY OUT" >&2; exit 2; }
msa=$1
out=$2

# Both models get the same text, batches, initial weights and optimizer. About two minutes each on 2 cores. A step is one
# long window and 32 short ones: long ones alone are too alike to learn much from in so few steps.
both="--layers 4 --hidden 128 --heads-q 4 --heads-kv 2 --head-dim 64 --intermediate 384
  --steps 250 --batch 1 --seqlen 2048 --short-batch 32 --short-seqlen 128 --lr 4e-3 --min-lr 2e-4 --lr-warmup 20 --seed 1"
sparse="--dense-layers 1 --index-dim 64 --block-size 32 --topk 8 --warmup-steps 60 --recall-every 10"

if [ -e "$out" ] && [ ! -e "$out/commands.txt" ]; then
  echo "demo.sh: $out exists and is no earlier demo; remove it or name another folder" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
started=$(date +%s)

# Runs a command and notes it for the report.
run() {
  echo "$*" >>"$out/commands.txt"
  echo "==> $*"
  "$@"
}

run "$msa" info --json "$out/info.json"
# shellcheck disable=SC2086  # lists of options
run "$msa" train --output "$out/msa" --attention msa $both $sparse
# shellcheck disable=SC2086
run "$msa" train --output "$out/dense" --attention dense $both
run "$msa" eval --model "$out/msa" --max-bytes 262144 --json "$out/eval-msa.json" --selection "$out/selection.json"
run "$msa" eval --model "$out/dense" --max-bytes 262144 --json "$out/eval-dense.json"
run "$msa" bench decode --model "$out/msa" --json "$out/bench-decode.json"
run "$msa" generate --model "$out/msa" --held-out --prompt-bytes 600 --max-new-tokens 400 --temperature 0.7 --top-p 0.95 \
  --json "$out/generate.json"
run "$msa" report --run "$out" --output "$out/report.html" --summary
echo "$out/report.html, after $(($(date +%s) - started)) s"
