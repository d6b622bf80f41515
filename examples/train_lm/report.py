"""Curves and the table of all arms that have a log."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from .settings import ARMS

_COLORS = {
    "dense": "#117a65",
    "msa-pt": "#c0392b",
    "msa-cpt": "#2471a3",
    "no-detach": "#b7950b",
    "no-warmup": "#8e44ad",
}


def logs(folder: Path) -> dict[str, list[dict]]:
    paths = {name: folder / name / "log.jsonl" for name in ARMS}
    return {name: [json.loads(line) for line in path.open()] for name, path in paths.items() if path.exists()}


def table(folder: Path) -> str:
    """One line per arm, in Markdown."""
    head = ["arm", "M tokens", "loss: text", "shown", "answer", "KL", "block recall", "score recall"]
    head += ["K tokens/s, by length", "minutes", "GB", "retrieval at 4K .. 128K"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, log in logs(folder).items():
        lines.append([name, *_cells(log, folder / name / "retrieval.json")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(log: list[dict], retrieval: Path) -> list[str]:
    steps = [line for line in log if line["kind"] == "step"]
    evaluations = [line for line in log if line["kind"] == "evaluation"]
    last = evaluations[-1] if evaluations else {}
    loss = last.get("held_out", {})
    cells = [
        f"{log[-1]['tokens'] / 1e6:.1f}",
        *(_number(loss.get(kind), ".4f") for kind in ("text", "shown", "answer")),
    ]
    cells += [_number(_mean(last.get(name)), form) for name, form in _SPARSE.items()]
    speeds: dict[int, list[float]] = {}
    for line in steps:
        speeds.setdefault(line["length"], []).append(line["tokens_per_s"] / 1000)
    cells += [
        " ".join(f"{statistics.median(of_length):.0f}" for of_length in speeds.values()),
        f"{steps[-1]['seconds'] / 60:.1f}",
        _number(steps[-1].get("memory_gb"), "g"),
    ]
    shares = json.loads(retrieval.read_text()) if retrieval.exists() else {}
    return [*cells, " ".join(f"{100 * share:.0f} %" for share in shares.values()) or "-"]


_SPARSE = {"kl": ".4f", "block_recall": ".3f", "score_recall": ".3f"}


def _mean(numbers):
    return sum(numbers) / len(numbers) if numbers else None


def _number(value, form: str) -> str:
    return "-" if value is None else format(value, form)


def curves(folder: Path, path: Path) -> None:
    """Held-out loss and its difference to the dense twin; KL and recalls, means over sparse layers; over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7))
    evaluations = {name: [line for line in log if line["kind"] == "evaluation"] for name, log in logs(folder).items()}
    twin = {line["step"]: line["held_out_all"] for line in evaluations.get("dense", [])}
    for name, lines in evaluations.items():
        tokens = [line["tokens"] / 1e6 for line in lines]
        style = {"label": name, "color": _COLORS[name]}
        axes[0][0].plot(tokens, [line["held_out_all"] for line in lines], **style)
        beside = [line for line in lines if line["step"] in twin and name != "dense"]
        shares = [100 * (line["held_out_all"] / twin[line["step"]] - 1) for line in beside]
        axes[0][1].plot([line["tokens"] / 1e6 for line in beside], shares, **style)
        axes[0][2].plot(tokens, [line["held_out"].get("answer") for line in lines], **style)
        for axis, figure_name in zip(axes[1], _SPARSE):
            measured = [line for line in lines if figure_name in line]
            axis.plot(
                [line["tokens"] / 1e6 for line in measured], [_mean(line[figure_name]) for line in measured], **style
            )
    titles = [
        "held-out loss, nats per token",
        "held-out loss beside the dense twin, %",
        "loss of answers, nats per token",
    ]
    titles += ["KL of the index branch, nats", "block recall", "score recall"]
    for axis, title in zip(axes.flat, titles):
        axis.set(title=title, xlabel="million tokens")
        axis.grid(alpha=0.3)
    axes[0][1].set_ylim(-2, 6)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
