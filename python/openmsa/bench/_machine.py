"""What the figures were taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import openmsa

_PACKAGES = ("numpy", "torch", "triton", "flash-attn", "flash-attn-3", "flashinfer-python", "vllm", "sglang")


def machine_facts(device: str) -> dict:
    facts = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_features": openmsa.cpu_features(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "openmsa": openmsa.__version__,
        "packages": dict(_installed()),
        "command": " ".join(sys.argv),
    }
    if device == "cuda":
        facts["gpu"] = openmsa.cuda_device()
        facts["nvidia_smi"] = _nvidia_smi()
    return facts


def _installed():
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _nvidia_smi() -> dict | None:
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(fields.split(","), output.splitlines()[0].split(", ")))
