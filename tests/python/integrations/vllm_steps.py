"""Steps of a serving engine: requests with their queries, keys in pages, and what attention has to give for them, in
float64. Pages lie in the order of one of the engine's layouts; whatever no request owns is NaN, and no page number."""

from dataclasses import dataclass, field

import torch

PAGE_SIZE = HEAD_DIM = 128
LAYOUTS = ("HND", "NHD", "layers between pages", "layers and heads swapped")
TENSORS = ("query", "index_query", "kv_cache", "index_cache", "block_table", "seq_lens")


@dataclass
class Step:
    """decodes: keys of each request with `step` queries; prefills: (queries, keys) of each; padding: requests behind
    the decodes that fill up a graph, with rows but no keys."""

    decodes: tuple = ()
    step: int = 1
    prefills: tuple = ()
    padding: int = 0
    heads_q: int = 4
    heads_kv: int = 2
    topk: int = 3
    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype | None = None
    index_dtype: torch.dtype = torch.bfloat16
    layout: str = "HND"
    seed: int = 0
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    device: str = "cpu"
    requests: list = field(init=False)

    def __post_init__(self):
        self.requests = [(self.step, keys) for keys in self.decodes] + [(self.step, 0)] * self.padding
        self.requests += list(self.prefills)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.num_decodes = len(self.decodes) + self.padding
        self.num_tokens = sum(queries for queries, _ in self.requests)
        self._place_pages()
        self._fill_caches()
        self.query = self._random(self.num_tokens, self.heads_q * HEAD_DIM).to(self.dtype)
        self.index_query = self._random(self.num_tokens, self.heads_kv * HEAD_DIM).to(self.index_dtype)
        for name in TENSORS:
            setattr(self, name, _placed(getattr(self, name), device=self.device))

    def _random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def _place_pages(self):
        num_pages = [-(-keys // PAGE_SIZE) for _, keys in self.requests]
        self.num_pages = sum(num_pages) + 3
        order = torch.randperm(self.num_pages, generator=self.generator).int()
        self.block_table = torch.full((len(self.requests), max(*num_pages, 1) + 1), 10**6, dtype=torch.int32)
        used = 0
        for row, count in zip(self.block_table, num_pages):
            row[:count] = order[used : used + count]
            used += count
        self.seq_lens = torch.tensor([keys for _, keys in self.requests], dtype=torch.int32)

    def _fill_caches(self):
        """kv_cache [pages, heads_kv, 128, 256] and index_cache [pages, 128, 128], with the strides of the layout."""
        self.kv_cache, self.index_cache = _empty_caches(self.layout, self.num_pages, self.heads_kv)
        for row, (_, keys) in zip(self.block_table, self.requests):
            for first in range(0, keys, PAGE_SIZE):
                page, count = row[first // PAGE_SIZE], min(PAGE_SIZE, keys - first)
                self.kv_cache[page, :, :count] = self._random(self.heads_kv, count, 2 * HEAD_DIM)
                self.index_cache[page, :count] = self._random(count, HEAD_DIM)
        self.kv_cache = _placed(self.kv_cache, dtype=self.kv_dtype or self.dtype)
        self.index_cache = _placed(self.index_cache, dtype=self.index_dtype)

    def metadata(self, classes, block_table=None):
        """As the engine's builder makes it, of `classes`: metadata of a step, of its prefills, of its decodes."""
        step_cls, prefill_cls, decode_cls = classes
        table = self.block_table if block_table is None else block_table
        queries = torch.tensor([queries for queries, _ in self.requests], dtype=torch.int32)
        num, num_tokens = self.num_decodes, self.num_decodes * self.step
        known = {
            "decode_query_len": self.step,
            "max_decode_query_len": self.step,
            "max_query_len": int(queries.max()),
            "max_seq_len": int(self.seq_lens.max()),
            "context_lens": (self.seq_lens - queries.to(self.device)).clamp(min=0)[num:],
            "total_kv_blocks": 0,
            "cu_seqlens_q": _prefix_sums(queries[num:]).to(self.device),
            "cu_seqlens_k": _prefix_sums(self.seq_lens[num:].cpu()).to(self.device),
        }

        def side(cls, rows):
            values = known | {"seq_lens": self.seq_lens[rows], "block_table": table[rows]}
            names = [name for name in cls.__dataclass_fields__ if name in values]
            return cls(**{name: values[name] for name in names})

        return step_cls(
            seq_lens=self.seq_lens,
            max_seq_len=known["max_seq_len"],
            slot_mapping=torch.zeros(self.num_tokens, dtype=torch.int64, device=self.device),
            num_actual_tokens=self.num_tokens,
            num_decodes=num,
            num_decode_tokens=num_tokens,
            num_prefills=len(self.prefills),
            num_prefill_tokens=self.num_tokens - num_tokens,
            prefill=side(prefill_cls, slice(num, None)) if self.prefills else None,
            decode=side(decode_cls, slice(0, num)) if num else None,
        )

    def expected(self):
        """[num_tokens, heads_q * head_dim] in float64, on the CPU."""
        o = torch.zeros(self.num_tokens, self.heads_q, HEAD_DIM, dtype=torch.float64)
        q = self.query.cpu().double().view(-1, self.heads_q, HEAD_DIM)
        index_q = self.index_query.cpu().double().view(-1, self.heads_kv, HEAD_DIM)
        begin = 0
        for row, (queries, keys) in zip(self.block_table.cpu(), self.requests):
            if keys:
                rows = slice(begin, begin + queries)
                o[rows] = self._attend(q[rows], index_q[rows], *self._keys_of(row, keys))
            begin += queries
        return o.flatten(1)

    def _keys_of(self, row, keys):
        """k, v [keys, heads_kv, head_dim] times their scales, index_k [keys, head_dim]."""
        pages = row[: -(-keys // PAGE_SIZE)].long()
        kv = self.kv_cache.cpu().double()[pages].transpose(1, 2).flatten(0, 1)[:keys]
        k, v = kv[..., :HEAD_DIM], kv[..., HEAD_DIM:]
        slots = (pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten()[:keys]
        k, v = (_scaled(x, scale, slots) for x, scale in ((k, self.k_scale), (v, self.v_scale)))
        return k, v, self.index_cache.cpu().double()[pages].flatten(0, 1)[:keys]

    def _attend(self, q, index_q, k, v, index_k):
        num_blocks = -(-len(k) // PAGE_SIZE)
        positions = torch.arange(len(q)) + len(k) - len(q)
        seen = torch.arange(len(k)) <= positions[:, None]
        scores = torch.einsum("qhd,kd->hqk", index_q, index_k).masked_fill(~seen, float("-inf"))
        scores = torch.nn.functional.pad(scores, (0, num_blocks * PAGE_SIZE - len(k)), value=float("-inf"))
        scores = scores.unflatten(2, (num_blocks, PAGE_SIZE)).amax(-1)
        blocks = torch.arange(num_blocks)
        scores = scores.masked_fill(blocks == positions[:, None] // PAGE_SIZE, float("inf"))
        chosen = torch.zeros(scores.shape, dtype=torch.bool)
        chosen.scatter_(2, scores.topk(min(self.topk, num_blocks)).indices, True)
        mask = chosen.repeat_interleave(PAGE_SIZE, 2)[..., : len(k)] & seen
        group = self.heads_q // self.heads_kv
        mask, k, v = mask.repeat_interleave(group, 0), k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def _empty_caches(layout, num_pages, heads):
    nan, wide = float("nan"), 2 * HEAD_DIM
    if layout == "HND":
        kv, index = (
            torch.full((num_pages, heads, PAGE_SIZE, wide), nan),
            torch.full((num_pages, PAGE_SIZE, HEAD_DIM), nan),
        )
    elif layout == "NHD":
        kv, index = (
            torch.full((num_pages, PAGE_SIZE, heads, wide), nan),
            torch.full((num_pages, PAGE_SIZE, HEAD_DIM), nan),
        )
        kv = kv.transpose(1, 2)
    elif layout == "layers between pages":
        kv = torch.full((num_pages, 3, heads, PAGE_SIZE, wide), nan)[:, 1]
        index = torch.full((num_pages, 3, PAGE_SIZE, HEAD_DIM), nan)[:, 1]
    else:
        kv = torch.full((heads, num_pages, 2, PAGE_SIZE, wide), nan)[:, :, 1].transpose(0, 1)
        index = torch.full((num_pages, 2, PAGE_SIZE, HEAD_DIM), nan)[:, 1]
    return kv, index


def _placed(tensor, dtype=None, device="cpu"):
    """In another dtype, on another device, with the strides it has."""
    result = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype or tensor.dtype, device=device)
    return result.copy_(tensor)


def _scaled(keys, scale, slots):
    if scale is None:
        return keys
    scale = scale.cpu().double()
    return keys * (scale.view(1) if scale.numel() == 1 else scale[:, slots].T[..., None])


def _prefix_sums(lengths):
    return torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()))
