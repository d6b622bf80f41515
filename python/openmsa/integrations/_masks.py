"""What transformers' mask function says to the attention function, once per forward, in one tensor.

transformers hands on unchanged what has four dimensions, as a finished mask does. Ours have one column, which no mask of
queries by keys has (every query sees a key of its own), so that a mask that the user made is not taken for one of them:

- bounds, int32 [1 or batch, 1, 2, 1]: the keys of a row are those from the first number up to the second, and the queries
  are the last of them. Padding to the left is what lies before; padding to the right is seen by no token that counts;
- marks, int8 [batch, 1, keys, 1], where padding lies between keys: PADDING, KEY, or, of tokens that are queries of this
  forward, QUERY and PADDED_QUERY. A traced graph gets them wherever there is an attention_mask: it cannot look.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

PADDING, KEY, QUERY, PADDED_QUERY = range(4)


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether numbers of `tensor` cannot be looked at: while torch.compile or torch.export traces, without any (meta and fake
    tensors), or while a CUDA graph captures."""
    if torch.compiler.is_compiling() or tensor.is_meta or hasattr(tensor, "fake_mode"):
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def bounds(start, end, device) -> torch.Tensor:
    """Ints, or tensors [batch] and [1]."""
    start, end = _int32(start, device), _int32(end, device)
    return torch.stack((start, end.expand_as(start)), 1)[:, None, :, None]


def _int32(number, device) -> torch.Tensor:
    """[1] or [batch]. An int is filled in on the device, for a graph captures no copy from the host."""
    if isinstance(number, torch.Tensor):
        return number.to(device, torch.int32).reshape(-1)
    return torch.full((1,), number, dtype=torch.int32, device=device)


def keys_that_count(attention_mask, q_offset, q_length: int, kv_length: int, device) -> torch.Tensor:
    """attention_mask [batch, length] of bools, or None."""
    end = q_offset + q_length
    if attention_mask is None:
        return bounds(0, end, device)
    if isinstance(end, int) and attention_mask.shape[1] < end:
        raise ValueError(
            f"attention_mask: expected [batch, {end}], a number for every key up to the last query, got "
            f"{list(attention_mask.shape)}"
        )
    counts = attention_mask.bool()[:, :kv_length]
    counts = pad(counts, (0, kv_length - counts.shape[1]))
    places = torch.arange(kv_length, device=counts.device)
    is_past = places < q_offset
    is_query = ~is_past & (places < end)
    if not is_traced(counts):
        counts = counts & (is_past | is_query)
        num_runs = counts[:, 0] + (counts[:, 1:] & ~counts[:, :-1]).sum(1)
        starts = counts.int().argmax(1)
        most_runs, last_start = torch.stack((num_runs.amax(), starts.amax())).tolist()
        if most_runs <= 1:
            return bounds(starts if last_start else 0, end, device)
    marks = torch.where(is_query, torch.where(counts, QUERY, PADDED_QUERY), torch.where(counts & is_past, KEY, PADDING))
    return marks.to(torch.int8)[:, None, :, None]


def are_bounds(mask: torch.Tensor) -> bool:
    return mask.dtype == torch.int32 and mask.ndim == 4 and mask.shape[1:] == (1, 2, 1)


def are_marks(mask: torch.Tensor) -> bool:
    return mask.dtype == torch.int8 and mask.ndim == 4 and mask.shape[1] == mask.shape[3] == 1
