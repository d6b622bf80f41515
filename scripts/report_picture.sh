#!/bin/sh
# A picture of the top of a demo's report, for docs/images/report.png: needs chromium and pngquant.
# Usage: scripts/report_picture.sh demo-out/report.html docs/images/report.png [HEIGHT]
set -eu
[ $# -ge 2 ] || { echo "usage: scripts/report_picture.sh REPORT.html OUT.png [HEIGHT]" >&2; exit 2; }
report=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The charts draw themselves with an animation: the time budget lets it end.
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=8000 \
  --window-size="1180,${3:-2250}" --screenshot="$folder/report.png" "file://$report" 2>/dev/null
pngquant --force --speed 1 --output "$2" 64 "$folder/report.png"
