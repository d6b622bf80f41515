"""The decode section of compare_hopper.py: one layer per decode step, dense and sparse, in CUDA graphs of several
layers that each read pages of their own; the first call of each checked before it is timed."""

import time

import openmsa_capi as capi
import torch
from decode_problem import Caches, DecodeProblem, mixed_lengths, num_pages
from dense_decode import BLOCKS_PER_SM, CONFIGS, SplitKvDecode, read_gb_per_s
from layer_problem import BLOCK, GEOMETRY, GROUP, HEAD_DIM, HEADS_KV, expect
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

K = 1024
# (context, batch): at most so many microseconds for the layer, with bf16 and with fp8 index keys
AIMS = {
    (32 * K, 1): (12, 10),
    (32 * K, 32): (100, 70),
    (128 * K, 1): (18, 14),
    (128 * K, 32): (305, 170),
    (1024 * K, 1): (78, 46),
    (1024 * K, 8): (555, 290),
}
MIXED_AIM, SPECULATIVE_AIM = 1.2, 1.3
# Queries of real text that follow one another choose mostly the same blocks.
AGREEMENT = 0.99
SPECULATIVE = (128 * K, 8, 8)  # context, batch, query tokens


def index_dtypes(library):
    """Of index keys: bf16, and fp8 where the library's kernels have it."""
    fp8 = torch.float8_e4m3fn
    if all(name != "index_dtype" for name, _ in capi.CConfig._fields_) or fp8 not in capi.DTYPES:
        return [torch.bfloat16]
    shape = {"page_size": BLOCK, "max_batch": 1, "max_total_q": 1, "max_seqlen_k": BLOCK} | GEOMETRY
    dtypes = {"dtype": capi.DTYPES[torch.bfloat16], "index_dtype": capi.DTYPES[fp8]}
    try:
        library.plan(backend=capi.BACKEND_CUDA, **dtypes, **shape)
    except RuntimeError as error:
        print(f"decode: no fp8 index keys: {error}", flush=True)
        return [torch.bfloat16]
    return [torch.bfloat16, fp8]


def measure(calls, quick):
    """Microseconds of one call: a CUDA graph of them all, replayed; the first replays are not kept."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin = time.monotonic()
    graph.replay()
    torch.cuda.synchronize()
    seconds = time.monotonic() - begin
    graph.replay()
    repeats = max(3, min(int((0.05 if quick else 0.2) / seconds), 30))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) * 1e3 / len(calls) for start, end in events)
    return {"median_us": times[len(times) // 2], "min_us": times[0], "max_us": times[-1], "repeats": repeats}


class Section:
    def __init__(self, comparison):
        self.library, self.quick = comparison.library, comparison.options.quick
        self.results = comparison.results.setdefault("decode", {})
        self.cases = [case for case in AIMS if not self.quick or case[0] <= 128 * K]
        self.whole_us = {}

    def run(self):
        torch.cuda.empty_cache()
        self.read_rate = self.results["read_gb_per_s"] = read_gb_per_s()
        print(f"decode: reading and nothing else reaches {self.read_rate:.0f} GB/s", flush=True)
        problems = [[context] * batch for context, batch in self.cases] + ([] if self.quick else [mixed_lengths()])
        self.index_dtypes = index_dtypes(self.library)
        self.caches = Caches(max(num_pages(lengths) for lengths in problems), self.index_dtypes)
        self.table()
        if not self.quick:
            self.mixed()
        self.speculative()

    def problem(self, lengths, **options):
        """Checked: each stage alone, then the whole layer."""
        problem = DecodeProblem(self.library, self.caches, lengths, **options)
        for stages in (("select", "attend"), ("whole",)):
            problem.topk_indices[0].fill_(-1)
            problem.o.fill_(float("nan"))
            for stage in stages:
                problem.prepare(stage, 0)()
            problem.check(0)
        return problem

    def stage(self, problem, stage):
        """Timed; what the replays leave behind is checked again."""
        timing = measure([problem.prepare(stage, call) for call in range(problem.calls)], self.quick)
        if stage == "whole":
            problem.check(problem.calls - 1)
        return timing

    # ------------------------------------------------------------------------------------------------ the table

    def table(self):
        rows = self.results["rows"] = []
        print(
            f"{'context':>8} {'batch':>5} {'bound us':>9} {'dense us':>9} {'select':>8} {'attend':>8} {'whole us':>9} "
            f"{'at most':>7} {'ratio':>6} {'fp8 us':>8} {'at most':>7}"
        )
        for context, batch in self.cases:
            problem = self.problem([context] * batch)
            row = {"context": context, "batch": batch, "calls": problem.calls}
            row["bound_us"] = problem.dense_bytes() / self.read_rate * 1e-3
            row |= {stage: self.stage(problem, stage) for stage in ("select", "attend", "whole")}
            row["bytes"] = {"index": problem.index_bytes(), "attend": problem.attend_bytes()}
            row["dense"] = self.dense(problem)
            row["at_most_us"] = AIMS[context, batch]
            row["ratio"] = row["dense"]["median_us"] / row["whole"]["median_us"]
            self.whole_us[context, batch] = row["whole"]["median_us"]
            del problem
            for dtype in self.index_dtypes[1:]:
                row["whole_fp8_index"] = self.stage(self.problem([context] * batch, index_dtype=dtype), "whole")
            rows.append(row)
            self.print_row(row)

    @staticmethod
    def print_row(row):
        def us(stage):
            return f"{row[stage]['median_us']:.1f}" if stage in row else "-"

        bf16, fp8 = row["at_most_us"]
        print(
            f"{row['context'] // K:>7}K {row['batch']:>5} {row['bound_us']:>9.1f} {us('dense'):>9} {us('select'):>8} "
            f"{us('attend'):>8} {us('whole'):>9} {bf16:>7} {row['ratio']:>6.1f} {us('whole_fp8_index'):>8} {fp8:>7}   "
            f"dense: {row['dense']['backend']}",
            flush=True,
        )

    # ---------------------------------------------------------------------------------------------------- dense

    def dense(self, problem):
        """The fastest of our own split-KV kernel, in a few configurations, and PyTorch's attention where it runs."""
        timings = [self.split_kv(problem, config, n) for config in CONFIGS for n in BLOCKS_PER_SM]
        backends = [] if self.quick else [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        for backend in backends:
            try:
                timings.append(self.pytorch(problem, backend))
            except RuntimeError as error:
                timings.append({"backend": str(backend).rpartition(".")[2], "refused": str(error).splitlines()[0]})
        best = min((t for t in timings if "refused" not in t), key=lambda t: t["median_us"])
        return best | {"tried": timings}

    def split_kv(self, problem, config, blocks_per_sm):
        decode = SplitKvDecode(problem.q[0], next(problem.contiguous(0)), config, blocks_per_sm)

        def call(number):
            k, v = problem.contiguous(number)
            return lambda: decode.run(problem.q[number], k, v, problem.o)

        call(0)()
        self.check_dense(problem, problem.o)
        timing = measure([call(number) for number in range(problem.calls)], self.quick)
        return timing | {"backend": decode.describe()}

    def pytorch(self, problem, backend):
        name = str(backend).rpartition(".")[2]

        def call(number):
            q = problem.q[number].unsqueeze(2)
            k, v = (x.transpose(1, 2) for x in problem.contiguous(number))

            def run():
                with sdpa_kernel(backend):
                    return scaled_dot_product_attention(q, k, v, enable_gqa=True)

            return run

        self.check_dense(problem, call(0)().squeeze(2))
        begin = time.monotonic()
        call(0)()
        torch.cuda.synchronize()
        milliseconds = (time.monotonic() - begin) * 1e3
        # Where it does not split the keys a graph of all calls would take long.
        calls = min(problem.calls, max(2, int(100 / milliseconds)))
        return measure([call(number) for number in range(calls)], self.quick) | {"backend": name}

    @staticmethod
    def check_dense(problem, o):
        """One group of heads of the last sequence, float32."""
        k, v = (x[-1, :, HEADS_KV - 1].float() for x in problem.contiguous(0))
        logits = problem.q[0, -1, -GROUP:].float() @ k.T / HEAD_DIM**0.5
        expected = logits.softmax(-1) @ v
        error = ((o[-1, -GROUP:].float() - expected).norm() / expected.norm()).item()
        expect(error <= 5e-3, f"dense decode: relative error {error:.3g}")

    # ---------------------------------------------------------------------------------------------------- lines

    def mixed(self):
        """Ragged lengths beside what their bytes take at the rate of an even batch."""
        problem = self.problem(mixed_lengths())
        timing = self.stage(problem, "whole")
        even = DecodeProblem(self.library, self.caches, [128 * K] * 32)
        share = self.whole_us[128 * K, 32] * bytes_of(problem) / bytes_of(even)
        ratio = timing["median_us"] / share
        self.results["mixed"] = {
            "lengths": problem.lengths,
            "whole": timing,
            "share_us": share,
            "ratio": ratio,
            "required_ratio": MIXED_AIM,
        }
        print(
            f"{len(problem.lengths)} lengths of 1K to 1M: {timing['median_us']:.1f} us, their bytes at the rate of "
            f"128K x 32 {share:.1f} us: {ratio:.2f}x, at most {MIXED_AIM}x",
            flush=True,
        )

    def speculative(self):
        """Several query tokens per request beside one."""
        context, batch, queries = SPECULATIVE
        rows = self.results["speculative"] = []
        one = self.stage(self.problem([context] * batch), "whole")
        for agreement, aim in ((AGREEMENT, SPECULATIVE_AIM), (0.0, None)):
            problem = self.problem([context] * batch, queries=queries, agreement=agreement)
            row = {"agreement": agreement, "one": one, "chosen_blocks": problem.chosen_blocks()}
            row |= {stage: self.stage(problem, stage) for stage in ("select", "attend", "whole")}
            row["ratio"] = row["whole"]["median_us"] / one["median_us"]
            rows.append(row)
            print(
                f"{context // K}K x {batch}, {queries} query tokens, agreement {agreement}: "
                f"{row['whole']['median_us']:.1f} us (select {row['select']['median_us']:.1f}, attend "
                f"{row['attend']['median_us']:.1f}; {row['chosen_blocks']:.1f} different blocks per head), one token "
                f"{one['median_us']:.1f} us: {row['ratio']:.2f}x" + (f", at most {aim}x" if aim else ""),
                flush=True,
            )


def bytes_of(problem):
    return problem.index_bytes() + problem.attend_bytes()
