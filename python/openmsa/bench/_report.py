"""The table and the plot of a benchmark's rows."""

from __future__ import annotations

from pathlib import Path

from ._case import SECTIONS
from ._contenders import CONTENDERS

_SPARSE = {one.name for one in CONTENDERS if one.is_sparse}
_COLORS = {
    "openmsa": "#c0392b",
    "vLLM Triton": "#8e44ad",
    "SGLang Triton": "#2471a3",
    "PyTorch cuDNN": "#117a65",
    "PyTorch flash": "#b7950b",
    "flash-attn 3": "#2e4053",
    "flash-attn 2": "#a04000",
    "FlashInfer": "#16a085",
    "openmsa dense": "#e59866",
}


def panels(rows: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Rows by section and batch, in the order of the sections."""
    keys = {(row["section"], row["batch"]) for row in rows}
    order = list(SECTIONS)
    return {
        key: [row for row in rows if (row["section"], row["batch"]) == key]
        for key in sorted(keys, key=lambda key: (order.index(key[0]), key[1]))
    }


def table(rows: list[dict]) -> str:
    lines = []
    for (section, batch), members in panels(rows).items():
        names = list(dict.fromkeys(row["contender"] for row in members))
        title = f"{section}: {SECTIONS[section]}" + (f", batch {batch}" if section == "decode" else "")
        lines += ["", f"{title}; milliseconds"]
        lines.append(f"{'tokens':>9}" + "".join(f"{name:>15}" for name in names) + f"{'best dense / openmsa':>22}")
        for context in sorted({row["context"] for row in members}):
            times = {row["contender"]: row["median_ms"] for row in members if row["context"] == context}
            cells = "".join(f"{times[name]:>15.3f}" if name in times else f"{'-':>15}" for name in names)
            dense = [time for name, time in times.items() if name not in _SPARSE]
            ratio = f"{min(dense) / times['openmsa']:.2f}" if dense and "openmsa" in times else "-"
            lines.append(f"{context:>9}{cells}{ratio:>22}")
    return "\n".join(lines[1:])


def plot(rows: list[dict], title: str, folder: Path) -> list[Path]:
    """One panel per section and batch: milliseconds over tokens, both logarithmic. Dense attention is dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullLocator

    members = panels(rows)
    figure, axes = pyplot.subplots(1, len(members), figsize=(4.6 * len(members), 4.2), squeeze=False)
    for axis, ((section, batch), panel) in zip(axes[0], members.items()):
        for name in dict.fromkeys(row["contender"] for row in panel):
            line = sorted((row["context"], row["median_ms"]) for row in panel if row["contender"] == name)
            style = {"linestyle": "-" if name in _SPARSE else "--", "linewidth": 2.6 if name == "openmsa" else 1.5}
            axis.plot(*zip(*line), marker="o", markersize=4, label=name, color=_COLORS[name], **style)
        contexts = sorted({row["context"] for row in panel})
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(contexts, [_tokens(context) for context in contexts])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_title(section + (f", batch {batch}" if section == "decode" else ""))
        axis.set_xlabel("tokens of context")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    axes[0][0].set_ylabel("milliseconds")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    paths = [folder / "bench.png", folder / "bench.svg"]
    for path in paths:
        figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return paths


def _tokens(count: int) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)
