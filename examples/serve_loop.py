"""Continuous batching: requests come and go in the slots of one batch, their keys in one paged cache.

A request that finds a slot and pages runs its prompt; then every step adds one token to all that run. Where there is a
GPU the step is a CUDA graph, captured once: lengths, block tables and tokens change in place. The model has random
weights, so its text means nothing; at the end, every answer is compared with what its request gets alone and without a
cache.

    python examples/serve_loop.py --requests 24 --max-batch 8
"""

import argparse
import random
import time
from dataclasses import dataclass, field

import openmsa
import torch
from openmsa.torch import KVCache
from small_decoder import Decoder

VOCABULARY, PAGE_SIZE = 256, 64
HEADS = {"num_heads_q": 8, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64}
OPTIONS = {"block_size": 64, "topk": 4}


@dataclass
class Request:
    prompt: list[int]
    new_tokens: int
    answer: list[int] = field(default_factory=list)

    def pages(self) -> int:
        return -(-(len(self.prompt) + self.new_tokens) // PAGE_SIZE)


class Engine:
    """A decoder over a cache: `prefill` for the prompts of new requests, `step` for one token of every slot."""

    def __init__(self, model: Decoder, max_batch: int, max_seqlen_k: int, num_pages: int):
        self.model, self.max_batch = model, max_batch
        weight = model.head.weight
        shape = {name: HEADS[name] for name in ("num_heads_kv", "head_dim", "index_dim")}
        self.cache = KVCache(
            **shape,
            num_layers=len(model.layers),
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            max_batch=max_batch,
            max_seqlen_k=max_seqlen_k,
            block_size=OPTIONS["block_size"],
            dtype=weight.dtype,
            device=weight.device,
        )
        common = HEADS | OPTIONS | {"page_size": PAGE_SIZE, "max_batch": max_batch, "max_seqlen_k": max_seqlen_k}
        common |= {"dtype": str(weight.dtype).removeprefix("torch."), "backend": weight.device.type}
        self.prompt_plan = openmsa.Plan(**common, max_total_q=max_batch * max_seqlen_k)
        self.step_plan = openmsa.Plan(**common, max_total_q=max_batch)
        self.ids = torch.zeros(max_batch, dtype=torch.int64, device=weight.device)
        self.one_each = torch.arange(max_batch + 1, dtype=torch.int32, device=weight.device)
        self.graph = self._capture() if weight.is_cuda else None

    @torch.no_grad()
    def _next_tokens(self, ids, positions, cu_seqlens_q, plan):
        """The most likely token after each of `ids`; the keys of `ids` are appended to the cache."""

        def attend(number, attention, x):
            heads = attention.project(x, positions)
            cache = self.cache.tensors(number) | {"cu_seqlens_q": cu_seqlens_q, "plan": plan}
            openmsa.append_kv(heads["k"], heads["v"], heads["index_k"], **cache)
            o = openmsa.msa_attention(heads["q"], index_q=heads["index_q"], **cache)
            return attention.o_proj(o.flatten(1))

        return self.model.logits(self.model.embed(ids), attend).argmax(-1)

    def _decode(self):
        positions = self.cache.seqlens_k.clamp(min=1) - 1
        return self._next_tokens(self.ids, positions, self.one_each, self.step_plan)

    def _capture(self):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decode()  # makes the workspace of this stream
        with torch.cuda.graph(graph, stream=stream):
            self.next_ids = self._decode()
        return graph

    def prefill(self, prompts: dict[int, list[int]]) -> list[int]:
        """The first token of each of the new slots, in their order."""
        counts = [len(prompts.get(slot, [])) for slot in range(self.max_batch)]
        device = self.ids.device
        slots = sorted(prompts)
        ids = torch.tensor([token for slot in slots for token in prompts[slot]], device=device)
        positions = torch.cat([torch.arange(len(prompts[slot]), device=device) for slot in slots])
        bounds = torch.tensor([0, *counts], device=device).cumsum(0)
        tokens = self._next_tokens(ids, positions, bounds.int(), self.prompt_plan)
        return tokens[bounds[1:][slots] - 1].tolist()

    def step(self, last_tokens: dict[int, int]) -> list[int]:
        """A token for every slot; those of free slots mean nothing."""
        ids = torch.zeros(self.max_batch, dtype=torch.int64)
        ids[list(last_tokens)] = torch.tensor(list(last_tokens.values()))
        self.ids.copy_(ids)
        if self.graph is None:
            return self._decode().tolist()
        self.graph.replay()
        return self.next_ids.tolist()


def serve(engine: Engine, requests: list[Request]) -> list[int]:
    """Answers all requests, first come first served; returns how many ran in each step."""
    cache, waiting, running, sizes = engine.cache, list(requests), {}, []
    pages = cache.free_pages
    while waiting or running:
        new = {}
        # A request enters when it can have all pages that it will ever need, so that none runs out half-way.
        while waiting and len(running) < engine.max_batch and waiting[0].pages() <= pages:
            slot = cache.add()
            running[slot] = new[slot] = waiting.pop(0)
            pages -= running[slot].pages()
            cache.extend(slot, len(running[slot].prompt))
        if new:
            cache.upload()
            for slot, token in zip(sorted(new), engine.prefill({slot: r.prompt for slot, r in new.items()})):
                new[slot].answer.append(token)
        for slot in [slot for slot, request in running.items() if len(request.answer) == request.new_tokens]:
            pages += running.pop(slot).pages()
            cache.remove(slot)
        for slot in running:
            cache.extend(slot, 1)
        cache.upload()
        if running:
            tokens = engine.step({slot: request.answer[-1] for slot, request in running.items()})
            for slot, request in running.items():
                request.answer.append(tokens[slot])
            sizes.append(len(running))
    return sizes


@torch.no_grad()
def agreement(model: Decoder, requests: list[Request]) -> float:
    """The share of tokens that the model gives without a cache, each request alone."""
    same = total = 0
    for request in requests:
        ids = torch.tensor(request.prompt + request.answer[:-1], device=model.head.weight.device)
        alone = model(ids)[0][len(request.prompt) - 1 :].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(alone, request.answer))
        total += len(request.answer)
    return same / total


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-batch", type=int, default=4, help="slots")
    parser.add_argument("--max-prompt", type=int, default=700, help="tokens of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens of the longest answer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments=None) -> float:
    options = parse(arguments)
    torch.manual_seed(0)
    draw = random.Random(0)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = Decoder(VOCABULARY, 256, 2, HEADS, OPTIONS).to(options.device, dtype).eval()
    requests = [
        Request(
            draw.choices(range(VOCABULARY), k=draw.randint(1, options.max_prompt)), draw.randint(1, options.new_tokens)
        )
        for _ in range(options.requests)
    ]
    longest = options.max_prompt + options.new_tokens
    # Pages for three quarters of the slots at their longest: some requests wait for pages rather than for a slot.
    num_pages = max(options.max_batch * 3 // 4, 1) * -(-longest // PAGE_SIZE)
    engine = Engine(model, options.max_batch, longest, num_pages)
    begin = time.perf_counter()
    sizes = serve(engine, requests)
    seconds = time.perf_counter() - begin
    tokens = sum(len(request.answer) for request in requests)
    way = "a CUDA graph" if engine.graph else "no graph"
    print(f"{options.device}, {way}: {len(requests)} requests, {sum(len(r.prompt) for r in requests)} prompt tokens")
    print(f"{tokens} new tokens in {seconds:.2f} s, {tokens / seconds:.0f} per second")
    print(f"{len(sizes)} steps with {sum(sizes) / max(len(sizes), 1):.1f} requests each, of {options.max_batch} slots")
    share = agreement(model, requests)
    print(f"{100 * share:.1f} % of the tokens are those of each request alone, without a cache")
    return share


if __name__ == "__main__":
    main()
