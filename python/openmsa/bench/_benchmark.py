"""The run itself: every contender on every case, each judged before it is timed."""

from __future__ import annotations

import functools
import gc
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from ._errors import Wrong
from ._section import Case, Contender, Section
from ._time_limit import time_limit
from ._timing import measure


class Benchmark:
    """Runs sections and keeps their figures.

    rows             one per contender and case that was measured; first_run_s is with what it compiled, and judged
    absent           contenders that are not installed, and why
    refused          contender and case that failed, computed something else, or took too long, and why
    section_seconds  how long each section took

    Each figure is shown on stderr as it comes, and `on_row` is called after it.
    """

    def __init__(self, device: str, seconds: float, limit: float, on_row: Callable[[], None]):
        self.device, self.seconds, self.limit, self.on_row = device, seconds, limit, on_row
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self.refused: list[dict] = []
        self.section_seconds: dict[str, float] = {}
        self._begin = time.perf_counter()
        self._too_slow: set[tuple[str, str, int]] = set()

    def run(self, section: Section, cases: Iterable[Case], contenders: list[Contender]) -> None:
        begin = time.perf_counter()
        for case in cases:
            self._run_case(section, case, contenders)
            self.section_seconds[section.name] = round(time.perf_counter() - begin, 1)
            self.on_row()

    def _run_case(self, section: Section, case: Case, contenders: list[Contender]) -> None:
        place = {"section": section.name, "case": case.label, "context": case.context, "batch": case.batch}
        contenders = [one for one in contenders if one.name not in self.absent]
        try:
            problem = case.make() if contenders else None
        except Exception as error:  # not enough memory, or no PyTorch
            self._show(f"{section.name}, {case.label}: not made, {error}\n")
            for contender in contenders:
                self._refuse(place | {"contender": contender.name}, error)
            return
        for contender in contenders:
            here = place | {"contender": contender.name, "part": contender.part}
            self._show(
                f"{time.perf_counter() - self._begin:7.1f} s  {section.name}, {case.label}: {contender.name} ... "
            )
            try:
                with time_limit(self.limit):
                    row = here | self._measured(section, case, contender, problem)
            except ImportError as error:
                self.absent[contender.name] = str(error)
                outcome = "not here"
            except Exception as error:  # whatever another library raises: it is named, and the others go on
                outcome = self._refuse(here, error)
            else:
                self.rows.append(row)
                outcome = f"{row['median_ms']:.4f} ms, first run {row['first_run_s']:.1f} s"
            self._show(outcome + "\n")
            self.on_row()
            _free(self.device)

    def _measured(self, section: Section, case: Case, contender: Contender, problem: Any) -> dict:
        if (contender.name, section.name, case.batch) in self._too_slow:
            raise RuntimeError("not tried, a smaller context took too long")
        begin = time.perf_counter()
        prepared = contender.prepare(problem)
        judged = problem if prepared.problem is None else prepared.problem
        result = prepared.run(0)
        error = contender.judge(judged, 0, result)
        first_run = time.perf_counter() - begin
        functions = [functools.partial(prepared.run, call) for call in range(problem.calls)]
        timing, result = measure(functions, self.device, self.seconds, section.in_graph)
        error = max(error, contender.judge(judged, timing["calls"] - 1, result))
        row = timing | {"first_run_s": first_run, "error": error}
        if section.rate is not None:
            scale = 1e-9 if section.rate == "tflops" else 1e-6
            row[section.rate] = judged.work(contender.part, section.rate) / timing["median_ms"] * scale
        if prepared.note:
            row["note"] = prepared.note
        return row | (prepared.figures(result) if prepared.figures else {})

    def _refuse(self, here: dict, error: Exception) -> str:
        """Records why there is no figure, and returns it in words."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if isinstance(error, TimeoutError):
            self._too_slow.add((here["contender"], here["section"], here["batch"]))
        self.refused.append(here | {"reason": reason, "is_wrong": isinstance(error, Wrong)})
        return f"refused: {reason}"

    @staticmethod
    def _show(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)


def _free(device: str) -> None:
    """Gives back the GPU memory that the last contender held."""
    if device == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
