"""The run itself: every contender on every case, each compared with the first of its kind before it is timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from ._case import Case
from ._contenders import Contender, sample
from ._time_limit import time_limit
from ._timing import measure

# Two results of one layer in bf16; a choice of blocks near a tie may turn out differently.
TOLERANCE = 0.05


class Benchmark:
    """Runs cases and keeps their figures.

    rows     one per contender and case that was measured
    absent   contenders that are not installed, and why
    refused  contender and case that failed, computed something else, or took too long, and why

    Each figure is shown on stderr as it comes, and `on_row` is called after it.
    """

    def __init__(self, contenders: list[Contender], seconds: float, limit: float, on_row: Callable[[], None]):
        self.contenders, self.seconds, self.limit, self.on_row = contenders, seconds, limit, on_row
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self.refused: list[dict] = []
        self._begin = time.perf_counter()
        self._too_slow: set[tuple[str, str, int]] = set()

    def run(self, case: Case) -> None:
        layers = [case.inputs(number) for number in range(case.num_layers())]
        expected: dict[bool, np.ndarray] = {}
        for contender in self.contenders:
            if contender.name not in self.absent:
                self._show(f"{time.perf_counter() - self._begin:7.1f} s  {case}: {contender.name} ... ")
                self._show(self._run_one(contender, case, layers, expected) + "\n")
                self.on_row()

    def _run_one(self, contender: Contender, case: Case, layers: list, expected: dict) -> str:
        """Its outcome in words."""
        place = {"section": case.section, "context": case.context, "batch": case.batch, "contender": contender.name}
        try:
            with time_limit(self.limit):
                row = self._measured(contender, case, layers, expected)
        except ImportError as error:
            self.absent[contender.name] = str(error)
            return "not here"
        except Exception as error:  # whatever another library raises: it is named, and the others go on
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            if isinstance(error, TimeoutError):
                self._too_slow.add((contender.name, case.section, case.batch))
            self.refused.append(place | {"reason": reason})
            return f"refused: {reason}"
        self.rows.append(place | row)
        return f"{row['median_ms']:.3f} ms, first run {row['first_run_s']:.1f} s"

    def _measured(self, contender: Contender, case: Case, layers: list, expected: dict) -> dict:
        if (contender.name, case.section, case.batch) in self._too_slow:
            raise RuntimeError("not tried, a smaller context took too long")
        begin = time.perf_counter()
        functions = [contender.prepare(case, inputs) for inputs in layers]
        o = sample(functions[0]())
        first_run = time.perf_counter() - begin
        difference = _difference(o, expected.setdefault(contender.is_sparse, o))
        timing = measure(functions, case.device, self.seconds, in_graph=case.section == "decode")
        return timing | {"layers": len(layers), "difference": difference, "first_run_s": first_run}

    @staticmethod
    def _show(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)


def _difference(o: np.ndarray, first: np.ndarray) -> float:
    """Relative difference from the first result of its kind, on a sample of tokens."""
    difference = float(np.linalg.norm(o - first) / np.linalg.norm(first))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"its result differs from the first one's by {difference:.3g}")
    return difference
