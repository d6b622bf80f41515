"""openmsa beside what else is installed, in one process: tables, a plot (PNG and SVG), JSON and CSV.

One layer on random inputs, bf16 on a GPU and fp32 on the CPU. A section asks one question of some contenders at several
sizes; --list names them all. The result of every contender is judged on sampled queries in float64 before it is timed.
Times are medians; on a GPU between events with a cold L2 cache, and of decode steps the share of one layer in a CUDA
graph of 8 to 64, each with queries and pages of its own. Some contenders compile kernels when they first meet a shape,
which takes minutes once; they keep them, so that a second run finds them. Figures are shown as they come; bench.json
grows with them, and has the facts of the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import openmsa

from ._benchmark import Benchmark
from ._machine import machine_facts
from ._problem import Layer
from ._report import plot, table, write_csv
from ._section import Case, Contender, Options, Section
from .sections import SECTIONS

LAYERS = {"cuda": Layer(64, 4, 128, 128, 128, 16), "cpu": Layer(16, 2, 64, 64, 64, 16)}
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}


def contender_names() -> list[str]:
    return list(dict.fromkeys(one.name for section in SECTIONS.values() for one in section.contenders))


def parse(arguments) -> Options:
    parser = argparse.ArgumentParser(
        "python -m openmsa.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the sections and their contenders, and stop")
    parser.add_argument("--output", type=Path, default=Path("bench-out"), help="folder (default: bench-out)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if _has_gpu() else "cpu")
    parser.add_argument(
        "--sections",
        type=_some_of(SECTIONS),
        default=[name for name, section in SECTIONS.items() if section.is_plotted],
        help=f"some of {','.join(SECTIONS)}; default: prefill,decode,training",
    )
    parser.add_argument(
        "--contenders", type=_some_of(contender_names()), help="by name, for example 'openmsa,vLLM Triton' (all)"
    )
    parser.add_argument("--cases", type=_pattern, help="those whose name a regular expression finds, '^1M x' (all)")
    parser.add_argument(
        "--contexts",
        type=_numbers,
        help="tokens, for example 8192,131072; sections of one size take the largest, up to their own",
    )
    parser.add_argument("--batches", type=_numbers, help="sequences of a decode step, for example 1,32")
    parser.add_argument(
        "--selection", type=Path, help="recorded topk_indices, as examples/train_lm.py writes them: a further kind"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="at most so long per figure, 20 runs (1)")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds for one contender and size, compiling included (300)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=0, help="on the CPU (one per core)")
    parser.add_argument("--commit", help="recorded in the JSON (git's)")
    for name in vars(LAYERS["cpu"]):
        parser.add_argument(f"--{name.removeprefix('num_').replace('_', '-')}", dest=name, type=int)
    options = parser.parse_args(arguments, namespace=Options())
    given = {name: getattr(options, name) for name in vars(LAYERS["cpu"])}
    layer = vars(LAYERS[options.device]) | {name: value for name, value in given.items() if value is not None}
    options.layer = Layer(**layer)
    options.dtype = options.dtype or DTYPES[options.device]
    if wrong := [n for n in options.contexts or [] if n < 1 or n % options.layer.block_size]:
        parser.error(f"--contexts: expected multiples of the block size {options.layer.block_size}, got {wrong[0]}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, got {text!r}: {error}") from error


def _some_of(names):
    def chosen(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(names)
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
        return text.split(",")

    return chosen


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available() and openmsa.cuda_device().startswith("NVIDIA")


def contenders_of(section: Section, options: Options) -> list[Contender]:
    """Contenders that can run on the device and are asked for."""
    return [
        one
        for one in section.contenders
        if options.device in one.devices and (options.contenders is None or one.name in options.contenders)
    ]


def cases_of(section: Section, options: Options) -> list[Case]:
    """Cases that are asked for."""
    return [case for case in section.cases(options) if options.cases is None or options.cases.search(case.label)]


def list_sections() -> None:
    for section in SECTIONS.values():
        print(f"{section.name:<10}{section.help}")
        for one in section.contenders:
            only = f" ({one.devices[0]} only)" if len(one.devices) == 1 else ""
            print(f"{'':<12}{one.name}{only}")


def main(arguments=None) -> int:
    options = parse(arguments)
    if options.list:
        list_sections()
        return 0
    layer = options.layer
    facts = machine_facts(options.device, options.commit)
    heads = f"{layer.num_heads_q} query and {layer.num_heads_kv} KV heads of {layer.head_dim}"
    title = (
        f"{facts.get('gpu') or facts['cpu']}; {heads}, {layer.topk} kv_blocks of {layer.block_size}, {options.dtype}"
    )
    print(title, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "bench.json"

    def save():
        results = {"machine": facts, "layer": vars(layer) | {"dtype": options.dtype}, "rows": benchmark.rows}
        results |= {"absent": benchmark.absent, "refused": benchmark.refused}
        path.write_text(json.dumps(results | {"section_seconds": benchmark.section_seconds}, indent=2) + "\n")

    benchmark = Benchmark(options.device, options.seconds, options.time_limit, save)
    try:
        for name in options.sections:
            section = SECTIONS[name]
            benchmark.run(section, cases_of(section, options), contenders_of(section, options))
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured so far:", file=sys.stderr)
    return report(benchmark, title, path)


def report(benchmark: Benchmark, title: str, path: Path) -> int:
    """Prints and writes everything; returns 1 where nothing was measured, or openmsa computed something wrong."""
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
    print("seconds:", ", ".join(f"{name} {seconds:g}" for name, seconds in benchmark.section_seconds.items()))
    csv_path = path.with_suffix(".csv")
    write_csv(benchmark.rows, csv_path)
    try:
        written = plot(benchmark.rows, title, path.parent)
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib", file=sys.stderr)
        written = []
    print("written:", *map(str, [path, csv_path, *written]))
    wrong = [row for row in benchmark.refused if row["is_wrong"] and row["contender"].startswith("openmsa")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
