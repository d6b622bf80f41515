#!/bin/sh
# exported_symbols.sh NM LIBRARY HEADER: the shared library exports the functions of the header and nothing else.
set -eu
nm=$1 library=$2 header=$3
exported=$("$nm" --dynamic --defined-only --format=posix "$library" | awk '$2 != "A" { sub("@.*", "", $1); print $1 }' | sort)
declared=$(grep -o '^OPENMSA_API.*' "$header" | grep -o 'openmsa_[a-z0-9_]*(' | tr -d '(' | sort)
if [ "$exported" != "$declared" ]; then
  printf 'exported:\n%s\ndeclared:\n%s\n' "$exported" "$declared" >&2
  exit 1
fi
