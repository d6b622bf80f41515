"""Dense attention of this library on the CPU beside PyTorch's scaled_dot_product_attention, and the sparse layer beside both.

    python3 bench/compare_cpu.py --library build/src/libopenmsa.so --tokens 64K --json cpu.json
    python3 bench/compare_cpu.py --library build/src/libopenmsa.so --tokens 128K --decode --heads 64 4

A whole prompt, or with --decode its last token alone. One process, the same tensors, the same threads, batch 1, causal; PyTorch gets keys and values with every head repeated
for its query heads beforehand, since that is not what is compared. The largest difference of the dense results is
checked first, on a prefix of the tokens.
"""

import argparse
import json
import statistics
import time

import openmsa_capi
import torch

WAYS = ["torch", "dense", "sparse", "select", "attend"]  # attend: over the selection made before
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def tokens_of(text):
    return int(text[:-1]) * 1024 if text.endswith("K") else int(text)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libopenmsa.so")
    parser.add_argument("--tokens", type=tokens_of, default=8192)
    parser.add_argument("--decode", action="store_true", help="one query behind the other tokens")
    parser.add_argument("--heads", type=int, nargs=2, default=(8, 2), metavar=("Q", "KV"))
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--index-dim", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to measure")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args()


class Layer:
    """Random tensors of one prompt, and the three ways to attend over them."""

    def __init__(self, library, arguments, dtype, tokens):
        heads_q, heads_kv = arguments.heads
        dim, index_dim = arguments.head_dim, arguments.index_dim
        generator = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.is_causal = not arguments.decode
        queries = 1 if arguments.decode else tokens
        self.q, self.index_q = random(queries, heads_q, dim), random(queries, heads_kv, index_dim)
        self.k, self.v = random(tokens, heads_kv, dim), random(tokens, heads_kv, dim)
        self.index_k = random(tokens, index_dim)
        self.o = torch.empty_like(self.q)
        self.topk_indices = torch.empty(heads_kv, queries, 16, dtype=torch.int32)
        plan = library.plan(
            backend=openmsa_capi.BACKEND_CPU,
            dtype=openmsa_capi.DTYPES[dtype],
            num_heads_q=heads_q,
            num_heads_kv=heads_kv,
            head_dim=dim,
            index_dim=index_dim,
            block_size=128,
            topk=16,
            max_total_q=queries,
            max_seqlen_k=tokens,
            num_threads=arguments.threads,
        )
        inputs = {"q": self.q, "k": self.k, "v": self.v, "o": self.o}
        index = {"index_q": self.index_q, "index_k": self.index_k, "topk_indices": self.topk_indices}
        lengths = {"cu_seqlens_q": torch.tensor([0, queries], dtype=torch.int32)}
        lengths["cu_seqlens_k"] = torch.tensor([0, tokens], dtype=torch.int32)
        self.dense = plan.prepare("dense_attention", **inputs, **lengths)
        self.sparse = plan.prepare("msa_attention", **inputs, **index, **lengths)
        self.select = plan.prepare("select_blocks", **index, **lengths)
        self.attend = plan.prepare("sparse_attention", **inputs, **lengths, topk_indices=self.topk_indices)
        self.group = heads_q // heads_kv
        self.torch_inputs = None

    def prepare_torch(self):
        q, k, v = self.q, self.k.repeat_interleave(self.group, 1), self.v.repeat_interleave(self.group, 1)
        self.torch_inputs = [x.transpose(0, 1).unsqueeze(0).contiguous() for x in (q, k, v)]

    def torch(self):
        return torch.nn.functional.scaled_dot_product_attention(*self.torch_inputs, is_causal=self.is_causal)


def check(library, arguments, dtype):
    layer = Layer(library, arguments, dtype, min(arguments.tokens, 1024))
    layer.dense()
    layer.prepare_torch()
    expected = layer.torch()[0].transpose(0, 1).float()
    error = (layer.o.float() - expected).norm() / expected.norm()
    allowed = 1e-5 if dtype is torch.float32 else 1e-2
    if not error < allowed:
        raise SystemExit(f"dense attention differs from PyTorch's: {error:.2e}, allowed {allowed:.0e}")


def milliseconds(call, repeats):
    """Wall clock, and processor time of all threads: with --threads 1 that is the one to trust on a busy machine."""
    times, processor_times = [], []
    for _ in range(repeats):
        start, processor_start = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - start) * 1e3)
        processor_times.append((time.process_time() - processor_start) * 1e3)
    wall = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return wall | {"processor_ms": statistics.median(processor_times)}


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    library = openmsa_capi.Library(arguments.library)
    results = {}
    for name in arguments.dtypes:
        check(library, arguments, DTYPES[name])
        layer = Layer(library, arguments, DTYPES[name], arguments.tokens)
        if "torch" in arguments.ways:
            layer.prepare_torch()
        results[name] = {}
        layer.select()
        for what in arguments.ways:
            times = milliseconds(getattr(layer, what), arguments.repeats)
            results[name][what] = times
            spread = f"{times['min_ms']:.1f}..{times['max_ms']:.1f}"
            print(
                f"{name} {what:>6}: {times['median_ms']:10.1f} ms  {spread:>20}  processor {times['processor_ms']:.1f} ms",
                flush=True,
            )
    if arguments.json:
        facts = {"tokens": arguments.tokens, "heads": arguments.heads, "head_dim": arguments.head_dim}
        facts |= {"decode": arguments.decode, "index_dim": arguments.index_dim, "threads": arguments.threads}
        facts |= {"torch": torch.__version__, "openmsa": library.version(), "results": results}
        with open(arguments.json, "w") as file:
            json.dump(facts, file, indent=2)


if __name__ == "__main__":
    main()
