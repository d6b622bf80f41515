"""openmsa beside what else is installed, in one process: a table, a plot (PNG and SVG) and JSON with the machine's facts.

One layer on random inputs, bf16 on a GPU and fp32 on the CPU. Every contender's result is compared with openmsa's, or,
for dense attention, with the first dense one's, before it is timed. Times are medians; on a GPU between events with a
cold L2 cache, decode steps as a CUDA graph of up to eight layers, each with a cache of its own, of which a time is the
share of one. Contenders: PyTorch's attention (cuDNN, flash), flash-attn, FlashInfer, and the Triton kernels of vLLM and
SGLang for MiniMax-M3. Some of them compile kernels when they first meet a shape, which takes minutes once; they keep
them, so that a second run finds them. Figures are shown as they come, and bench.json grows with them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import openmsa

from ._benchmark import Benchmark
from ._case import SECTIONS, Case, Layer
from ._contenders import CONTENDERS, contenders_on
from ._machine import machine_facts
from ._report import plot, table

DEFAULTS = {
    "cuda": {"layer": (64, 4, 128, 128, 16), "contexts": (8192, 32768, 131072), "batches": (1, 32)},
    "cpu": {"layer": (16, 2, 64, 64, 16), "contexts": (1024, 4096, 16384), "batches": (1,)},
}


def parse(arguments):
    def numbers(text):
        return [int(part) for part in text.split(",")]

    def some_of(names):
        def chosen(text):
            unknown = set(text.split(",")) - set(names)
            if unknown:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}"
                )
            return text.split(",")

        return chosen

    parser = argparse.ArgumentParser(
        "python -m openmsa.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench-out"), help="folder (default: bench-out)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if _has_gpu() else "cpu")
    parser.add_argument(
        "--sections", type=some_of(SECTIONS), default=list(SECTIONS), help=f"some of {','.join(SECTIONS)}"
    )
    names = [one.name for one in CONTENDERS]
    parser.add_argument(
        "--contenders", type=some_of(names), help="by name, for example 'openmsa,vLLM Triton' (default: all)"
    )
    parser.add_argument("--contexts", type=numbers, help="tokens, for example 8192,131072")
    parser.add_argument("--batches", type=numbers, help="sequences of a decode step")
    parser.add_argument("--seconds", type=float, default=1.0, help="at most so long per figure, 20 runs (default: 1)")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds for one contender and size, compiling included (300)"
    )
    for name in ("heads-q", "heads-kv", "head-dim", "block-size", "topk"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args(arguments)
    defaults = DEFAULTS[options.device]
    given = (options.heads_q, options.heads_kv, options.head_dim, options.block_size, options.topk)
    options.layer = Layer(*(a if a is not None else b for a, b in zip(given, defaults["layer"])))
    options.contexts = options.contexts or list(defaults["contexts"])
    options.batches = options.batches or list(defaults["batches"])
    if wrong := [n for n in options.contexts if n < 1 or n % options.layer.block_size]:
        parser.error(f"--contexts: expected multiples of the block size {options.layer.block_size}, got {wrong[0]}")
    return options


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available() and openmsa.cuda_device().startswith("NVIDIA")


def main(arguments=None) -> int:
    options = parse(arguments)
    layer = options.layer
    facts = machine_facts(options.device)
    heads = f"{layer.num_heads_q} query and {layer.num_heads_kv} KV heads of {layer.head_dim}"
    title = f"{facts.get('gpu') or facts['cpu']}; {heads}, {layer.topk} kv_blocks of {layer.block_size}"
    print(title, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "bench.json"

    def save():
        results = {"machine": facts, "layer": vars(layer), "rows": benchmark.rows}
        results |= {"absent": benchmark.absent, "refused": benchmark.refused}
        path.write_text(json.dumps(results, indent=2) + "\n")

    contenders = contenders_on(options.device)
    if options.contenders:
        contenders = [one for one in contenders if one.name in options.contenders]
    benchmark = Benchmark(contenders, options.seconds, options.time_limit, save)
    try:
        for section, context in itertools.product(options.sections, sorted(options.contexts)):
            for batch in options.batches if section == "decode" else [1]:
                benchmark.run(Case(section, context, batch, layer, options.device))
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured so far:", file=sys.stderr)
    return report(benchmark, title, path)


def report(benchmark: Benchmark, title: str, path: Path) -> int:
    if not benchmark.rows:
        reasons = [row["reason"] for row in benchmark.refused] + list(benchmark.absent.values())
        print(f"openmsa.bench: expected something to measure, got {[*reasons, 'nothing'][0]}", file=sys.stderr)
        return 1
    print(table(benchmark.rows))
    for name, reason in benchmark.absent.items():
        print(f"not here: {name} ({reason})")
    refusals = {(row["contender"], row["section"], row["reason"]): None for row in benchmark.refused}
    for contender, section, reason in refusals:
        print(f"refused: {contender}, {section}: {reason}")
    try:
        written = plot(benchmark.rows, title, path.parent)
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib", file=sys.stderr)
        written = []
    print("written:", *map(str, [path, *written]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
