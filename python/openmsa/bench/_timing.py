"""Times of a function, or of several one behind another, per function: median, fastest and slowest run."""

from __future__ import annotations

import time

MAX_REPEATS = 20


def measure(functions, device: str, seconds: float, in_graph: bool) -> dict:
    """Of MAX_REPEATS runs of all functions, or of as many as fit into `seconds`, at least one."""

    def run():
        for function in functions:
            function()

    times = _on_gpu(run, seconds, in_graph) if device == "cuda" else _on_cpu(run, seconds)
    times = sorted(time / len(functions) for time in times)
    return {"median_ms": times[len(times) // 2], "min_ms": times[0], "max_ms": times[-1], "repeats": len(times)}


def _on_cpu(function, seconds: float) -> list[float]:
    function()
    times: list[float] = []
    while not times or (len(times) < MAX_REPEATS and sum(times) < seconds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return [1e3 * t for t in times]


def _on_gpu(function, seconds: float, in_graph: bool) -> list[float]:
    """Between events, each run after the L2 cache has been overwritten; steps of a serving loop in a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    with torch.cuda.stream(stream):
        for _ in range(2):
            begin = time.perf_counter()
            function()
            stream.synchronize()
            once = time.perf_counter() - begin
        run = _captured(function, stream) if in_graph else function
        repeats = max(1, min(MAX_REPEATS, int(seconds / once)))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            flush.zero_()
            start.record()
            run()
            end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _captured(function, stream):
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    graph.replay()
    return graph.replay
