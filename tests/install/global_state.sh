#!/bin/sh
# global_state.sh NM ARCHIVE: the library has no memory of its own that is written after it has been filled once, on first
# use; tests alone write chosen()::ops again. What belongs to a thread (.tbss) is not shared; DW.ref is how the compiler
# finds handlers of exceptions.
set -eu
nm=$1 archive=$2
filled_once='openmsa::cpu::(anonymous namespace)::chosen()::ops
openmsa::cpu::(anonymous namespace)::owner
openmsa::cpu::features()::names
openmsa::cpu::fetches_past_first_level()::bytes
openmsa::cpu::tile_ops()::ops
openmsa::cpu::tile_pair_ops()::is_supported
openmsa::cpu::tile_pair_ops()::ops
openmsa::cpu::vector_pair_ops()::is_supported
openmsa_cuda_device::text'
found=$("$nm" --demangle --format=sysv "$archive" |
  awk -F'|' '$7 ~ /^ *\.(data|bss)/ && $7 !~ /\.data\.rel\.ro/ { sub(/ +$/, "", $1); print $1 }' |
  grep -v -e '^guard variable for ' -e '^DW\.ref\.' | sort)
if [ "$found" != "$filled_once" ]; then
  printf 'writable:\n%s\nexpected, each filled once:\n%s\n' "$found" "$filled_once" >&2
  exit 1
fi
