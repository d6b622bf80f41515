#!/usr/bin/env python3
"""The engines' own tests of MiniMax-M3's attention kernels, run on openmsa, on a GPU:

    tests/engines/run_kernel_tests.py vllm                      # vLLM 0.33.0 beside openmsa
    tests/engines/run_kernel_tests.py sglang                    # SGLang 0.5.23
    tests/engines/run_kernel_tests.py vllm --tests FOLDER       # a checkout, or the files of it that the table below names

The tests are fetched with git, at the tag of the table, into a temporary folder; nothing of them is kept. Before pytest
imports them, the engine's kernel functions are replaced by those of vllm_kernels.py and sglang_kernels.py, which make the
same calls of openmsa. A test that asks for what openmsa does not serve is skipped, with the reason. Printed are every failure
and how many tests had which outcome; the exit status is pytest's."""

from __future__ import annotations

import argparse
import collections
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))


class Engine(NamedTuple):
    """repository, tag   where the tests are
    files               what is fetched of it
    tests               of these, what pytest is given
    kernels             our module with the replacements
    """

    repository: str
    tag: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    kernels: str


_VLLM = ("tests/kernels/attention/test_minimax_m3.py", "tests/kernels/attention/test_minimax_m3_fp8_triton_indexer.py")
_SGLANG = tuple(
    f"python/sglang/srt/layers/attention/minimax_sparse_ops/tests/test_{name}.py"
    for name in ("sparse_gqa", "flash_with_topk_idx")
)
ENGINES = {
    "vllm": Engine(
        "https://github.com/vllm-project/vllm",
        "v0.33.0",
        (
            *(f"{folder}/__init__.py" for folder in ("tests", "tests/v1", "tests/kernels")),
            "tests/v1/attention/utils.py",
            *_VLLM,
        ),
        _VLLM,
        "vllm_kernels",
    ),
    # Later versions have no tests of the two functions by themselves; the functions are the same in 0.5.23.
    "sglang": Engine(
        "https://github.com/sgl-project/sglang",
        "v0.5.16",
        _SGLANG,
        _SGLANG,
        "sglang_kernels",
    ),
}


class Outcomes:
    """A pytest plugin: counts tests by what became of them, and calls of the replacements in each."""

    def __init__(self, kernels):
        self._kernels = kernels
        self.counts: collections.Counter[str] = collections.Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        before = self._kernels.num_calls()
        try:
            return (yield)
        finally:
            item.stash[_CALLS] = self._kernels.num_calls() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" or report.outcome != "passed" and call.when == "setup":
            self.counts[self._word(item, report)] += 1
        return report

    @staticmethod
    def _word(item, report) -> str:
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            return "skipped: " + reason.removeprefix("Skipped: ")
        if report.failed:
            return "FAILED"
        return "passed on openmsa" if item.stash.get(_CALLS, 0) else "passed, has no call of a kernel"


_CALLS = pytest.StashKey[int]()


def fetch(engine: Engine, folder: Path) -> None:
    """Only the files of the table, none of the engine's other tests."""
    git = ["git", "-C", str(folder)]
    clone = ["git", "clone", "--quiet", "--depth=1", "--filter=blob:none", "--no-checkout", f"--branch={engine.tag}"]
    subprocess.run([*clone, engine.repository, str(folder)], check=True)
    subprocess.run([*git, "sparse-checkout", "set", "--no-cone", *engine.files], check=True)
    subprocess.run([*git, "checkout", "--quiet"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--tests", type=Path, help="folder that has the files (fetched)")
    parser.add_argument("-k", default="", help="of pytest: only tests whose names match")
    options = parser.parse_args()
    engine = ENGINES[options.engine]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.tests or Path(temporary)
        if options.tests is None:
            fetch(engine, folder)
        kernels = importlib.import_module(engine.kernels)
        kernels.replace()
        outcomes = Outcomes(kernels)
        sys.path.insert(0, str(folder))
        arguments = [str(folder / test) for test in engine.tests]
        arguments += [
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "--noconftest",
            "--import-mode=importlib",
            "-k",
            options.k,
        ]
        status = pytest.main([*arguments, f"--rootdir={folder}"], plugins=[outcomes])
    print(f"\n{options.engine}: tests of {engine.tag}")
    for word, count in sorted(outcomes.counts.items()):
        print(f"{count:5d} {' '.join(word.split())}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
