"""A layer of the M3 deployment on random inputs: tensors, operation counts, selections, and a float64 judge."""

import copy
import random

import openmsa_capi as capi
import torch

HEADS_Q, HEADS_KV, HEAD_DIM, INDEX_DIM, BLOCK, TOPK = 64, 4, 128, 128, 128, 16
GROUP = HEADS_Q // HEADS_KV
GEOMETRY = {
    "num_heads_q": HEADS_Q,
    "num_heads_kv": HEADS_KV,
    "head_dim": HEAD_DIM,
    "index_dim": INDEX_DIM,
    "block_size": BLOCK,
    "topk": TOPK,
}


class Layer:
    """Sequences of (queries, keys); the queries stand at the end of their keys."""

    def __init__(self, library, sequences, backend, device, dtype=torch.bfloat16, seed=1):
        self.sequences, self.device = sequences, device
        generator = torch.Generator(device=device).manual_seed(seed)
        total_q, total_k = (sum(lengths) for lengths in zip(*sequences))

        def normal(*shape):
            return torch.randn(*shape, dtype=dtype, device=device, generator=generator)

        self.q, self.index_q = normal(total_q, HEADS_Q, HEAD_DIM), normal(total_q, HEADS_KV, INDEX_DIM)
        self.k, self.v = normal(total_k, HEADS_KV, HEAD_DIM), normal(total_k, HEADS_KV, HEAD_DIM)
        self.index_k = normal(total_k, INDEX_DIM)
        self.o = torch.empty_like(self.q)
        self.lse = torch.empty(total_q, HEADS_Q, dtype=torch.float32, device=device)
        self.topk_indices = torch.full((HEADS_KV, total_q, TOPK), -1, dtype=torch.int32, device=device)
        self.lengths = {}
        if len(sequences) > 1:
            queries, keys = zip(*sequences)
            self.lengths = {"cu_seqlens_q": self._sums(queries), "cu_seqlens_k": self._sums(keys)}
        self._config = {
            "backend": backend,
            "dtype": capi.DTYPES[dtype],
            "max_batch": len(sequences),
            "max_total_q": total_q,
            "max_seqlen_k": max(keys for _, keys in sequences),
        } | GEOMETRY
        self.index_keys = {"index_k": self.index_k}
        self.plan = library.plan(**self._config)
        self._library = library

    def with_fp8_index(self, scale_per_token):
        """The same layer with index keys in e4m3, a scale per token or one for all, and a selection of its own."""
        result = copy.copy(self)
        if scale_per_token:
            codes, scale = to_fp8(self.index_k)
        else:
            codes, scale = to_fp8(self.index_k.view(1, -1))
        result.index_keys = {"index_k": codes.view_as(self.index_k), "index_k_scale": scale.view(-1)}
        result.topk_indices = torch.full_like(self.topk_indices, -1)
        result.plan = self._library.plan(index_dtype=capi.DTYPES[torch.float8_e4m3fn], **self._config)
        return result

    def judged_index(self, row, keys):
        """index_q of a row and index_k of a slice of keys in float64, as the kernels take them."""
        q, k = self.index_q[row], self.index_keys["index_k"][keys].double()
        if "index_k_scale" not in self.index_keys:
            return q.double(), k
        codes, scale = to_fp8(q)
        k_scale = self.index_keys["index_k_scale"]
        return codes.double() * scale.double(), k * (k_scale[keys, None] if len(k_scale) > 1 else k_scale).double()

    def _sums(self, lengths):
        return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(self.device)

    def whole(self):
        return self.plan.prepare(
            "msa_attention",
            q=self.q,
            k=self.k,
            v=self.v,
            index_q=self.index_q,
            o=self.o,
            lse=self.lse,
            topk_indices=self.topk_indices,
            **self.index_keys,
            **self.lengths,
        )

    def select(self):
        return self.plan.prepare(
            "select_blocks",
            index_q=self.index_q,
            topk_indices=self.topk_indices,
            **self.index_keys,
            **self.lengths,
        )

    def attend(self):
        return self.plan.prepare(
            "sparse_attention",
            q=self.q,
            k=self.k,
            v=self.v,
            topk_indices=self.topk_indices,
            o=self.o,
            lse=self.lse,
            **self.lengths,
        )


def to_fp8(x):
    """Rows of x in e4m3 and the scale of each, its largest magnitude over 448."""
    scale = x.abs().amax(-1, keepdim=True).float() / 448
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def index_operations(sequences):
    """2 * H_kv * d_idx for every query and visible key."""
    return sum(2 * HEADS_KV * INDEX_DIM * q * (k - (q - 1) / 2) for q, k in sequences)


def attend_operations(sequences):
    """4 * H_q * d_h for every query and chosen key; a query in its first blocks has fewer than topk * block."""
    most, count = TOPK * BLOCK, 0
    for queries, keys in sequences:
        first = keys - queries
        short = max(min(keys, most) - first, 0)
        count += short * (first + 1 + first + short) / 2 + (queries - short) * most
    return 4 * HEADS_Q * HEAD_DIM * count


def ragged_sequences(count=32, least=1024, most=65536, seed=7):
    chosen = random.Random(seed)
    return [(n, n) for n in (int(least * (most / least) ** chosen.random()) for _ in range(count))]


def choose_randomly(tokens, device, clustered, seed=3):
    """topk_indices of one sequence. Random: the local block and others at random. Clustered: runs of 64 queries share 12
    blocks, among them the first and the local one; the others are each query's own."""
    generator = torch.Generator(device=device).manual_seed(seed)
    blocks, run = (tokens + BLOCK - 1) // BLOCK, 64
    local = torch.arange(tokens, device=device) // BLOCK
    column = torch.arange(blocks, device=device)
    result = torch.empty(HEADS_KV, tokens, TOPK, dtype=torch.int32, device=device)
    for head in range(HEADS_KV):
        for begin in range(0, tokens, 16384):
            own = local[begin : begin + 16384, None]
            wish = torch.rand(own.shape[0], blocks, device=device, generator=generator)
            if clustered:
                leader = own[::run]
                shared = torch.rand(leader.shape[0], blocks, device=device, generator=generator)
                shared[:, 0] = 2
                shared.masked_fill_(column > leader, -1).scatter_(1, leader, 3)
                bonus = torch.zeros_like(shared).scatter_(1, shared.topk(min(12, blocks), dim=1).indices, 1)
                wish += bonus.repeat_interleave(run, dim=0)[: own.shape[0]]
            wish.masked_fill_(column > own, -1).scatter_(1, own, 4)
            best = wish.topk(min(TOPK, blocks), dim=1)
            chosen = best.indices.masked_fill(best.values < 0, blocks).sort(dim=1).values
            rows = result[head, begin : begin + 16384]
            rows.fill_(-1)
            rows[:, : chosen.shape[1]] = chosen.masked_fill(chosen == blocks, -1).to(torch.int32)
    return result


def sample_rows(layer, count=6, seed=11):
    """(row of q, first key row, position) of a few queries: the first and last of the batch and some between."""
    total_q = layer.q.shape[0]
    rows = sorted({0, total_q - 1, *(random.Random(seed).randrange(total_q) for _ in range(count))})
    result, q_begin, k_begin = [], 0, 0
    for queries, keys in layer.sequences:
        result += [(row, k_begin, keys - queries + row - q_begin) for row in rows if q_begin <= row < q_begin + queries]
        q_begin, k_begin = q_begin + queries, k_begin + keys
    return result


def check_selection(layer):
    """Chosen blocks against float64 scores: local block present, ascending, and nothing better left out by more than 1e-3
    of the row's largest score."""
    for row, k_begin, position in sample_rows(layer):
        visible = position // BLOCK + 1
        index_q, index_k = layer.judged_index(row, slice(k_begin, k_begin + position + 1))
        scores = index_q @ index_k.T / INDEX_DIM**0.5
        scores = torch.nn.functional.pad(scores, (0, visible * BLOCK - position - 1), value=float("-inf"))
        scores = scores.view(HEADS_KV, visible, BLOCK).amax(2)
        for head in range(HEADS_KV):
            expect_best(layer.topk_indices[head, row], scores[head], f"row {row}, head {head}")


def expect_best(topk_indices, scores, text):
    """A row's kv_blocks are the best of those it sees, scores [visible], ascending, its own at the end."""
    chosen, visible = [b for b in topk_indices.tolist() if b >= 0], len(scores)
    expect(len(chosen) == min(TOPK, visible), f"{text}: {len(chosen)} blocks chosen of {visible}")
    expect(chosen == sorted(set(chosen)) and chosen[-1] == visible - 1, f"{text}: chose {chosen}")
    left = torch.ones(visible, dtype=torch.bool, device=scores.device)
    left[chosen] = False
    if len(chosen) > 1 and left.any():
        margin = scores[left].max() - scores[chosen[:-1]].min()
        expect(margin <= 1e-3 * scores.abs().max(), f"{text}: missed a block by {margin:.3g}")


def check_attention(layer):
    """o and lse of a few rows against float64 over the chosen blocks; returns the relative error of o."""
    error = norm = 0.0
    for row, k_begin, position in sample_rows(layer):
        for head in range(HEADS_KV):
            chosen = layer.topk_indices[head, row]
            chosen = chosen[chosen >= 0].long()
            tokens = (chosen[:, None] * BLOCK + torch.arange(BLOCK, device=layer.device)).flatten()
            tokens = tokens[tokens <= position] + k_begin
            heads = slice(head * GROUP, (head + 1) * GROUP)
            logits = layer.q[row, heads].double() @ layer.k[tokens, head].double().T / HEAD_DIM**0.5
            expected = logits.softmax(-1) @ layer.v[tokens, head].double()
            error += (layer.o[row, heads].double() - expected).square().sum().item()
            norm += expected.square().sum().item()
            lse_error = (layer.lse[row, heads].double() - logits.logsumexp(-1)).abs().max().item()
            expect(lse_error <= 1e-3, f"row {row}: lse is off by {lse_error:.3g}")
    relative = (error / norm) ** 0.5
    expect(relative <= 5e-3, f"o: relative error {relative:.3g}")
    return relative


def expect(condition, message):
    if not condition:
        raise AssertionError(message)
