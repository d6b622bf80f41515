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


def machine_facts(device: str, commit: str | None) -> dict:
    facts = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_features": openmsa.cpu_features(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "openmsa": openmsa.__version__,
        "commit": commit or output_of("git", "rev-parse", "HEAD"),
        "packages": dict(_installed()),
        "command": " ".join(sys.argv),
    }
    if device == "cuda":
        import torch

        facts |= {"gpu": openmsa.cuda_device(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        facts["nvidia_smi"] = _nvidia_smi_under_load()
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


def _nvidia_smi_under_load() -> dict | None:
    """Clocks while a few hundred milliseconds of matrix products run."""
    import torch

    load = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    for _ in range(400):
        torch.mm(load, load)
    fields = "name,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw,temperature.gpu,driver_version"
    output = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    torch.cuda.synchronize()
    return dict(zip(fields.split(","), output.splitlines()[0].split(", "))) if output else None


def output_of(*command: str) -> str | None:
    """What a program prints, or None where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
