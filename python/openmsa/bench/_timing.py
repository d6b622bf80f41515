"""Times of a function: its median, fastest and slowest run."""

from __future__ import annotations

import time

MAX_REPEATS, SECONDS = 20, 1.0  # so many runs, or as many as fit


def measure(function, device: str, in_graph: bool) -> dict:
    return _on_gpu(function, in_graph) if device == "cuda" else _on_cpu(function)


def _on_cpu(function) -> dict:
    function()
    times = []
    while len(times) < MAX_REPEATS and sum(times) < SECONDS:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return _summary([seconds * 1e3 for seconds in times])


def _on_gpu(function, in_graph: bool) -> dict:
    """Between events, each run after the L2 cache has been overwritten; steps of a serving loop in a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    with torch.cuda.stream(stream):
        begin = time.perf_counter()
        for _ in range(2):
            function()
            stream.synchronize()
            begin, seconds = time.perf_counter(), time.perf_counter() - begin
        run = _captured(function, stream) if in_graph else function
        repeats = max(1, min(MAX_REPEATS, int(SECONDS / seconds)))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            flush.zero_()
            start.record()
            run()
            end.record()
    torch.cuda.synchronize()
    return _summary([start.elapsed_time(end) for start, end in events])


def _captured(function, stream):
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    graph.replay()
    return graph.replay


def _summary(milliseconds: list[float]) -> dict:
    times = sorted(milliseconds)
    return {"median_ms": times[len(times) // 2], "min_ms": times[0], "max_ms": times[-1], "repeats": len(times)}
