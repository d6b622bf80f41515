"""Documents of a packed row: where each begins among the row's keys, read off the positions of its queries.

A query at position 0 begins a document, and so does one whose position is not its neighbour's plus one. On a cache the
first query's document began as many keys ago as its position says, so that the keys of documents before it stay unseen in
later steps too. The library gets documents as sequences of a batch: nothing is copied."""

from __future__ import annotations

import torch


def document_bounds(positions, steps, num_queries, first_key, end) -> torch.Tensor:
    """Prefix sums int32 [number of documents + 1, or + 2 where keys come before the first] of a row's keys.

    positions     [q_length] of the queries; steps [q_length - 1]: how many keys each lies behind the one before it
    num_queries   so many of them, from the first, count: tensor []
    first_key     keys from here to `end` count: tensors []
    """
    begins, first = _begins(positions, steps, num_queries, first_key, end)
    offset = end - num_queries
    later = begins.nonzero().flatten() + (offset + 1)
    head = torch.zeros_like(first).expand(1 if bool(first > 0) else 0)
    return torch.cat((head, first[None], later, end[None])).int()


def bounds_of_one_query(position, first_key, end) -> torch.Tensor:
    """[3]: keys before the query's document, and those of it. Reads no number."""
    first = _first_begin(position, end - 1, first_key)
    return torch.stack((torch.zeros_like(first), first, end)).int()


def bounds_of_any_number(positions, steps, num_queries, first_key, end) -> torch.Tensor:
    """[q_length + 2]: as document_bounds, with empty documents in between, for where no number can be read."""
    begins, first = _begins(positions, steps, num_queries, first_key, end)
    places = torch.arange(1, len(positions), device=positions.device) + (end - num_queries)
    later = torch.where(begins, places, first).cummax(0).values
    return torch.cat((torch.zeros_like(first)[None], first[None], later, end[None])).int()


def _first_begin(position, offset, first_key):
    return torch.maximum(offset - position.clamp(min=0), first_key)


def _begins(positions, steps, num_queries, first_key, end):
    """Which queries from the second on begin a document, and the first key of the first query's one."""
    offset = end - num_queries
    first = torch.minimum(_first_begin(positions[0], offset, first_key), end)
    jumps = positions[1:] - positions[:-1]
    places = torch.arange(1, len(positions), device=positions.device)
    begins = (jumps != 1) & (jumps != steps) if steps is not None else jumps != 1
    return begins & (places < num_queries) & (places + offset > first), first


@torch.library.custom_op("openmsa::document_bounds", mutates_args=())
def traced_document_bounds(
    positions: torch.Tensor,
    steps: torch.Tensor | None,
    num_queries: torch.Tensor,
    first_key: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """document_bounds as one operator, whose result has a length that a traced graph does not know."""
    return document_bounds(positions, steps, num_queries, first_key, end)


@traced_document_bounds.register_fake
def _(positions, steps, num_queries, first_key, end):
    return positions.new_empty(torch.library.get_ctx().new_dynamic_size(min=2), dtype=torch.int32)
