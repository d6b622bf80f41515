#!/usr/bin/env python3
"""Writes a repository for Hugging Face's `kernels` from the sources of this tree, with one build variant, that of this
machine:

    scripts/hub_kernel.py FOLDER            # then, with PyTorch and kernels: kernels.get_local_kernel(Path(FOLDER))

FOLDER gets build.toml, torch-ext, and build/VARIANT/ with the Python package, its library and metadata.json. The variant is
torch-stable-abi211-cpu-x86_64-linux, or, where nvcc is found, torch-stable-abi211-cu130-x86_64-linux (of nvcc's version),
which runs on CPUs and Hopper GPUs. More variants, from other machines, go beside it.

The library needs glibc 2.28 and nothing else: oneTBB, Highway and libstdc++ are linked statically (hub/CMakeLists.txt).
Archives of the first two are in no package of Debian, so they are compiled here, from Debian's sources of the versions whose
headers are installed, once for a build folder. --archives names a folder that has them already."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Of the Python package, what needs more than PyTorch.
LEFT_OUT = ("bench", "integrations", "py.typed")
#: The oldest PyTorch that the variants were tested with.
TORCH = "2.11"
#: Older versions of `kernels` import this from a folder of the kernel's name.
COMPATIBILITY = '''"""The kernel, for versions of `kernels` that look for it here."""

import importlib.util
import pathlib
import sys

_folder = pathlib.Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("{id}", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
_kernel = sys.modules.get("{id}")
if _kernel is None:
    _kernel = sys.modules["{id}"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_kernel)
globals().update((name, getattr(_kernel, name)) for name in (*_kernel.__all__, "__all__"))
'''


def run(*command, **options) -> str:
    """What a command prints. Where it fails, the program ends with all of that."""
    words = [str(part) for part in command]
    done = subprocess.run(words, text=True, capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def debian_source(package: str, folder: Path) -> Path:
    """The unpacked source of the installed version of a package. Only Debian's own sources of packages are asked."""
    source, version = run("dpkg-query", "--show", "--showformat=${source:Package} ${source:Version}", package).split()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert codename is not None, "expected a release of Debian or Ubuntu"
    mirror = re.search(r"https?://\S+/(?:debian|ubuntu)\b", run("apt-cache", "policy", package))
    assert mirror is not None, f"expected {package} from an archive of Debian or Ubuntu"
    components = "main universe" if mirror.group().endswith("ubuntu") else "main"
    suites = (codename[1], f"{codename[1]}-updates")
    sources.write_text("".join(f"deb-src {mirror.group()} {suite} {components}\n" for suite in suites))
    options = [f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=-", f"-oDir::State::Lists={folder}/lists"]
    run("apt-get", *options, "--quiet=2", "update")
    run("apt-get", *options, "--quiet=2", "--download-only", "source", f"{source}={version}", cwd=folder)
    (archive,) = folder.glob(f"{source}_*.orig.tar.*")
    (unpacked := folder / source).mkdir()
    run("tar", "--extract", "--strip-components=1", f"--directory={unpacked}", f"--file={archive}")
    return unpacked


def build_archives(folder: Path) -> Path:
    """libtbb.a and libhwy.a of the versions whose headers are installed."""
    if all((folder / f"lib{name}.a").exists() for name in ("tbb", "hwy")):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "tbb": ("libtbb-dev", "-DTBB_TEST=OFF", "-DTBB_STRICT=OFF", "-DTBBMALLOC_BUILD=OFF"),
        "hwy": ("libhwy-dev", "-DBUILD_TESTING=OFF", "-DHWY_ENABLE_CONTRIB=OFF", "-DHWY_ENABLE_EXAMPLES=OFF"),
    }
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name, (package, *defines) in options.items():
            source, build = debian_source(package, Path(work, "source", name)), Path(work, name)
            defines += ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DCMAKE_POSITION_INDEPENDENT_CODE=ON"]
            run("cmake", "-G", "Ninja", "-Wno-dev", "-S", source, "-B", build, *defines)
            run("cmake", "--build", build, "--target", name)
            (archive,) = build.rglob(f"lib{name}.a")
            shutil.copy(archive, folder)
    return folder


def build_library(build: Path, archives: Path, options: list[str]) -> tuple[Path, str]:
    """The library, and the CUDA version that it was compiled with, "13.0"; "" without CUDA."""
    defines = ["-DCMAKE_BUILD_TYPE=Release", "-DOPENMSA_BUILD_HUB=ON", f"-DOPENMSA_HUB_ARCHIVES={archives.resolve()}"]
    defines += ["-DOPENMSA_BUILD_TOOLS=OFF", "-DOPENMSA_BUILD_TESTS=OFF"]
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, *defines, *options)
    run("cmake", "--build", build, "--target", "openmsa_hub")
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE))
    if cache["OPENMSA_CUDA"] not in ("ON", "1", "TRUE"):
        return build / "hub/openmsa_hub.abi3.so", ""
    version = re.search(r"release (\d+\.\d+)", run(cache["CMAKE_CUDA_COMPILER"], "--version"))
    assert version is not None, "expected nvcc to name its release"
    return build / "hub/openmsa_hub.abi3.so", version[1]


def write_variant(folder: Path, library: Path, backend: str) -> str:
    """Fills the folder of a variant and returns the id: the namespace of its operators and its name as a module, which no
    other content has."""
    glue = ROOT / "hub/torch-ext/openmsa"
    package = folder / "_package"
    ignored = shutil.ignore_patterns("__pycache__", *LEFT_OUT)
    shutil.copytree(ROOT / "python/openmsa", package, ignore=ignored)
    shutil.copy(glue / "_openmsa.py", package)
    shutil.copy(glue / "__init__.py", folder)
    library = Path(shutil.copy(library, folder))
    run("strip", "--discard-all", library)  # kernel-abi-check reads the symbols that this leaves
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    name = f"_openmsa_{backend}_{digest.hexdigest()[:10]}"
    library.rename(folder / f"{name}.abi3.so")
    (package / "_namespace.py").write_text(
        f'"""The namespace of the operators in torch.ops."""\n\nNAMESPACE = "{name}"\n'
    )
    (folder / "openmsa").mkdir()
    (folder / "openmsa/__init__.py").write_text(COMPATIBILITY.format(id=name))
    return name


def write_metadata(folder: Path, name: str, backend: dict) -> None:
    """metadata.json, with the digest of every other file."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        number = hashlib.sha256(path.read_bytes()).digest()
        files[str(path.relative_to(folder))] = base64.b64encode(number).decode()
    metadata = {
        "name": "openmsa",
        "id": name,
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": files},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the repository, which is made or gets a variant more")
    parser.add_argument("--build", type=Path, default=ROOT / "build-hub", help="build folder (build-hub)")
    parser.add_argument("--archives", type=Path, help="folder of libtbb.a and libhwy.a (made in the build folder)")
    parser.add_argument(
        "--define", action="append", default=[], metavar="NAME=VALUE", help="for CMake: OPENMSA_CUDA=OFF"
    )
    options = parser.parse_args()

    archives = options.archives or build_archives((options.build / "archives").resolve())
    library, cuda = build_library(options.build, archives, [f"-D{define}" for define in options.define])
    backend = {"type": "cuda", "archs": ["9.0a"]} if cuda else {"type": "cpu"}
    variant = f"torch-stable-abi{TORCH.replace('.', '')}-{'cu' + cuda.replace('.', '') if cuda else 'cpu'}-x86_64-linux"
    folder = options.folder / "build" / variant
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_metadata(folder, write_variant(folder, library, backend["type"]), backend)
    for part in (ROOT / "hub/build.toml", ROOT / "LICENSE"):
        shutil.copy(part, options.folder)
    shutil.copytree(ROOT / "hub/torch-ext", options.folder / "torch-ext", dirs_exist_ok=True)
    print(folder)


if __name__ == "__main__":
    main()
