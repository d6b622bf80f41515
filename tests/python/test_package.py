"""The package as it is installed."""

import importlib.metadata
import re
from pathlib import Path

import openmsa
import pytest

FOLDER = Path(openmsa.__file__).parent


def test_a_wheel_brings_its_libraries():
    """Those that are loaded are its own, not the machine's."""
    if not (FOLDER / "libopenmsa.so.0").exists():
        pytest.skip("not installed from a wheel")
    loaded = Path("/proc/self/maps").read_text().splitlines()
    for name in ("libopenmsa.so.0", "libtbb.so.12", "libhwy.so.1"):
        assert {line.split()[-1] for line in loaded if name in line} == {str(FOLDER / name)}


def test_types_are_shipped():
    assert (FOLDER / "py.typed").exists()
    if (FOLDER / "libopenmsa.so.0").exists():
        assert "class Plan" in (FOLDER / "_openmsa.pyi").read_text()


def test_version():
    assert openmsa.__version__.count(".") == 2
    assert openmsa.cpu_features()
    assert openmsa.cuda_device()


@pytest.fixture
def metadata():
    try:
        return importlib.metadata.metadata("openmsa")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("imported from a build folder")


def test_licence_and_links(metadata):
    """The licence by its name, its text as a file of its own, and where to read on."""
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License"] is None
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "Method, https://arxiv.org/abs/2606.13392" in metadata.get_all("Project-URL", [])


def test_extras_pin_nothing(metadata):
    """Versions have lower bounds alone, so that openmsa is installed beside what is there; register() refuses newer versions
    of transformers, so pip looks for one that it takes."""
    extras = [re.split("; *extra *== *", required) for required in metadata.get_all("Requires-Dist")]
    torch = [package for package, *extra in extras if extra and extra[0].strip("\"'") == "torch"]
    assert [re.match(r"\w+", package).group() for package in torch] == ["torch"]
    for package, *_ in extras:
        expected = r">=[\d.]+,<[\d.]+|<[\d.]+,>=[\d.]+" if package.startswith("transformers") else r">=[\d.]+"
        assert re.fullmatch(rf"\w+({expected})", package.replace(" ", "")), package
