"""What a model is worth on text that was held out: loss by kind of token, what its index branches choose, retrieval."""

from __future__ import annotations

import numpy as np
import openmsa.torch
import torch

from . import facts
from .pages import PATCH_PIXELS
from .sequences import IGNORED, KINDS, UNCOUNTED, Sequence, Sequences
from .settings import Shape
from .training import Training

RETRIEVAL_LENGTHS = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10]


class Evaluation:
    """evaluation(training) -> figures: the held-out loss in nats per token of each kind; kl, block_recall and score_recall
    of each sparse layer."""

    def __init__(self, sequences: Sequences, length: int, count: int):
        self.sequences, self.length, self.count = sequences, length, count

    @torch.no_grad()
    def __call__(self, training: Training) -> dict:
        sums = torch.zeros(len(KINDS) + 1, 2, device=training.device)  # of losses, and of tokens, by kind
        kl, recall = [], []
        for number in range(self.count):
            sequence = self.sequences[number, self.length].to(training.device)
            recalls: list[torch.Tensor] = []
            with training.autocast():
                hidden, kl_losses = training.model(sequence, watch=_Recall(training.model.shape, recalls))
                losses = training.model.token_losses(hidden, sequence.targets)
            terms = torch.stack((losses, (sequence.targets != IGNORED).float()), 1)
            sums.index_add_(0, sequence.kinds.int(), terms)
            kl.append(kl_losses)
            if recalls:
                recall.append(torch.stack(recalls))
        sums = sums[:UNCOUNTED].cpu()
        result = {"held_out": {kind: float(loss / count) for kind, (loss, count) in zip(KINDS, sums) if count}}
        result["held_out_all"] = float(sums[:, 0].sum() / sums[:, 1].sum())
        if recall:
            block_recall, score_recall = torch.stack(recall).mean(0).unbind(1)
            by_layer = {"kl": torch.stack(kl).mean(0), "block_recall": block_recall, "score_recall": score_recall}
            result |= {name: figures.tolist() for name, figures in by_layer.items()}
        return result


class _Recall:
    """Adds [2] of every layer that it is shown: block and score recall, means over queries and KV heads."""

    def __init__(self, shape: Shape, recalls: list[torch.Tensor]):
        self.options, self.recalls = {"block_size": shape.block_size, "topk": shape.topk}, recalls

    def __call__(self, number: int, layer: dict) -> None:
        indices = layer["topk_indices"]
        if indices is None:  # dense attention, as long as the index branch warms up
            indices = openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], **self.options)
        found = openmsa.torch.block_recall(layer["q"], layer["k"], indices, **self.options)
        self.recalls.append(torch.stack([recall.mean() for recall in found]))


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
    keys = facts.keys(corpus.words)
    key, value = keys[draw.integers(len(keys))], facts.value(corpus.words, draw)
    question, answer = corpus.encode(facts.question(key)), corpus.encode(value)
    passage = corpus.passage(draw, length - 2 * len(question) - 2 * len(answer))
    ends = corpus.line_ends(passage)
    place = ends[int(depth * len(ends))]
    ids = np.concatenate((passage[:place], question, answer, passage[place:], question, answer))
    sequence = _plain(torch.from_numpy(ids)).to(training.device)
    with training.autocast():
        hidden, _ = training.model(sequence)
        likeliest = training.model.logits(hidden[-len(answer) - 1 : -1]).argmax(-1)
    return likeliest.tolist() == answer.tolist()


def _plain(ids: torch.Tensor) -> Sequence:
    """Text alone."""
    none = torch.zeros(0, dtype=torch.int64)
    return Sequence(
        ids, ids, torch.zeros_like(ids, dtype=torch.int8), torch.zeros(0, PATCH_PIXELS, dtype=torch.uint8), none
    )
