#!/bin/sh
# Installs what the build needs and this machine lacks, and any packages named as arguments, through apt (Debian 12,
# Ubuntu 22.04 and later).
set -eu

packages="
  build-essential cmake ninja-build
  libcli11-dev libgmock-dev libgtest-dev libhwy-dev libjs-chart.js libopenblas-dev libpcre2-dev libtbb-dev libutf8proc-dev nlohmann-json3-dev pkg-config python3 $*
"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_deps: this is no Debian or Ubuntu; install the counterparts of these, then run cmake: $packages" >&2
  exit 1
fi

missing=""
for package in $packages; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
    missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install_deps: run this as root or install sudo; missing:$missing" >&2; exit 1; }
  as_root="sudo"
fi
echo "installing:$missing"
$as_root apt-get update -q
# shellcheck disable=SC2086  # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
