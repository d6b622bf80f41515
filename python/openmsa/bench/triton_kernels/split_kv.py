"""Dense decode: every key of a sequence by one query per head, the keys split over the whole card."""

import torch
import triton
import triton.language as tl

MAX_SPLITS = 512
# (keys per step, warps, stages): measured, the best one counts
CONFIGS = ((64, 4, 3), (128, 8, 3))
# CTAs per SM that the splits make; of several, the best one counts.
CTAS_PER_SM = (2, 8)


@triton.jit(do_not_specialize=["splits"])
def _split_kernel(
    q,  # [batch, heads_kv * GROUP, DIM]
    k,  # [batch, context, heads_kv, DIM]
    v,
    o_partial,  # [batch, heads_kv * GROUP, splits, DIM] fp32, normalised
    lse_partial,  # [batch, heads_kv * GROUP, splits] fp32, base 2
    context,
    keys_per_split,
    splits,
    scale_log2,
    HEADS_KV: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    """The heads of a group are the rows of the matrix products. KV heads are the fastest grid dimension: what they read
    lies side by side."""
    head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = tl.arange(0, DIM)
    row = sequence * HEADS_KV * GROUP + head * GROUP + tl.arange(0, GROUP)
    q_tile = tl.load(q + row[:, None] * DIM + channel[None, :])
    first = split * keys_per_split
    last = tl.minimum(first + keys_per_split, context)
    base = sequence.to(tl.int64) * context * HEADS_KV * DIM + head * DIM
    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    acc = tl.zeros([GROUP, DIM], tl.float32)
    for begin in range(first, last, TILE):
        key = begin + tl.arange(0, TILE)
        inside = key < last
        place = base + key[:, None] * (HEADS_KV * DIM) + channel[None, :]
        k_tile = tl.load(k + place, mask=inside[:, None], other=0.0)
        s = tl.dot(q_tile, tl.trans(k_tile)) * scale_log2
        s = tl.where(inside[None, :], s, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        v_tile = tl.load(v + place, mask=inside[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(v_tile.dtype), v_tile)
        highest = higher
    place = row * splits + split
    tl.store(o_partial + place[:, None] * DIM + channel[None, :], acc / total[:, None])
    tl.store(lse_partial + place, highest + tl.log2(total))


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(o_partial, lse_partial, o, splits, DIM: tl.constexpr, MAX_SPLITS: tl.constexpr, STEP: tl.constexpr):
    row = tl.program_id(0)
    channel = tl.arange(0, DIM)
    every = tl.arange(0, MAX_SPLITS)
    every_lse = tl.load(lse_partial + row * splits + every, mask=every < splits, other=float("-inf"))
    highest = tl.max(every_lse, 0)
    acc = tl.zeros([DIM], tl.float32)
    for begin in range(0, splits, STEP):
        split = begin + tl.arange(0, STEP)
        inside = split < splits
        lse = tl.load(lse_partial + row * splits + split, mask=inside, other=float("-inf"))
        weight = tl.exp2(lse - highest)
        place = (row * splits + split)[:, None] * DIM + channel[None, :]
        acc += tl.sum(weight[:, None] * tl.load(o_partial + place, mask=inside[:, None], other=0.0), 0)
    total = tl.sum(tl.exp2(every_lse - highest), 0)
    tl.store(o + row * DIM + channel, (acc / total).to(o.dtype.element_ty))


class SplitKvDecode:
    """One way of splitting, for q [batch, heads_q, dim] and k, v [batch, context, heads_kv, dim], contiguous."""

    def __init__(self, q, k, config, ctas):
        self._tile, self._warps, self._stages = config
        batch, heads_q, dim = q.shape
        self._context, self._heads_kv = k.shape[1:3]
        wanted = min(max(ctas // (batch * self._heads_kv), 1), MAX_SPLITS)
        self._keys_per_split = triton.cdiv(triton.cdiv(self._context, wanted), self._tile) * self._tile
        self._splits = triton.cdiv(self._context, self._keys_per_split)  # none is empty
        self._o_partial = torch.empty(batch, heads_q, self._splits, dim, dtype=torch.float32, device=q.device)
        self._lse_partial = torch.empty(batch, heads_q, self._splits, dtype=torch.float32, device=q.device)

    def describe(self):
        return f"{self._splits} splits, {self._tile} keys per step"

    def run(self, q, k, v, o):
        batch, heads_q, dim = q.shape
        _split_kernel[(self._heads_kv, self._splits, batch)](
            q,
            k,
            v,
            self._o_partial,
            self._lse_partial,
            self._context,
            self._keys_per_split,
            self._splits,
            dim**-0.5 * 1.4426950408889634,
            HEADS_KV=self._heads_kv,
            GROUP=heads_q // self._heads_kv,
            DIM=dim,
            TILE=self._tile,
            num_warps=self._warps,
            num_stages=self._stages,
        )
        _combine_kernel[(batch * heads_q,)](
            self._o_partial,
            self._lse_partial,
            o,
            self._splits,
            DIM=dim,
            MAX_SPLITS=MAX_SPLITS,
            STEP=16,
            num_warps=4,
        )
