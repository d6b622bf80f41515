"""How fast memory can be read and nothing else: what bounds decode."""

from __future__ import annotations

import functools

from .._errors import Refused, Wrong
from .._section import Case, Contender, Options, Prepared, Result, Section
from .._tensors import source_of

BYTES = {"cuda": 2 << 30, "cpu": 256 << 20}


class Memory:
    """int32 numbers, all zero but a few."""

    calls = 1

    def __init__(self, device: str, num_bytes: int):
        self.device = device
        self.source = source_of(device, 1)
        self.data = self.source.full((num_bytes // 4,), 0, "int32")
        self.data[:: len(self.data) // 7] = 1

    def work(self, part: str, rate: str) -> float:
        return 4 * len(self.data)


def cases(options: Options) -> list[Case]:
    num_bytes = BYTES[options.device]
    return [Case(f"{num_bytes >> 20} MiB", 0, 1, functools.partial(Memory, options.device, num_bytes))]


def triton(problem: Memory) -> Prepared:
    import torch

    from ..triton_kernels import read_memory

    programs = read_memory.CTAS_PER_SM * torch.cuda.get_device_properties("cuda").multi_processor_count
    steps = len(problem.data) // read_memory.TILE // programs
    problem.data = problem.data[: steps * programs * read_memory.TILE]
    out = torch.empty(programs, dtype=torch.int32, device="cuda")

    def run(call: int) -> Result:
        read_memory.read(problem.data, out)
        return Result(o=out)

    return Prepared(run)


def numpy(problem: Memory) -> Prepared:
    """NumPy reads with one thread."""
    if problem.device != "cpu":
        raise Refused("the CPU's memory only")
    return Prepared(lambda call: Result(o=problem.data.max(keepdims=True)))


def judge(problem: Memory, call: int, result: Result) -> float:
    if int(result.o.max()) != 1:
        raise Wrong(f"expected 1, got {int(result.o.max())}")
    return 0.0


SECTION = Section(
    "memory",
    "reading memory and nothing else",
    cases,
    (
        Contender("Triton read", "layer", triton, judge, ("cuda",)),
        Contender("NumPy max", "layer", numpy, judge, ("cpu",)),
    ),
    rate="gb_per_s",
)
