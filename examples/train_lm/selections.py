"""topk_indices of a trained model: recorded for the benchmark, counted, and drawn beside a page.

A recording is a file of NumPy (.npz): `topk_<tokens>` uint16 [layers, num_heads_kv, tokens, topk], -1 as 65535, and
`block_size`. `python -m openmsa.bench --selection FILE` reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .sequences import Sequences
from .text import IMAGE
from .training import Training


@torch.no_grad()
def selections(training: Training, sequences: Sequences, length: int, layers: list[int] | None = None) -> np.ndarray:
    """[layers, num_heads_kv, length, topk] int32 of held-out sequence 0; layers: some of the sparse ones."""
    found: list[np.ndarray] = []

    def watch(number: int, layer: dict) -> None:
        if layers is None or number in layers:
            found.append(layer["topk_indices"].cpu().numpy())

    training.model.set_warmup(False)
    with training.autocast():
        training.model(sequences[0, length].to(training.device), watch=watch)
    return np.stack(found)


def record(path: Path, recordings: dict[int, np.ndarray], block_size: int) -> None:
    arrays = {f"topk_{length}": indices.astype(np.uint16) for length, indices in recordings.items()}
    np.savez_compressed(path, block_size=block_size, **arrays)


def counts(indices: np.ndarray, num_neighbours: int = 64) -> dict[str, float]:
    """Of [num_heads_kv, tokens, topk], the rows that have topk kv_blocks:

    shared_with_next  share of a query's kv_blocks that the next query chooses too
    blocks_of_64      kv_blocks that 64 neighbouring queries choose together, of 64 * topk choices
    chosen_twice      share of choices whose kv_block another query of the 64 chooses too: keys that a tile reads once
    adjacent          share of chosen kv_blocks whose right neighbour is chosen by the same query
    most_visits       queries that choose the most chosen kv_block, as a share of all
    """
    rows = indices[:, (indices >= 0).all((0, 2))]
    if rows.shape[1] < num_neighbours:
        return {}
    num_blocks = int(rows.max()) + 1
    chosen = np.zeros((*rows.shape[:2], num_blocks), bool)
    np.put_along_axis(chosen, rows.astype(np.int64), True, 2)
    tiles = chosen[:, : rows.shape[1] // num_neighbours * num_neighbours]
    visits = tiles.reshape(len(rows), -1, num_neighbours, num_blocks).sum(2)
    topk = rows.shape[2]
    return {
        "shared_with_next": float((chosen[:, 1:] & chosen[:, :-1]).sum(-1).mean() / topk),
        "blocks_of_64": float((visits > 0).sum(-1).mean()),
        "chosen_twice": float(visits[visits > 1].sum() / visits.sum()),
        "adjacent": float((chosen[..., 1:] & chosen[..., :-1]).sum(-1).mean() / topk),
        "most_visits": float(chosen.mean(1).max()),
    }


def picture(training: Training, sequences: Sequences, length: int, path: Path, num_rows: int = 160) -> None:
    """Which kv_blocks the tokens after the first page read, as a share of each row of neighbouring tokens, in the first and
    in the last sparse layer; kv_blocks of pages are marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    block_size = training.model.shape.block_size
    is_patch = (sequences[0, length].ids == IMAGE).numpy()
    indices = selections(training, sequences, length)
    num_blocks = -(-length // block_size)
    of_pages = np.add.reduceat(is_patch, np.arange(0, length, block_size)) > block_size // 2
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, layer, name in zip(axes, (indices[0], indices[-1]), ("first", "last")):
        chosen = np.zeros((length, num_blocks + 1), np.float32)
        for head in layer:
            np.add.at(chosen, (np.arange(length)[:, None], head), 1.0 / len(layer))
        rows = max(length // num_rows, 1)
        shares = chosen[: length // rows * rows, :num_blocks].reshape(-1, rows, num_blocks).mean(1)
        extent = (0, num_blocks, length, 0)
        axis.imshow(shares, aspect="auto", cmap="Greys", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        for block in np.flatnonzero(of_pages):
            axis.axvspan(block, block + 1, color="#2471a3", alpha=0.18, linewidth=0)
        for begin, end in _runs(is_patch):
            axis.axhspan(begin, end, color="#c0392b", alpha=0.10, linewidth=0)
        axis.set(title=f"{name} sparse layer", xlabel=f"kv_block of {block_size} tokens")
    axes[0].set_ylabel("token")
    figure.suptitle(
        "black: chosen by all tokens of a row; blue: kv_blocks of pages; red: tokens that are patches", fontsize=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
