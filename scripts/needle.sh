#!/bin/sh
# The model of examples/needle.py: learns to find a fact by its key, first within a hundred bytes, then farther and farther
# back, dense while the index branch learns, then sparse. Usage: scripts/needle.sh MSA_BINARY OUT
set -eu
[ $# -eq 2 ] || { echo "usage: scripts/needle.sh MSA_BINARY OUT" >&2; exit 2; }
