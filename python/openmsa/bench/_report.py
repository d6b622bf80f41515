"""Tables, plots and files of a benchmark's rows."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterable
from pathlib import Path

from ._section import Section, tokens
from .sections import SECTIONS

_MOST_COLUMNS = 8
_RATES = {"tflops": "TFLOP/s", "gb_per_s": "GB/s"}
# Fields that say where a row belongs and how long it took; others are figures of its contender.
_COMMON = {
    "section", "case", "context", "batch", "contender", "part", "median_ms", "min_ms", "max_ms", "processor_ms",
    "repeats", "calls", "first_run_s", "error", *_RATES,
}  # fmt: skip
_COLORS = {
    "openmsa": "#c0392b",
    "openmsa select": "#f1948a",
    "openmsa attend": "#d98880",
    "openmsa fused": "#ec7063",
    "openmsa fp8 index": "#e67e22",
    "openmsa fp8 caches": "#f5b041",
    "vLLM Triton": "#8e44ad",
    "SGLang Triton": "#2471a3",
    "split-KV Triton": "#5d6d7e",
    "PyTorch cuDNN": "#117a65",
    "PyTorch flash": "#b7950b",
    "flash-attn 3": "#2e4053",
    "flash-attn 2": "#a04000",
    "vLLM flash-attn 3": "#566573",
    "FlashInfer": "#16a085",
    "openmsa dense": "#e59866",
    "flash-msa": "#8e44ad",
    "NSA Triton": "#2471a3",
}
_STYLES = {"layer": "-", "select": ":", "attend": ":", "dense": "--"}  # of parts that are plotted


def _by_section(rows: list[dict]) -> list[tuple[Section, list[dict]]]:
    """Rows of each section, in the order of the table of sections."""
    names = {row["section"] for row in rows}
    return [
        (section, [row for row in rows if row["section"] == section.name])
        for section in SECTIONS.values()
        if section.name in names
    ]


def table(rows: list[dict]) -> str:
    lines = []
    for section, members in _by_section(rows):
        cells = _cells(members, "median_ms") | _ratios(members)
        lines += ["", f"{section.name}: {section.help}; milliseconds", *_grid(members, cells)]
        if section.rate is not None:
            lines += [f"{section.name}: {_RATES[section.rate]}", *_grid(members, _cells(members, section.rate))]
        lines += _figures(members)
    return "\n".join(lines[1:])


def _cells(rows: list[dict], figure: str) -> dict[str, dict[str, str]]:
    """By contender and case."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row["contender"], {})[row["case"]] = f"{row[figure]:.4g}"
    return cells


def _ratios(rows: list[dict]) -> dict[str, dict[str, str]]:
    """How much longer the best dense contender of a case takes than openmsa."""
    ours = {row["case"]: row["median_ms"] for row in rows if row["contender"] == "openmsa"}
    dense: dict[str, float] = {}
    for row in rows:
        if row["part"] == "dense":
            dense[row["case"]] = min(row["median_ms"], dense.get(row["case"], row["median_ms"]))
    ratios = {case: f"{best / ours[case]:.2f}" for case, best in dense.items() if case in ours}
    return {"best dense / openmsa": ratios} if ratios else {}


def _grid(rows: list[dict], cells: dict[str, dict[str, str]]) -> list[str]:
    """A line per contender and a column per case, or the other way round where there are many cases."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    if len(cases) <= _MOST_COLUMNS:
        lines = [[name, *(line.get(case, "-") for case in cases)] for name, line in cells.items()]
        return _aligned([["", *cases], *lines])
    lines = [[case, *(line.get(case, "-") for line in cells.values())] for case in cases]
    return _aligned([["", *cells], *lines])


def _aligned(lines: list[list[str]]) -> list[str]:
    first = max(26, *(len(line[0]) + 2 for line in lines))
    widths = [max(12, len(head) + 2) for head in lines[0][1:]]
    return [f"{name:<{first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths)) for name, *cells in lines]


def _figures(rows: list[dict]) -> Iterable[str]:
    """A line for every row that has more than times and rates."""
    for row in rows:
        own = {name: value for name, value in row.items() if name not in _COMMON}
        if own:
            words = (f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in own.items())
            yield f"{row['case']}, {row['contender']}: {', '.join(words)}"


def write_csv(rows: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def panels(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by section and batch, of sections over context."""
    result: dict[str, list[dict]] = {}
    for section, members in _by_section(rows):
        if section.is_plotted:
            plotted = [row for row in members if row["part"] in _STYLES]
            for row in sorted(plotted, key=lambda row: row["batch"]):
                title = section.name + (f", batch {row['batch']}" if row["batch"] > 1 else "")
                result.setdefault(title, []).append(row)
    return result


def plot(rows: list[dict], title: str, folder: Path) -> list[Path]:
    """One panel per section and batch: milliseconds over tokens, both logarithmic. Dense attention is dashed, halves of
    the layer are dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    members = panels(rows)
    if not members:
        return []
    figure, axes = pyplot.subplots(1, len(members), figsize=(4.6 * len(members), 4.2), squeeze=False)
    for axis, (panel_title, panel) in zip(axes[0], members.items()):
        _draw(axis, panel)
        axis.set_title(panel_title)
    axes[0][0].set_ylabel("milliseconds")
    figure.suptitle(textwrap.fill(title, 60 * len(members)), fontsize=10)
    figure.tight_layout()
    paths = [folder / "bench.png", folder / "bench.svg"]
    for path in paths:
        figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return paths


def _draw(axis, rows: list[dict]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for name, part in dict.fromkeys((row["contender"], row["part"]) for row in rows):
        line = sorted((row["context"], row["median_ms"]) for row in rows if row["contender"] == name)
        style = {"linestyle": _STYLES[part], "linewidth": 2.6 if name == "openmsa" else 1.5}
        axis.plot(*zip(*line), marker="o", markersize=4, label=name, color=_COLORS.get(name), **style)
    contexts = sorted({row["context"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(contexts, [tokens(context) for context in contexts])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("tokens of context")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
