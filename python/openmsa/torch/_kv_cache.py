"""A paged cache of keys and values for serving."""

from __future__ import annotations

import torch


class KVCache:
    """Pages of k, v and index_k for `max_batch` requests and `num_layers` layers, which share one block table.

    Each request has a slot, row `slot` of block_table [max_batch, max_pages] and seqlens_k [max_batch]; a free slot has
    length 0, which attention answers with zeros. Both tensors and the caches keep their addresses, so that a CUDA graph
    that reads them stays valid while requests come and go.

    page_size     tokens per page, a divisor of block_size
    dtype         of the layer: what append takes
    kv_dtype, index_dtype
                  of k_cache and v_cache, and of index_k_cache: None for dtype, or torch.float8_e4m3fn
    token_scales  fp8 caches get a scale per token, which append writes; otherwise numbers are stored as they are
    index_block_scales
                  an fp8 index_k_cache gets a scale per kv_block instead, which append writes
    num_heads_kv, index_dim
                  0 heads: a cache of index keys alone; 0 channels: one of k and v alone
    shard_count, shard_rank
                  the cache holds a shard of each request, kv_block b where b % shard_count = shard_rank; lengths are those
                  of whole requests, and so is max_seqlen_k. For functions that take the same two arguments

    add, extend, truncate and remove change the host's copy of lengths and block table; upload brings it to the device once
    per step. append and tensors refuse to work on a copy that was changed and not uploaded.

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
        kv_dtype: torch.dtype | None = None,
        index_dtype: torch.dtype | None = None,
        token_scales: bool = False,
        index_block_scales: bool = False,
        shard_count: int = 1,
        shard_rank: int = 0,
        device: torch.device | str = "cpu",
    ):
        sizes = {name: value for name, value in locals().items() if name.startswith(("num_", "max_")) or "_dim" in name}
        sizes |= {"page_size": page_size, "block_size": block_size, "shard_count": shard_count}
        for name, size in sizes.items():
            least = 0 if name == "index_dim" or (name == "num_heads_kv" and index_dim) else 1
            if size < least:
                raise ValueError(f"{name}: expected at least {least}, got {size}")
        if block_size % page_size:
            raise ValueError(f"page_size: expected a divisor of block_size = {block_size}, got {page_size}")
        if not 0 <= shard_rank < shard_count:
            raise ValueError(f"shard_rank: expected 0 to {shard_count - 1}, got {shard_rank}")
        kv_dtype, index_dtype = (
            _cache_dtype(name, of, dtype) for name, of in (("kv", kv_dtype), ("index", index_dtype))
        )
        make = lambda *shape, dtype: torch.zeros(num_layers, *shape, dtype=dtype, device=device)  # noqa: E731
        self.k_cache = make(num_pages, page_size, num_heads_kv, head_dim, dtype=kv_dtype)
        self.v_cache = torch.zeros_like(self.k_cache)
        self.index_k_cache = make(num_pages, page_size, index_dim, dtype=index_dtype)
        self._scales: dict[str, torch.Tensor] = {}
        if token_scales and kv_dtype != dtype and num_heads_kv:
            self._scales |= {
                name: make(num_heads_kv, num_pages * page_size, dtype=torch.float32) for name in ("k_scale", "v_scale")
            }
        if index_block_scales:
            if index_dtype == dtype or page_size == 1 or num_pages == 1:
                got = f"one of {index_dtype} with {num_pages} pages of {page_size}"
                raise ValueError(
                    f"index_block_scales: expected an fp8 index_k_cache of several pages and tokens, got {got}"
                )
            self._scales["index_k_scale"] = make(num_pages, dtype=torch.float32)
        elif token_scales and index_dtype != dtype and index_dim:
            self._scales["index_k_scale"] = make(num_pages * page_size, dtype=torch.float32)
        if token_scales and not self._scales:
            raise ValueError("token_scales: expected False without an fp8 cache, got True")
        self.seqlens_k = torch.zeros(max_batch, dtype=torch.int32, device=device)
        self.page_size, self.block_size, self.max_seqlen_k, self.dtype = page_size, block_size, max_seqlen_k, dtype
        self.shard_count, self.shard_rank = shard_count, shard_rank
        self._has_kv, self._has_index = num_heads_kv > 0, index_dim > 0
        max_pages = self._pages_per_block * -(-max_seqlen_k // (block_size * shard_count))  # of any shard
        self.block_table = torch.full((max_batch, max_pages), -1, dtype=torch.int32, device=device)
        self._free = list(range(num_pages))[::-1]
        self._slots = list(range(max_batch))[::-1]
        self._lengths = torch.zeros(max_batch, dtype=torch.int32, device="cpu")
        self._table = torch.full((max_batch, max_pages), -1, dtype=torch.int32, device="cpu")
        self._pages: dict[int, list[int]] = {}
        self._is_uploaded = True

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
        self._is_uploaded = False

    def length(self, slot: int) -> int:
        """Tokens of a request."""
        self._held(slot)
        return int(self._lengths[slot])

    def extend(self, slot: int, num_tokens: int) -> None:
        """Makes room for so many more tokens of a request. Raises ValueError where pages or max_seqlen_k do not do."""
        held = self._held(slot)
        if num_tokens < 0:
            raise ValueError(f"num_tokens: expected at least 0, got {num_tokens}; truncate takes tokens away")
        length = int(self._lengths[slot]) + num_tokens
        if length > self.max_seqlen_k:
            raise ValueError(f"num_tokens: expected a length up to max_seqlen_k = {self.max_seqlen_k}, got {length}")
        missing = self._pages_of(length) - len(held)
        if missing > len(self._free):
            raise ValueError(f"num_tokens: expected room in {len(self._free)} free pages, got a need of {missing}")
        for _ in range(missing):
            self._table[slot, len(held)] = self._free[-1]
            held.append(self._free.pop())
        self._set_length(slot, length)

    def truncate(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens of a request and gives pages behind them back: after speculation that was not
        accepted, or to answer another question about the same text."""
        held = self._held(slot)
        if not 0 <= length <= int(self._lengths[slot]):
            raise ValueError(f"length: expected 0 to the request's {int(self._lengths[slot])} tokens, got {length}")
        while len(held) > self._pages_of(length):
            self._free.append(held.pop())
            self._table[slot, len(held)] = -1
        self._set_length(slot, length)

    def upload(self) -> None:
        """Brings lengths and block table to the device; once per step, after add, extend, truncate and remove."""
        self.seqlens_k.copy_(self._lengths, non_blocking=True)
        self.block_table.copy_(self._table, non_blocking=True)
        self._is_uploaded = True

    def append(self, layer: int, k=None, v=None, index_k=None, *, cu_seqlens_q) -> None:
        """Stores the new tokens of all slots: the last ones of each length, divided by cu_seqlens_q. A cache of a shard
        takes the tokens of whole requests and leaves those of other shards out."""
        from . import append_kv

        given = {"k": k, "v": v, "index_k": index_k}
        new = {name: tensor for name, tensor in given.items() if tensor is not None}
        for name, tensor in new.items():
            if torch.is_autocast_enabled(tensor.device.type):
                new[name] = tensor = tensor.to(self.dtype)
            if tensor.dtype != self.dtype:
                raise ValueError(f"{name}: expected the cache's dtype {self.dtype}, got {tensor.dtype}")
        options = {"cu_seqlens_q": cu_seqlens_q, "block_size": self.block_size}
        if self.shard_count > 1:
            options |= {"shard_count": self.shard_count, "shard_rank": self.shard_rank}
        append_kv(**new, **self.tensors(layer), **options)

    def tensors(self, layer: int) -> dict[str, torch.Tensor]:
        """The cache of one layer as keyword arguments of openmsa's functions."""
        if not self._is_uploaded:
            raise RuntimeError("KVCache: expected upload() after extend, truncate or remove, got a call before it")
        caches = {"k_cache": self.k_cache, "v_cache": self.v_cache} if self._has_kv else {}
        if self._has_index:
            caches["index_k_cache"] = self.index_k_cache
        return {
            **{name: of_layers[layer] for name, of_layers in (caches | self._scales).items()},
            "seqlens_k": self.seqlens_k,
            "block_table": self.block_table,
        }

    @property
    def _pages_per_block(self) -> int:
        return self.block_size // self.page_size

    def _pages_of(self, length: int) -> int:
        """That the cache needs of a request of so many tokens: of a shard, those of its kv_blocks."""
        pages = -(-length // self.page_size)
        rounds, rest = divmod(pages, self._pages_per_block * self.shard_count)
        before = self._pages_per_block * self.shard_rank  # of lower ranks, in the last round
        return rounds * self._pages_per_block + min(max(rest - before, 0), self._pages_per_block)

    def _set_length(self, slot: int, length: int) -> None:
        if length != int(self._lengths[slot]):
            self._lengths[slot] = length
            self._is_uploaded = False

    def _held(self, slot: int) -> list[int]:
        if slot not in self._pages:
            raise ValueError(f"slot: expected one that add() returned, got {slot}")
        return self._pages[slot]


def _cache_dtype(name: str, dtype: torch.dtype | None, of_layer: torch.dtype) -> torch.dtype:
    if dtype not in (None, of_layer, torch.float8_e4m3fn):
        raise ValueError(f"{name}_dtype: expected None, {of_layer} or torch.float8_e4m3fn, got {dtype}")
    return of_layer if dtype is None else dtype
