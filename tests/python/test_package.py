"""The package as it is installed."""

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
