"""The one timer: a function, or several one after another, per function: median, fastest and slowest run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

MAX_REPEATS = 20
# Several times the L2 cache.
FLUSH_BYTES = 256 << 20
# After a pause the clocks of a GPU take some 20 ms to rise; until then calls bound by memory take a tenth longer.
BUSY_SECONDS = 0.05
# The GPU waits for some half a millisecond, so that the host has enqueued a call before its time begins.
WAIT_CYCLES = 1_000_000
# A CUDA graph holds as many functions as take so long together, at least two.
GRAPH_SECONDS = 0.1

Function = Callable[[], Any]


def measure(functions: Sequence[Function], device: str, seconds: float, in_graph: bool) -> tuple[dict, Any]:
    """Times MAX_REPEATS runs of all functions, or as many as fit into `seconds`, at least one; returns the figures, and
    what the last function returned in these runs. A run before them warms up, unless it took longer and is the one."""
    if device == "cpu":
        return _on_cpu(functions, seconds)
    return _on_gpu(functions, seconds, in_graph)


def _on_cpu(functions: Sequence[Function], seconds: float) -> tuple[dict, Any]:
    """Wall clock, and processor time of all threads: with one thread the figure to trust on a busy machine."""
    processor_times: list[float] = []
    results: list[Any] = []

    def run(repeats: int) -> list[float]:
        times: list[float] = []
        while len(times) < repeats:
            begin, processor_begin = time.perf_counter(), time.process_time()
            results[:] = [function() for function in functions]
            processor_times.append(1e3 * (time.process_time() - processor_begin))
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    times = _repeated(run, seconds)
    processor = statistics.median(processor_times[-len(times) :]) / len(functions)
    return _figures(times, len(functions)) | {"processor_ms": processor}, results[-1]


def _on_gpu(functions: Sequence[Function], seconds: float, in_graph: bool) -> tuple[dict, Any]:
    """Time between events, each run after the L2 cache has been overwritten; with in_graph, of a CUDA graph of all."""
    import torch

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    results: list[Any] = []
    stream.wait_stream(torch.cuda.current_stream())

    def run_all() -> None:
        results[:] = [function() for function in functions]

    def timed(repeats: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            flush.zero_()
            torch.cuda._sleep(WAIT_CYCLES)
            start.record()
            run()
            end.record()
        stream.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    run: Function = run_all
    with torch.cuda.stream(stream):
        if in_graph:
            functions = functions[: _fitting(functions[0], len(functions), stream)]
            run = _captured(run_all, stream)
        _keep_busy(flush, stream)
        times = _repeated(timed, seconds)
    return _figures(times, len(functions)), results[-1]


def _keep_busy(memory, stream) -> None:
    end = time.perf_counter() + BUSY_SECONDS
    while time.perf_counter() < end:
        memory.zero_()
        stream.synchronize()


def _fitting(function: Function, most: int, stream) -> int:
    """How many functions like this one a graph holds. The function runs twice: first it may compile or allocate."""
    once = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        function()
        stream.synchronize()
        once = time.perf_counter() - begin
    return min(most, max(2, int(GRAPH_SECONDS / once)))


def _captured(run: Function, stream) -> Function:
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def _repeated(timed: Callable[[int], list[float]], seconds: float) -> list[float]:
    """Times in milliseconds."""
    first = timed(1)
    if first[0] >= 1e3 * seconds:
        return first
    return timed(max(1, min(MAX_REPEATS, int(1e3 * seconds / max(first[0], 1e-3)))))


def _figures(times: list[float], calls: int) -> dict:
    """The figures of one function; calls is how many ran one after another."""
    times = sorted(time / calls for time in times)
    return {
        "median_ms": times[len(times) // 2],
        "min_ms": times[0],
        "max_ms": times[-1],
        "repeats": len(times),
        "calls": calls,
    }
