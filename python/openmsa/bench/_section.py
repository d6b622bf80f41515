"""The words of the benchmark. A *section* asks one question. It has *cases*, the sizes to ask it at, and *contenders*,
those that answer: each turns the problem of a case into functions that can be judged and timed."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._problem import Layer

K = 1024


@dataclasses.dataclass
class Result:
    """Arrays that a call wrote; None for those that it does not have."""

    o: Any = None  # [total_q, num_heads_q, head_dim]
    lse: Any = None  # [total_q, num_heads_q]
    topk_indices: Any = None  # [num_heads_kv, total_q, topk]
    d_q: Any = None  # the gradients for d_o = o
    d_k: Any = None
    d_v: Any = None
    d_index_q: Any = None  # the gradient of kl_loss


@dataclasses.dataclass
class Prepared:
    """A contender that is ready for the calls of a case.

    run      does the work of a call by its number, 0 to problem.calls - 1
    problem  the inputs as this contender takes them, where it rounds them first; None: those of the case
    note     how the contender does it, where it had a choice
    figures  more about a result than its time
    """

    run: Callable[[int], Result]
    problem: Any = None
    note: str = ""
    figures: Callable[[Result], dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """prepare raises ImportError where the contender is not installed, anything else where it does not serve the case.
    judge takes problem, number of the call and result; it returns the relative error or raises Wrong.

    part     what of the layer it computes, for the work that a rate counts: "layer", "select", "attend", "dense"; or of a
             training step, which is not plotted: "forward", "backward", "kl"
    devices  where it can run
    """

    name: str
    part: str
    prepare: Callable[[Any], Prepared]
    judge: Callable[[Any, int, Result], float]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True)
class Case:
    """label tells it from the other cases of its section; context and batch are where a plot puts it."""

    label: str
    context: int
    batch: int
    make: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Section:
    """rate: "tflops", "gb_per_s" or none. in_graph: on a GPU all calls run in one CUDA graph, as in a serving loop."""

    name: str
    help: str
    cases: Callable[[Options], list[Case]]
    contenders: tuple[Contender, ...]
    rate: str | None = None
    in_graph: bool = False
    is_plotted: bool = False


class Options(argparse.Namespace):
    """The command line, as far as sections read it."""

    device: str
    layer: Layer
    dtype: str
    cases: re.Pattern | None  # of the labels of cases to run
    contexts: list[int] | None
    batches: list[int] | None
    threads: int
    selection: Path | None  # recorded topk_indices

    def sizes(self) -> list[int]:
        """Contexts of the sections that go through them."""
        return sorted(self.contexts or ([8 * K, 32 * K, 128 * K] if self.device == "cuda" else [K, 4 * K, 16 * K]))

    def size(self, most: int) -> int:
        """Context of a section that has one: the largest asked for, at most `most`; by default 16K on the CPU."""
        largest = max(self.contexts) if self.contexts else most if self.device == "cuda" else 16 * K
        return min(most, largest)

    def problem_options(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype, "threads": self.threads}


def tokens(count: int) -> str:
    """32768 as 32K."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
