#!/bin/sh
# pkg_config.sh CC LIBDIR SOURCE OUTPUT: compiles (with CFLAGS) and runs a C program with what pkg-config says, with the shared
# library and with the static one.
set -eu
cc=$1 libdir=$2 source=$3 output=$4
export PKG_CONFIG_PATH="$libdir/pkgconfig"

# shellcheck disable=SC2046,SC2086  # lists of words
"$cc" $CFLAGS "$source" $(pkg-config --cflags --libs openmsa) -o "$output-shared"
LD_LIBRARY_PATH="$libdir" "$output-shared"

# shellcheck disable=SC2046,SC2086
"$cc" $CFLAGS "$source" $(pkg-config --cflags openmsa) "$libdir/libopenmsa.a" \
  $(pkg-config --static --libs openmsa | sed 's/-lopenmsa//') -o "$output-static"
"$output-static"
