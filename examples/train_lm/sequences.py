"""What a step reads. A sequence is a passage of text of several files; in some, pages stand in front of the text that they
show; facts are told and asked for between its lines. Everything follows from the seed and the number of the sequence."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch

from . import facts, pages
from .settings import Recipe
from .text import IMAGE, Corpus

# Kinds of tokens: text; text that a page has shown; answers to questions; facts, questions and patches, which nothing
# predicts and no figure counts.
KINDS = ("text", "shown", "answer")
TEXT, SHOWN, ANSWER, UNCOUNTED = range(4)
IGNORED = -100  # target of cross_entropy where a patch follows
# Of training sequences, every so many has pages.
WITH_PAGES = 3
# A fact is told once and asked for so many times: near, where a model begins to look facts up, and far, which is wanted of it.
NEAR, FAR = 2, 1
QUESTIONS = NEAR + FAR
SHORTEST = 16  # tokens from a fact to a question, or more, to the end of a line


@dataclasses.dataclass
class Sequence:
    ids: torch.Tensor  # [length], IMAGE where a patch stands
    targets: torch.Tensor  # [length], the token after each, or IGNORED
    kinds: torch.Tensor  # [length], of the targets
    patches: torch.Tensor  # [patches of all pages, PATCH_PIXELS] of 0 or 1
    places: torch.Tensor  # [patches of all pages] in ids

    def to(self, device: str) -> Sequence:
        tensors = [getattr(self, field.name) for field in dataclasses.fields(self)]
        if device == "cuda":  # so that no copy waits for the step before
            tensors = [tensor.pin_memory() for tensor in tensors]
        return Sequence(*(tensor.to(device, non_blocking=True) for tensor in tensors))


@dataclasses.dataclass
class _Piece:
    """To be inserted before the token at `place` of the passage."""

    place: int
    ids: np.ndarray
    kinds: np.ndarray
    patches: np.ndarray | None = None


class Sequences:
    """Sequences of a part of the corpus by their number."""

    def __init__(self, corpus: Corpus, recipe: Recipe, is_held_out: bool):
        self.corpus, self.recipe, self.is_held_out = corpus, recipe, is_held_out

    def __getitem__(self, number_and_length: tuple[int, int]) -> Sequence:
        number, length = number_and_length
        recipe, lengthening = self.recipe, length / self.recipe.context
        draw = np.random.default_rng((recipe.seed, int(self.is_held_out), number))
        has_pages = self.is_held_out or number % WITH_PAGES == 0
        num_pages = round(recipe.pages * lengthening) * has_pages
        lines = self._facts(draw, round(recipe.facts * lengthening))
        fact_tokens = (1 + QUESTIONS) * sum(len(ids) for ids, _ in lines)
        inserted = num_pages * pages.num_patches(recipe.page_lines) + fact_tokens
        passage = self.corpus.passage(draw, max(length + 1 - inserted, 2))
        kinds = np.full(len(passage), TEXT, np.int8)
        pieces = self._placed(lines, passage, draw) + self._pages(passage, kinds, draw, num_pages)
        return _joined(passage, kinds, pieces, length)

    def _facts(self, draw, count: int) -> list[tuple[np.ndarray, int]]:
        """Of each, the tokens of its line, and where its answer begins. No key twice, as far as there are words."""
        words, keys = self.corpus.words, facts.keys(self.corpus.words)
        order = np.concatenate([draw.permutation(len(keys)) for _ in range(-(-count // len(keys)))])
        lines = []
        for number in order[:count]:
            question, answer = (self.corpus.encode(x) for x in (facts.question(keys[number]), facts.value(words, draw)))
            lines.append((np.concatenate((question, answer)), len(question)))
        return lines

    def _placed(self, lines, passage, draw) -> list[_Piece]:
        """Each fact's line once to be told and then to be asked for, between lines of the passage; near questions at
        distances of any magnitude, those far at any distance to the end."""
        ends = self.corpus.line_ends(passage)
        pieces = []
        for ids, begin in lines:
            told = draw.uniform(0, len(passage))
            farthest = max(len(passage) - told, SHORTEST)
            near = SHORTEST * (farthest / SHORTEST) ** draw.uniform(size=NEAR)
            far = draw.uniform(0, farthest, FAR)
            for visit, position in enumerate([told, *(told + near), *(told + far)]):
                kinds = np.full(len(ids), UNCOUNTED, np.int8)
                kinds[begin:] = ANSWER if visit else UNCOUNTED
                place = ends[min(np.searchsorted(ends, position), len(ends) - 1)]
                pieces.append(_Piece(int(place), ids, kinds))
        return pieces

    def _pages(self, passage, kinds, draw, count: int) -> list[_Piece]:
        """Pages in equal parts of the passage; `kinds` of what they show becomes SHOWN."""
        pieces = []
        for begin, end in itertools.pairwise(np.linspace(0, len(passage), count + 1).astype(int) if count else []):
            text_tokens = min(pages.TOKENS_PER_LINE * self.recipe.page_lines, (end - begin) // 2)
            place = int(draw.integers(begin, end - text_tokens))
            shown = slice(place, place + text_tokens)
            kinds[shown] = SHOWN
            patches = pages.patches(self.corpus.decode(passage[shown]), self.recipe.page_lines)
            ids = np.full(len(patches), IMAGE, np.int64)
            pieces.append(_Piece(place, ids, np.full(len(ids), UNCOUNTED, np.int8), patches))
        return pieces


def _joined(passage, kinds, pieces: list[_Piece], length: int) -> Sequence:
    ids_parts, kinds_parts, patches, begin = [], [], [], 0
    for piece in sorted(pieces, key=lambda piece: piece.place):
        ids_parts += [passage[begin : piece.place], piece.ids]
        kinds_parts += [kinds[begin : piece.place], piece.kinds]
        patches += [piece.patches] * (piece.patches is not None)
        begin = piece.place
    ids = np.concatenate([*ids_parts, passage[begin:]])[: length + 1]
    kinds = np.concatenate([*kinds_parts, kinds[begin:]])[1 : length + 1]
    targets = np.where(ids[1:] == IMAGE, IGNORED, ids[1:])
    ids = ids[:length]
    places = np.flatnonzero(ids == IMAGE)
    pixels = np.concatenate([np.zeros((0, pages.PATCH_PIXELS), np.uint8), *patches])[: len(places)]
    return Sequence(*(torch.from_numpy(array) for array in (ids, targets, kinds, pixels, places)))
