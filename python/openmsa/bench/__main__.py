"""openmsa beside what else is installed, in one process: a table, a plot (PNG and SVG) and JSON with the machine's facts.

One layer on random inputs, bf16 on a GPU and fp32 on the CPU. Every contender's result is compared with openmsa's, or, for
dense attention, with the first dense one's, before it is timed. Times are medians; on a GPU between events with a cold L2
cache, decode steps in a CUDA graph. Contenders: PyTorch's attention (cuDNN, flash), flash-attn, FlashInfer, and the Triton
kernels of vLLM and SGLang for MiniMax-M3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

import openmsa

from ._case import SECTIONS, Case, Layer
from ._contenders import Contender, contenders_on, sample
from ._machine import machine_facts
from ._report import plot, table
from ._timing import measure

# Two results of one layer in bf16; a choice of blocks near a tie may turn out differently.
TOLERANCE = 0.05
DEFAULTS = {
    "cuda": {"layer": (64, 4, 128, 128, 16), "contexts": (8192, 32768, 131072), "batches": (1, 32)},
    "cpu": {"layer": (16, 2, 64, 64, 16), "contexts": (1024, 4096, 16384), "batches": (1,)},
}


class Benchmark:
    def __init__(self, layer: Layer, device: str, seconds: float):
        self.layer, self.device, self.seconds = layer, device, seconds
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self.refused: list[dict] = []

    def run(self, section: str, context: int, batch: int) -> None:
        case = Case(section, context, batch, self.layer, self.device)
        inputs = case.inputs()
        expected: dict[bool, np.ndarray] = {}
        for contender in contenders_on(self.device):
            if contender.name not in self.absent:
                self._run_one(contender, case, inputs, expected)

    def _run_one(self, contender: Contender, case: Case, inputs, expected: dict) -> None:
        place = {"section": case.section, "context": case.context, "batch": case.batch, "contender": contender.name}
        try:
            function = contender.prepare(case, inputs)
            difference = self._compare(function, contender, expected)
            timing = measure(function, self.device, self.seconds, in_graph=case.section == "decode")
        except ImportError as error:
            self.absent[contender.name] = str(error)
        except Exception as error:  # whatever another library raises: it is named, and the others go on
            self.refused.append(place | {"reason": str(error).strip().splitlines()[0] if str(error) else repr(error)})
        else:
            self.rows.append(place | timing | {"difference": difference})

    @staticmethod
    def _compare(function, contender: Contender, expected: dict) -> float:
        """Relative difference from the first result of its kind, on a sample of tokens."""
        o = sample(function())
        first = expected.setdefault(contender.is_sparse, o)
        difference = float(np.linalg.norm(o - first) / np.linalg.norm(first))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"its result differs from the first one's by {difference:.3g}")
        return difference


def parse(arguments):
    def numbers(text):
        return [int(part) for part in text.split(",")]

    def sections(text):
        chosen = text.split(",")
        unknown = set(chosen) - set(SECTIONS)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}"
            )
        return chosen

    parser = argparse.ArgumentParser(
        "python -m openmsa.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench-out"), help="folder (default: bench-out)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if _has_gpu() else "cpu")
    parser.add_argument("--sections", type=sections, default=list(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--contexts", type=numbers, help="tokens, for example 8192,131072")
    parser.add_argument("--batches", type=numbers, help="sequences of a decode step")
    parser.add_argument("--seconds", type=float, default=1.0, help="at most so long per figure, 20 runs (default: 1)")
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
    benchmark = Benchmark(layer, options.device, options.seconds)
    for section, context in itertools.product(options.sections, sorted(options.contexts)):
        for batch in options.batches if section == "decode" else [1]:
            benchmark.run(section, context, batch)
    if not benchmark.rows:
        print(f"openmsa.bench: expected something to measure, got {benchmark.refused[0]['reason']}", file=sys.stderr)
        return 1
    print(table(benchmark.rows))
    for name, reason in benchmark.absent.items():
        print(f"not here: {name} ({reason})")
    refusals = {(row["contender"], row["section"], row["reason"]): None for row in benchmark.refused}
    for contender, section, reason in refusals:
        print(f"refused: {contender}, {section}: {reason}")
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"machine": facts, "layer": vars(layer), "rows": benchmark.rows}
    results |= {"absent": benchmark.absent, "refused": benchmark.refused}
    path = options.output / "bench.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    try:
        written = plot(benchmark.rows, title, options.output)
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib", file=sys.stderr)
        written = []
    print("written:", *map(str, [path, *written]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
