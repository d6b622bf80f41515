#!/usr/bin/env python3
"""openmsa beside PyTorch on one GPU, in one process: dense attention, torch.topk, and openmsa's stages on their own.

One layer of the M3 deployment (64 query and 4 KV heads of 128, blocks of 128, topk 16), batch 1 unless said, bf16, random
inputs. Every openmsa result is checked on a few rows against float64 before it is timed. Times are GPU times between
events, with a cold L2 cache; medians. The decode section takes them of CUDA graphs of several layers, each with paged
caches of its own, beside a split-KV kernel in Triton and PyTorch's attention. Needs PyTorch with CUDA (and Triton for
decode) and libopenmsa.so.

  python3 bench/compare_hopper.py --library build/src/libopenmsa.so --json hopper.json
  python3 bench/compare_hopper.py --quick                               lengths up to 128K, about a minute
  python3 bench/compare_hopper.py --sections decode                     time per new token
  python3 bench/compare_hopper.py --sections table --lengths 8192,1048576 --dense-limit 131072
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import fp8_comparison  # noqa: E402
import layer_problem as problem  # noqa: E402
import openmsa_capi as capi  # noqa: E402

K = 1024
REQUIRED = {8 * K: 1.0, 32 * K: 4.0, 128 * K: 13.0, 512 * K: 26.0, 1024 * K: 34.0}
TOPK_SIZES = [(131072, 1024, 16), (131072, 2048, 32), (524288, 4096, 16)]
SECTIONS = ("table", "topk", "index", "attend", "ragged", "chunk", "fp8", "decode")


class Stopwatch:
    """GPU times of a function: warm-up, then `repeats` runs, each after the L2 cache has been overwritten."""

    def __init__(self):
        self._flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def measure(self, function, repeats, warmup=2):
        for _ in range(warmup):
            function()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in events:
            self._flush.zero_()
            if warmup == 0:
                torch.cuda._sleep(1_000_000_000)  # half a second in which the host prepares the first call
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        times = sorted(start.elapsed_time(end) for start, end in events)
        return {"median_ms": times[len(times) // 2], "min_ms": times[0], "max_ms": times[-1], "repeats": repeats}


class Dense:
    """PyTorch's dense causal GQA: cuDNN, or flash attention from the first shape on that cuDNN refuses."""

    def __init__(self):
        self._backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]

    def measure(self, watch, layer, repeats, warmup):
        while True:
            try:
                timing = watch.measure(self._call(layer), repeats, warmup)
                return timing | {"backend": str(self._backends[0]).rpartition(".")[2]}
            except RuntimeError as error:
                print(f"dense: {self._backends[0]} refuses: {str(error).splitlines()[0]}", file=sys.stderr)
                if len(self._backends) == 1:
                    raise
                self._backends.pop(0)

    def _call(self, layer):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (layer.q, layer.k, layer.v))

        def call():
            with sdpa_kernel(self._backends[0]):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return call


class Comparison:
    def __init__(self, options):
        self.options = options
        self.library = capi.Library(str(options.library))
        self.watch = Stopwatch()
        self.dense = Dense()
        self.whole_ms = {}
        self.results = {}

    def layer(self, sequences):
        torch.cuda.empty_cache()
        return problem.Layer(self.library, sequences, capi.BACKEND_CUDA, "cuda")

    def whole(self, layer):
        """Checked, then timed."""
        call = layer.whole()
        call()
        torch.cuda.synchronize()
        problem.check_selection(layer)
        error = problem.check_attention(layer)
        total_q = layer.q.shape[0]
        timing = self.watch.measure(call, repeats=self.repeats(20 if total_q <= 128 * K else 3), warmup=1)
        return timing | {"relative_error": error}

    def repeats(self, wanted):
        return min(wanted, 5) if self.options.quick else wanted

    def whole_of(self, tokens):
        if tokens not in self.whole_ms:
            self.whole_ms[tokens] = self.whole(self.layer([(tokens, tokens)]))["median_ms"]
        return self.whole_ms[tokens]

    # ------------------------------------------------------------------------------------------------ sections

    def table(self):
        rows = self.results.setdefault("table", [])
        print(f"{'tokens':>8} {'dense ms':>10} {'openmsa ms':>10} {'ratio':>7} {'required':>8}")
        for tokens in self.options.lengths:
            layer = self.layer([(tokens, tokens)])
            row = {"tokens": tokens, "openmsa": self.whole(layer), "required": REQUIRED.get(tokens)}
            self.whole_ms[tokens] = row["openmsa"]["median_ms"]
            row |= self.dense_beside(layer, tokens, row["openmsa"]["median_ms"])
            rows.append(row)
            cells = [row.get("dense", {}).get("median_ms"), row["openmsa"]["median_ms"], row.get("ratio")]
            cells = [f"{x:.3f}" if x is not None else "-" for x in cells]
            print(f"{tokens:>8} {cells[0]:>10} {cells[1]:>10} {cells[2]:>7} {row['required'] or '-':>8}", flush=True)
            self.save()

    def dense_beside(self, layer, tokens, openmsa_ms):
        if tokens > self.options.dense_limit:
            return {}
        repeats, warmup = (1, 0) if tokens > 512 * K else (2, 0) if tokens > 128 * K else (self.repeats(5), 1)
        timing = self.dense.measure(self.watch, layer, repeats, warmup)
        # Of two measurements without warm-up the faster one had its plan ready.
        timing["median_ms"] = timing["min_ms"] if repeats == 2 else timing["median_ms"]
        return {"dense": timing, "ratio": timing["median_ms"] / openmsa_ms}

    def topk(self):
        rows = self.results.setdefault("topk", [])
        print(f"{'top-k rows x scores, k':>26} {'torch us':>10} {'openmsa us':>10} {'ratio':>7} {'GB/s':>7}")
        for count, columns, k in TOPK_SIZES[: 2 if self.options.quick else 3]:
            scores, indices, call = self.topk_call(count, columns, k)
            call()
            self.check_topk(scores, indices, k)
            ours = self.watch.measure(call, repeats=20)
            flat = scores.view(count, columns)
            theirs = self.watch.measure(functools.partial(torch.topk, flat, k, dim=1), repeats=self.repeats(10))
            row = {"rows": count, "columns": columns, "k": k, "openmsa": ours, "torch": theirs}
            row["ratio"] = theirs["median_ms"] / ours["median_ms"]
            row["gb_per_s"] = count * (columns + k) * 4 / ours["median_ms"] * 1e-6
            rows.append(row)
            print(
                f"{f'{count} x {columns}, {k}':>26} {theirs['median_ms'] * 1e3:>10.0f} {ours['median_ms'] * 1e3:>10.1f} "
                f"{row['ratio']:>7.1f} {row['gb_per_s']:>7.0f}",
                flush=True,
            )
            del scores, indices, call, flat
            torch.cuda.empty_cache()

    def topk_call(self, count, columns, k):
        """Rows that all see every column: sequences of one block of queries each, at the end of `columns` blocks."""
        heads, block = problem.HEADS_KV, problem.BLOCK
        total_q = count // heads
        batch = total_q // block
        plan = self.library.plan(
            backend=capi.BACKEND_CUDA,
            dtype=capi.DTYPES[torch.bfloat16],
            max_batch=batch,
            max_total_q=total_q,
            max_seqlen_k=columns * block,
            **(problem.GEOMETRY | {"topk": k, "num_local_blocks": 0}),
        )
        scores = torch.randn(heads, total_q, columns, device="cuda")
        indices = torch.full((heads, total_q, k), -2, dtype=torch.int32, device="cuda")
        call = plan.prepare(
            "topk",
            cu_seqlens_q=torch.arange(0, total_q + 1, block, dtype=torch.int32, device="cuda"),
            seqlens_k=torch.full((batch,), columns * block, dtype=torch.int32, device="cuda"),
            block_scores=scores,
            topk_indices=indices,
        )
        return scores, indices, call

    @staticmethod
    def check_topk(scores, indices, k):
        problem.expect(bool((indices[..., 1:] > indices[..., :-1]).all()), "topk: indices do not ascend")
        problem.expect(bool((indices >= 0).all() & (indices < scores.shape[2]).all()), "topk: index out of range")
        for head in range(scores.shape[0]):
            ours = scores[head].gather(1, indices[head].long()).sort(dim=1, descending=True).values
            problem.expect(torch.equal(ours, torch.topk(scores[head], k, dim=1).values), "topk: not the best scores")

    def index(self):
        rows = self.results.setdefault("index", [])
        print(f"{'index tokens':>12} {'ms':>10} {'TFLOP/s':>8}   at least 600 from 128K on")
        for tokens in self.options.lengths:
            layer = self.layer([(tokens, tokens)])
            layer.select()()
            problem.check_selection(layer)
            timing = self.watch.measure(layer.select(), repeats=self.repeats(10 if tokens <= 128 * K else 3), warmup=1)
            rate = problem.index_operations(layer.sequences) / timing["median_ms"] * 1e-9
            rows.append({"tokens": tokens, "select": timing, "tflops": rate})
            print(f"{tokens:>12} {timing['median_ms']:>10.3f} {rate:>8.1f}", flush=True)

    def attend(self):
        rows = self.results.setdefault("attend", [])
        tokens = 128 * K
        layer = self.layer([(tokens, tokens)])
        print(f"{'attend 128K':>12} {'ms':>10} {'TFLOP/s':>8} {'at most':>8}")
        for name, most in (("random", 25.0), ("clustered", 16.0)):
            layer.topk_indices = problem.choose_randomly(tokens, "cuda", clustered=name == "clustered")
            call = layer.attend()
            call()
            error = problem.check_attention(layer)
            timing = self.watch.measure(call, repeats=self.repeats(10))
            rate = problem.attend_operations(layer.sequences) / timing["median_ms"] * 1e-9
            rows.append({"selection": name, "attend": timing, "tflops": rate, "required_ms": most, "error": error})
            print(f"{name:>12} {timing['median_ms']:>10.3f} {rate:>8.1f} {most:>8}", flush=True)

    def ragged(self):
        sequences = problem.ragged_sequences()
        timing = self.whole(self.layer(sequences))
        self.share("ragged", f"{len(sequences)} prompts of 1K to 64K", timing, sequences, 128 * K, 1.3)

    def chunk(self):
        sequences = [(8 * K, 520 * K)]
        timing = self.whole(self.layer(sequences))
        self.share("chunk", "8K queries behind 512K", timing, sequences, 512 * K, 1.15)

    def fp8(self):
        fp8_comparison.run(self)

    def decode(self):
        try:
            import decode_comparison
        except ImportError as error:  # the other sections do without Triton
            raise RuntimeError(f"decode: expected PyTorch with Triton, got {error}") from error
        decode_comparison.Section(self).run()

    def share(self, section, text, timing, sequences, tokens, most):
        """A time beside its share, by operations, of one run over `tokens`."""

        def operations(sequences):
            return problem.index_operations(sequences) + problem.attend_operations(sequences)

        share = self.whole_of(tokens) * operations(sequences) / operations([(tokens, tokens)])
        ratio = timing["median_ms"] / share
        self.results[section] = {
            "sequences": sequences,
            "openmsa": timing,
            "share_ms": share,
            "ratio": ratio,
            "required_ratio": most,
        }
        print(
            f"{text}: {timing['median_ms']:.3f} ms, share of the {tokens // K}K run {share:.3f} ms: {ratio:.2f}x, "
            f"at most {most}x",
            flush=True,
        )

    # ------------------------------------------------------------------------------------------------- records

    def run(self):
        facts = self.results["machine"] = machine_facts(self.library, self.options)
        print(f"{facts['gpu']}, CUDA {facts['cuda']}, cuDNN {facts['cudnn']}, PyTorch {facts['torch']}", flush=True)
        failures = 0
        for section in self.options.sections:
            start = time.monotonic()
            try:
                getattr(self, section)()
            except (AssertionError, RuntimeError) as error:
                failures += 1
                self.results.setdefault("failures", {})[section] = str(error)
                print(f"{section} FAILED: {error}", flush=True)
            self.results.setdefault("section_seconds", {})[section] = round(time.monotonic() - start, 1)
            self.save()
        return failures

    def save(self):
        if not self.options.json:
            return
        partial = self.options.json.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=2) + "\n")
        os.replace(partial, self.options.json)


def machine_facts(library, options):
    """With clocks under load: a few hundred milliseconds of matrix products run while nvidia-smi looks."""
    load = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    for _ in range(400):
        torch.mm(load, load)
    fields = "name,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw,temperature.gpu,driver_version"
    smi = output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    torch.cuda.synchronize()
    return {
        "gpu": torch.cuda.get_device_name(),
        "nvidia_smi": dict(zip(fields.split(","), smi.splitlines()[0].split(", "))) if smi else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
        "openmsa": library.version(),
        "commit": options.commit or output_of(["git", "rev-parse", "HEAD"]),
        "command": " ".join(sys.argv),
    }


def output_of(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def parse(arguments):
    def lengths(text):
        return [int(part) for part in text.split(",")]

    def sections(text):
        chosen = text.split(",")
        unknown = set(chosen) - set(SECTIONS)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}"
            )
        return chosen

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=pathlib.Path, default=pathlib.Path("build/src/libopenmsa.so"))
    parser.add_argument("--lengths", type=lengths, help="tokens, for example 8192,32768 (default: 8K to 1M)")
    parser.add_argument("--dense-limit", type=int, default=1024 * K, help="no dense attention above so many tokens")
    parser.add_argument("--sections", type=sections, help=f"some of {','.join(SECTIONS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="lengths up to 128K, fewer repeats, no chunk, no mixed decode"
    )
    parser.add_argument("--commit", help="recorded in the JSON (default: git's)")
    parser.add_argument("--json", type=pathlib.Path, help="write all figures")
    options = parser.parse_args(arguments)
    options.lengths = options.lengths or [n for n in REQUIRED if n <= 128 * K or not options.quick]
    options.sections = options.sections or [s for s in SECTIONS if s != "chunk" or not options.quick]
    return options


def main():
    options = parse(sys.argv[1:])
    if not torch.cuda.is_available():
        print("compare_hopper: expected a CUDA GPU, found none", file=sys.stderr)
        return 1
    try:
        return 1 if Comparison(options).run() else 0
    except (OSError, RuntimeError) as error:
        print(f"compare_hopper: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
