"""Decode steps of the M3 deployment on paged caches: layers that follow one another, and a judge of their results."""

import math
import random

import openmsa_capi as capi
import torch
from layer_problem import BLOCK, GEOMETRY, GROUP, HEAD_DIM, HEADS_KV, HEADS_Q, INDEX_DIM, TOPK, expect, expect_best

# Twice the L2 cache and more: what a graph of calls reads before it comes back to a page.
MORE_THAN_CACHE = 256 << 20
LEAST_CALLS, MOST_CALLS = 8, 64
KV_TOKEN_BYTES = 2 * HEADS_KV * HEAD_DIM * 2
STAGES = {"select": "select_blocks", "attend": "sparse_attention", "whole": "msa_attention"}


def pages_of(length):
    return (length + BLOCK - 1) // BLOCK


def num_sets(lengths):
    """Sets of pages, one for each of several calls in a row, of which the index keys alone outgrow the cache."""
    index_bytes = sum(pages_of(n) for n in lengths) * BLOCK * INDEX_DIM * 2
    return min(max(math.ceil(MORE_THAN_CACHE / index_bytes), 2), MOST_CALLS)


def num_pages(lengths):
    """Pages that a problem of these lengths takes from the caches."""
    return num_sets(lengths) * sum(pages_of(n) for n in lengths)


class Caches:
    """Random keys and values in pages; every problem uses the first ones."""

    def __init__(self, pages, index_dtypes, device="cuda", seed=1):
        generator = torch.Generator(device=device).manual_seed(seed)

        def normal(*shape):
            tensor = torch.empty(*shape, dtype=torch.bfloat16, device=device)
            for part in tensor.split(max((1 << 28) // tensor[0].numel(), 1)):
                part.normal_(generator=generator)
            return tensor

        self.device = torch.device(device)
        self.k, self.v = (normal(pages, BLOCK, HEADS_KV, HEAD_DIM) for _ in range(2))
        index_k = normal(pages, BLOCK, INDEX_DIM)
        self.index_k = {dtype: index_k.to(dtype) for dtype in index_dtypes}


class DecodeProblem:
    """Calls of one shape, each with queries, selection and pages of its own: a set of pages is shared only by calls
    that are so far apart that the sets between them fill the cache."""

    def __init__(self, library, caches, lengths, queries=1, agreement=0.0, index_dtype=torch.bfloat16, seed=1):
        """agreement: correlation of the query vectors of a sequence."""
        self.caches, self.lengths, self.queries = caches, lengths, queries
        self.index_k = caches.index_k[index_dtype]
        batch, device = len(lengths), caches.device
        self.total_q = batch * queries
        attended = sum(min(n, TOPK * BLOCK) for n in lengths) * KV_TOKEN_BYTES
        sets = num_sets(lengths)
        self.calls = min(max(sets, math.ceil(MORE_THAN_CACHE / attended), LEAST_CALLS), MOST_CALLS)
        generator = torch.Generator(device=device).manual_seed(seed)
        self.tables = [self._table(set_number, generator) for set_number in range(sets)]
        self.q = self._correlated(generator, agreement, HEADS_Q, HEAD_DIM)
        self.index_q = self._correlated(generator, agreement, HEADS_KV, INDEX_DIM)
        self.o = torch.empty_like(self.q[0])
        self.lse = torch.empty(self.total_q, HEADS_Q, dtype=torch.float32, device=device)
        shape = (self.calls, HEADS_KV, self.total_q, TOPK)
        self.topk_indices = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.seqlens_k = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.cu_seqlens_q = torch.arange(batch + 1, dtype=torch.int32, device=device) * queries
        # Only where it differs: a library without fp8 has no such member.
        fp8 = {} if index_dtype == torch.bfloat16 else {"index_dtype": capi.DTYPES[index_dtype]}
        self.plan = library.plan(
            backend=capi.BACKEND_CUDA if device.type == "cuda" else capi.BACKEND_CPU,
            dtype=capi.DTYPES[torch.bfloat16],
            page_size=BLOCK,
            max_batch=batch,
            max_total_q=self.total_q,
            max_seqlen_k=max(lengths),
            **GEOMETRY,
            **fp8,
        )
        most = max(self.plan.workspace_bytes(operation) for operation in STAGES.values())
        self.workspace = torch.empty(max(most, 1), dtype=torch.uint8, device=device)

    def _table(self, set_number, generator):
        """block_table of one set: its pages in random order."""
        counts = [pages_of(n) for n in self.lengths]
        pages = torch.randperm(sum(counts), generator=generator, device=self.caches.device, dtype=torch.int32)
        rows = list((pages + set_number * sum(counts)).split(counts))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).contiguous()

    def _correlated(self, generator, agreement, heads, dim):
        """[calls, total_q, heads, dim] of variance 1: one vector per sequence mixed with one per token."""

        def normal(tokens):
            shape = (self.calls, len(self.lengths), tokens, heads, dim)
            return torch.randn(shape, device=self.caches.device, generator=generator)

        mixed = agreement**0.5 * normal(1) + (1 - agreement) ** 0.5 * normal(self.queries)
        return mixed.to(torch.bfloat16).flatten(1, 2)

    def table(self, call):
        return self.tables[call % len(self.tables)]

    def contiguous(self, call):
        """k and v [batch, context, heads, dim] of a call's pages as they lie, for lengths that are all the same."""
        count = pages_of(self.lengths[0]) * len(self.lengths)
        begin = call % len(self.tables) * count
        shape = (len(self.lengths), -1, HEADS_KV, HEAD_DIM)
        return (x[begin : begin + count].view(shape) for x in (self.caches.k, self.caches.v))

    def prepare(self, stage, call):
        tensors = {
            "cu_seqlens_q": self.cu_seqlens_q,
            "seqlens_k": self.seqlens_k,
            "block_table": self.table(call),
            "topk_indices": self.topk_indices[call],
        }
        if stage != "attend":
            tensors |= {"index_q": self.index_q[call], "index_k_cache": self.index_k}
        if stage != "select":
            tensors |= {"q": self.q[call], "k_cache": self.caches.k, "v_cache": self.caches.v}
            tensors |= {"o": self.o, "lse": self.lse}
        return self.plan.prepare(STAGES[stage], workspace=self.workspace, **tensors)

    def index_bytes(self):
        """Of a call; where topk covers a sequence there is nothing to score."""
        return sum(n for n in self.lengths if n > TOPK * BLOCK) * INDEX_DIM * self.index_k.element_size()

    def attend_bytes(self):
        """Of a call with one query per sequence."""
        return sum(min(n, TOPK * BLOCK) for n in self.lengths) * KV_TOKEN_BYTES

    def dense_bytes(self):
        return sum(self.lengths) * KV_TOKEN_BYTES

    def chosen_blocks(self):
        """Different blocks that the queries of a sequence chose in the first call, mean over sequences and heads."""
        rows = self.topk_indices[0].view(HEADS_KV * len(self.lengths), -1)
        return sum(torch.unique(row[row >= 0]).numel() for row in rows) / rows.shape[0]

    # --------------------------------------------------------------------------------------------------- judge

    def sample(self):
        """(sequence, token) of a few queries."""
        batch = len(self.lengths)
        return sorted({(0, 0), (batch // 2, self.queries // 2), (batch - 1, self.queries - 1)})

    def place(self, sequence, token):
        """Row among the queries, and position among the sequence's keys."""
        return sequence * self.queries + token, self.lengths[sequence] - self.queries + token

    def check(self, call):
        """Selection and output of a call that has just run."""
        for sequence, token in self.sample():
            self._check_selection(call, sequence, token)
        self._check_attention(call)

    def _check_selection(self, call, sequence, token):
        row, position = self.place(sequence, token)
        visible = position // BLOCK + 1
        keys = self.index_k[self.table(call)[sequence, :visible].long()].float()
        query = self.index_q[call, row].float()
        if self.index_k.dtype != torch.bfloat16:  # the library rounds the queries that fp8 keys meet as well
            amax = query.abs().amax(1, keepdim=True)
            query = (query * (448 / amax)).to(self.index_k.dtype).float() * (amax / 448)
        scores = keys.flatten(0, 1) @ query.T
        scores[position + 1 :] = float("-inf")
        scores = scores.view(visible, BLOCK, HEADS_KV).amax(1).T
        for head in range(HEADS_KV):
            text = f"sequence {sequence}, token {token}, head {head}"
            expect_best(self.topk_indices[call, head, row], scores[head], text)

    def _check_attention(self, call):
        error = norm = 0.0
        for sequence, token in self.sample():
            row, position = self.place(sequence, token)
            for head in range(HEADS_KV):
                blocks = self.topk_indices[call, head, row]
                blocks = blocks[blocks >= 0].long()
                tokens = (blocks[:, None] * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten()
                pages = self.table(call)[sequence, blocks].long()
                k, v = (x[pages, :, head].flatten(0, 1) for x in (self.caches.k, self.caches.v))
                k, v = (x[tokens <= position].float() for x in (k, v))
                heads = slice(head * GROUP, (head + 1) * GROUP)
                logits = self.q[call, row, heads].float() @ k.T / HEAD_DIM**0.5
                expected = logits.softmax(-1) @ v
                error += (self.o[row, heads].float() - expected).square().sum().item()
                norm += expected.square().sum().item()
                lse_error = (self.lse[row, heads] - logits.logsumexp(-1)).abs().max().item()
                expect(lse_error <= 1e-3, f"sequence {sequence}, token {token}: lse is off by {lse_error:.3g}")
        relative = (error / norm) ** 0.5
        expect(relative <= 5e-3, f"o: relative error {relative:.3g}")


def mixed_lengths(count=64, least=1 << 10, most=1 << 20, seed=7):
    """Log-uniform."""
    chosen = random.Random(seed)
    return [int(least * (most / least) ** chosen.random()) for _ in range(count)]
