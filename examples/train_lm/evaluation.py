"""What a model is worth on text that was held out: loss by kind of token, what its index branches choose, retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmsa.torch
import torch

from . import facts
from .sequences import IGNORED, KINDS, UNCOUNTED, Sequence, Sequences
from .training import Training

RETRIEVAL_LENGTHS = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10]


class Evaluation:
    """evaluation(training) -> figures: the held-out loss in nats per token of each kind; kl, block_recall and score_recall
    of each sparse layer."""

    def __init__(self, sequences: Sequences, length: int, count: int):
        self.sequences, self.length, self.count = sequences, length, count

    @torch.no_grad()
    def __call__(self, training: Training) -> dict:
        sums = torch.zeros(len(KINDS) + 1, 2, device=training.device)
        layers: list[dict] = []
        for number in range(self.count):
            sequence = self.sequences[number, self.length].to(training.device)
            recalls: list[torch.Tensor] = []
            with training.autocast():
                hidden, kl_losses = training.model(sequence, watch=lambda _, x: recalls.append(_recall(x, training)))  # noqa: B023
                losses = training.model.token_losses(hidden, sequence.targets)
            counted = sequence.targets != IGNORED
            sums.index_add_(
                0, sequence.kinds[counted].int(), torch.stack((losses, torch.ones_like(losses)), 1)[counted]
            )
            layers.append({"kl": kl_losses, "recall": torch.stack(recalls) if recalls else kl_losses[:, None]})
        loss = {kind: float(total / count) for kind, (total, count) in zip(KINDS, sums) if count}
        result = {"held_out": loss, "held_out_all": float((sums[:UNCOUNTED, 0].sum() / sums[:UNCOUNTED, 1].sum()))}
        if training.arm.is_sparse:
            recall = torch.stack([layer["recall"] for layer in layers]).mean(0)
            result |= {"kl": torch.stack([layer["kl"] for layer in layers]).mean(0).tolist()}
            result |= {"block_recall": recall[:, 0].tolist(), "score_recall": recall[:, 1].tolist()}
        return result


def _recall(layer: dict, training: Training) -> torch.Tensor:
    """[2]: block and score recall, means over queries and KV heads."""
    options = {"block_size": training.model.shape.block_size, "topk": training.model.shape.topk}
    indices = layer["topk_indices"]
    if indices is None:  # dense attention, as long as the index branch warms up
        indices = openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], **options)
    return torch.stack([x.mean() for x in openmsa.torch.block_recall(layer["q"], layer["k"], indices, **options)])


# ------------------------------------------------------------------------------------------------------------ retrieval


@torch.no_grad()
def retrieval(training: Training, sequences: Sequences, lengths: list[int], count: int) -> dict[int, float]:
    """The share of right answers over texts of so many tokens, the fact at depths from the first to the last line."""
    training.model.set_warmup(False)
    shares = {}
    for length in lengths:
        depths = np.linspace(0, 0.95, count)
        right = [_answers(training, sequences, length, depth, number) for number, depth in enumerate(depths)]
        shares[length] = sum(right) / len(right)
    return shares


def _answers(training: Training, sequences: Sequences, length: int, depth: float, number: int) -> bool:
    """Whether every token of the value is the likeliest one after those before it, which is what greedy sampling gives."""
    corpus, draw = sequences.corpus, np.random.default_rng((sequences.recipe.seed, 2, number, length))
    key, value = facts.key_and_value(draw)
    question, answer = corpus.encode(facts.question(key)), corpus.encode(facts.answer(value))
    passage = corpus.passage(draw, length - 2 * len(question) - 2 * len(answer))
    ends = np.flatnonzero(corpus.ends_line[passage]) + 1
    place = ends[int(depth * len(ends))] if len(ends) else 0
    ids = np.concatenate((passage[:place], question, answer, passage[place:], question, answer))
    sequence = _plain(torch.from_numpy(ids)).to(training.device)
    with training.autocast():
        hidden, _ = training.model(sequence)
        likeliest = training.model.logits(hidden[-len(answer) - 1 : -1]).argmax(-1)
    return likeliest.tolist() == answer.tolist()


def _plain(ids: torch.Tensor) -> Sequence:
    """Text alone."""
    from .pages import PATCH_PIXELS

    none = torch.zeros(0, dtype=torch.int64)
    return Sequence(
        ids, ids, torch.zeros_like(ids, dtype=torch.int8), torch.zeros(0, PATCH_PIXELS, dtype=torch.uint8), none
    )


def path_of(folder: Path) -> Path:
    return folder / "retrieval.json"
