"""A paged cache of keys and values for serving."""

from __future__ import annotations

import torch


class KVCache:
    """Pages of k, v and index_k for `max_batch` requests and `num_layers` layers, which share one block table.

    Each request has a slot, row `slot` of block_table [max_batch, max_pages] and seqlens_k [max_batch]; a free slot has
    length 0, which attention answers with zeros. Both tensors and the caches keep their addresses, so that a CUDA graph
    that reads them stays valid while requests come and go.

    >>> import torch
    >>> cache = KVCache(num_pages=8, page_size=32, num_heads_kv=2, head_dim=64, index_dim=64, max_batch=2, max_seqlen_k=128)
    >>> slot = cache.add(); cache.extend(slot, 40); cache.upload()
    >>> k, index_k = torch.randn(40, 2, 64), torch.randn(40, 64)
    >>> cache.append(0, k, k, index_k, cu_seqlens_q=torch.tensor([0, 40, 40], dtype=torch.int32))
    >>> cache.seqlens_k.tolist(), cache.free_pages
    ([40, 0], 6)
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_heads_kv: int,
        head_dim: int,
        index_dim: int,
        max_batch: int,
        max_seqlen_k: int,
        num_layers: int = 1,
        block_size: int = 128,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        pages = (num_layers, num_pages, page_size)
        self.k_cache = torch.zeros(*pages, num_heads_kv, head_dim, dtype=dtype, device=device)
        self.v_cache = torch.zeros_like(self.k_cache)
        self.index_k_cache = torch.zeros(*pages, index_dim, dtype=dtype, device=device)
        self.seqlens_k = torch.zeros(max_batch, dtype=torch.int32, device=device)
        max_pages = -(-max_seqlen_k // page_size)
        self.block_table = torch.full((max_batch, max_pages), -1, dtype=torch.int32, device=device)
        self.page_size, self.block_size, self.max_seqlen_k = page_size, block_size, max_seqlen_k
        self._free = list(range(num_pages))[::-1]
        self._slots = list(range(max_batch))[::-1]
        self._lengths = torch.zeros(max_batch, dtype=torch.int32)
        self._table = torch.full((max_batch, max_pages), -1, dtype=torch.int32)
        self._pages: dict[int, list[int]] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def add(self) -> int:
        """A slot for a new request. Raises ValueError where all are taken."""
        if not self._slots:
            raise ValueError(f"slot: expected a free one of {len(self._lengths)}, got none")
        slot = self._slots.pop()
        self._pages[slot] = []
        return slot

    def remove(self, slot: int) -> None:
        """Gives a request's pages and slot back."""
        self._free.extend(reversed(self._held(slot)))
        del self._pages[slot]
        self._slots.append(slot)
        self._lengths[slot] = 0
        self._table[slot] = -1

    def extend(self, slot: int, num_tokens: int) -> None:
        """Makes room for so many more tokens of a request. Raises ValueError where pages or max_seqlen_k do not do."""
        held = self._held(slot)
        length = int(self._lengths[slot]) + num_tokens
        if num_tokens < 0 or length > self.max_seqlen_k:
            raise ValueError(f"num_tokens: expected a length up to max_seqlen_k = {self.max_seqlen_k}, got {length}")
        missing = -(-length // self.page_size) - len(held)
        if missing > len(self._free):
            raise ValueError(f"num_tokens: expected room in {len(self._free)} free pages, got a need of {missing}")
        for _ in range(missing):
            self._table[slot, len(held)] = self._free[-1]
            held.append(self._free.pop())
        self._lengths[slot] = length

    def upload(self) -> None:
        """Brings lengths and block table to the device; once per step, after add, extend and remove."""
        self.seqlens_k.copy_(self._lengths, non_blocking=True)
        self.block_table.copy_(self._table, non_blocking=True)

    def append(self, layer: int, k, v, index_k, *, cu_seqlens_q) -> None:
        """Stores the new tokens of all slots: the last ones of each length, divided by cu_seqlens_q."""
        from . import append_kv

        append_kv(k, v, index_k, **self.tensors(layer), cu_seqlens_q=cu_seqlens_q, block_size=self.block_size)

    def tensors(self, layer: int) -> dict[str, torch.Tensor]:
        """The cache of one layer as keyword arguments of openmsa's functions."""
        return {
            "k_cache": self.k_cache[layer],
            "v_cache": self.v_cache[layer],
            "index_k_cache": self.index_k_cache[layer],
            "seqlens_k": self.seqlens_k,
            "block_table": self.block_table,
        }

    def _held(self, slot: int) -> list[int]:
        if slot not in self._pages:
            raise ValueError(f"slot: expected one that add() returned, got {slot}")
        return self._pages[slot]
