"""Rows of a batch as calls of openmsa: which keys and queries of a row count, and how documents divide them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from . import _documents, _masks


@dataclass
class Row:
    """Sequences of one row: prefix sums of its keys and queries (None: one sequence), and where padding lies among them, the
    orders that bring those that count to the front."""

    cu_seqlens_k: torch.Tensor
    cu_seqlens_q: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    queries: torch.Tensor | None = None


def rows_of(mask, position_ids, cu_seq_lens, batch: int, q_length: int) -> list[Row]:
    """One Row for each row of the batch.

    mask          of _masks
    position_ids  [q_length], [1 or batch, q_length] or None
    cu_seq_lens   (of queries, of keys), int32 prefix sums of documents of a single row, or None: read off position_ids
    """
    if cu_seq_lens is not None:
        return [_given_row(mask, cu_seq_lens, batch, q_length)]
    if position_ids is None:
        position_ids = _places_of_queries(mask, q_length)
    position_ids = position_ids if position_ids.ndim == 2 else position_ids.reshape(1, -1)
    if not _masks.is_traced(mask) and _are_single_sequences(mask, position_ids):
        end = mask[0, 0, 1, 0]
        return [Row(torch.stack((torch.zeros_like(end), end)))] * batch
    alike = len(mask) == len(position_ids) == 1
    row = _bounded_row if _masks.are_bounds(mask) else _marked_row
    rows = [
        row(mask[b % len(mask)].flatten(), position_ids[b % len(position_ids)].int(), q_length)
        for b in range(1 if alike else batch)
    ]
    return rows * batch if alike else rows


def _are_single_sequences(mask, position_ids) -> bool:
    """Whether no row has padding or documents: what is usual, found by one look for the whole batch."""
    if not _masks.are_bounds(mask):
        return False
    starts, offset = mask[:, 0, 0], mask[0, 0, 1] - position_ids.shape[1]
    is_followed = (position_ids[:, 1:] - position_ids[:, :-1]).eq(1).all()
    return bool(starts.eq(0).all() & is_followed & position_ids[:, 0].ge(offset).all())


def _places_of_queries(mask, q_length: int) -> torch.Tensor:
    """[1, q_length]"""
    offset = mask[0, 0, 1] - q_length if _masks.are_bounds(mask) else mask[0].flatten().ge(_masks.QUERY).int().argmax()
    return (torch.arange(q_length, device=mask.device) + offset).reshape(1, -1)


class LastRows:
    """The rows of the last forward, which all its layers share: looking at positions waits for a GPU once, not per layer."""

    def __init__(self):
        self._last = None

    def __call__(self, mask, position_ids, cu_seq_lens, batch, q_length) -> list[Row]:
        if _masks.is_traced(mask):
            return rows_of(mask, position_ids, cu_seq_lens, batch, q_length)
        tensors = [tensor for tensor in (mask, position_ids, *(cu_seq_lens or ())) if tensor is not None]
        key = (batch, q_length, [(id(tensor), _version(tensor)) for tensor in tensors])
        last = self._last
        if last is None or last[0] != key or any(reference() is None for reference in last[1]):
            last = (
                key,
                [weakref.ref(tensor) for tensor in tensors],
                rows_of(mask, position_ids, cu_seq_lens, batch, q_length),
            )
            self._last = last
        return last[2]


def _version(tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _given_row(mask, cu_seq_lens, batch: int, q_length: int) -> Row:
    cu_seq_lens_q, cu_seq_lens_k = (bounds.flatten().int() for bounds in cu_seq_lens)
    if batch != 1:
        raise ValueError(f"cu_seq_lens_q: expected a batch of one row, got {batch}")
    if not _masks.are_bounds(mask):
        raise ValueError("attention_mask: expected none with padding beside cu_seq_lens_q, got padding between keys")
    if not _masks.is_traced(mask):
        start, end = mask.flatten().tolist()
        for name, bounds, last in (("q", cu_seq_lens_q, q_length), ("k", cu_seq_lens_k, end)):
            if bounds[-1] != last:
                raise ValueError(f"cu_seq_lens_{name}: expected prefix sums up to {last}, got {int(bounds[-1])}")
        if start:
            raise ValueError(f"attention_mask: expected none with padding beside cu_seq_lens_q, got {start} in front")
    return Row(cu_seq_lens_k, cu_seq_lens_q)


def _bounded_row(bounds, positions, q_length: int) -> Row:
    first_key, end = bounds[0], bounds[1]
    num_queries = torch.full_like(end, q_length)
    divided = _bounds_of(positions, None, num_queries, first_key, end)
    if not _masks.is_traced(divided) and len(divided) == 2:
        return Row(divided)  # one sequence
    return Row(divided, _bounds_of_queries(divided, end, num_queries))


def _marked_row(marks, positions, q_length: int) -> Row:
    offset = marks.ge(_masks.QUERY).int().argmax()
    is_query = marks[offset + torch.arange(q_length, device=marks.device)].eq(_masks.QUERY)
    is_key = marks.eq(_masks.KEY) | marks.eq(_masks.QUERY)
    keys, queries = _front(is_key), _front(is_query)
    num_keys, num_queries = is_key.sum().int(), is_query.sum().int()
    steps = (queries[1:] - queries[:-1]).int()
    divided = _bounds_of(positions[queries], steps, num_queries, torch.zeros_like(num_keys), num_keys)
    return Row(divided, _bounds_of_queries(divided, num_keys, num_queries), keys, queries)


def _front(counts) -> torch.Tensor:
    """The order that brings what counts to the front."""
    return torch.argsort(counts.logical_not().int(), stable=True)


def _bounds_of(positions, steps, num_queries, first_key, end) -> torch.Tensor:
    if torch.compiler.is_compiling() and len(positions) != 1:
        return _documents.traced_document_bounds(positions, steps, num_queries, first_key, end)
    if not _masks.is_traced(positions):
        return _documents.document_bounds(positions, steps, num_queries, first_key, end)
    if len(positions) == 1:
        return _documents.bounds_of_one_query(positions[0], first_key, end)
    return _documents.bounds_of_any_number(positions, steps, num_queries, first_key, end)


def _bounds_of_queries(bounds, end, num_queries) -> torch.Tensor:
    """Prefix sums of the queries, which are the last keys."""
    return (bounds - (end - num_queries)).clamp(min=0).minimum(num_queries).int()
