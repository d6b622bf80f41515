"""Tables of an engine with openmsa and without."""

from __future__ import annotations

FIGURES = {
    "first_token_ms": "ms to the first token",
    "step_ms": "ms of a decode step",
    "tokens_per_s": "tokens per second",
}
_IS_RATE = {"tokens_per_s"}


def rows_of(label: str, runs: list[dict]) -> list[dict]:
    """Of a load, a row for each figure: of each arm the best of its runs, how far the worst is from it, and the gain.

    runs    in the order in which they were made, {"arm": "stock" or "openmsa", figure: number, ...}
    """
    rows = []
    for figure in FIGURES:
        row: dict = {"load": label, "figure": figure}
        for arm in ("stock", "openmsa"):
            numbers = [run[figure] for run in runs if run["arm"] == arm and figure in run]
            if numbers:
                best, worst = (max, min) if figure in _IS_RATE else (min, max)
                row[arm] = best(numbers)
                row[f"{arm}_spread"] = abs(worst(numbers) / best(numbers) - 1)
        if "stock" in row and "openmsa" in row:
            gain = row["openmsa"] / row["stock"]
            rows.append(row | {"gain": gain if figure in _IS_RATE else 1 / gain})
    return rows


def table(engine: str, rows: list[dict]) -> str:
    """As Markdown, one after the other for each figure."""
    lines = []
    for figure, unit in FIGURES.items():
        members = [row for row in rows if row["figure"] == figure]
        if members:
            lines += ["", f"| {unit} | {engine} | with openmsa | gain | runs apart |", "|---|---:|---:|---:|---:|"]
        for row in members:
            spread = f"{100 * row['stock_spread']:.1f} %, {100 * row['openmsa_spread']:.1f} %"
            lines.append(
                f"| {row['load']} | {_four(row['stock'])} | {_four(row['openmsa'])} | {row['gain']:.2f}x | {spread} |"
            )
    return "\n".join(lines[1:])


def _four(number: float) -> str:
    """With four digits or more."""
    return f"{number:.0f}" if number >= 1e4 else f"{number:.4g}"
