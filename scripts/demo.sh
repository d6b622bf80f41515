#!/bin/sh
# The whole method on real text: trains a small model with MSA from scratch and its dense twin on the same batches,
# evaluates both on held-out files, measures attention per new token as the context grows, continues a held-out file,
# and writes OUT/report.html. Usage: scripts/demo.sh MSA_BINARY OUT
set -eu
[ $# -eq 2 ] || { echo "usage: scripts/demo.sh MSA_BINARY OUT" >&2; exit 2; }
msa=$1
out=$2

# Both models get the same text, batches, initial weights and optimizer. About two and a half minutes each on 2 cores.
both="--layers 4 --hidden 192 --heads-q 4 --heads-kv 2 --head-dim 64 --intermediate 512
  --steps 400 --batch 4 --seqlen 2048 --lr 2e-3 --lr-warmup 40 --seed 1"
sparse="--dense-layers 1 --index-dim 64 --block-size 32 --topk 16 --warmup-steps 100 --recall-every 20"

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
run "$msa" eval --model "$out/msa" --max-bytes 400000 --json "$out/eval-msa.json" --selection "$out/selection.json"
run "$msa" eval --model "$out/dense" --max-bytes 400000 --json "$out/eval-dense.json"
run "$msa" bench decode --model "$out/msa" --json "$out/bench-decode.json"
run "$msa" generate --model "$out/msa" --held-out --prompt-bytes 600 --max-new-tokens 400 --temperature 0.7 --top-p 0.95 \
  --json "$out/generate.json"
run "$msa" report --run "$out" --output "$out/report.html" --summary
echo "$out/report.html, after $(($(date +%s) - started)) s"
