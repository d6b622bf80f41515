"""Prefill with index keys in fp8 beside bf16: time of selection and whole layer, and what rounding costs in recall."""

import layer_problem as problem
import torch

SAMPLED_ROWS = 64


def measure(comparison, tokens):
    """On the same inputs one after the other, each checked against float64 first: bf16, fp8 with a scale per token, and
    with one for all."""
    plain = comparison.layer([(tokens, tokens)])
    rows = {}
    for name in ("bf16", "per token", "one"):
        layer = plain if name == "bf16" else plain.with_fp8_index(scale_per_token=name == "per token")
        rows[name] = {"whole": comparison.whole(layer)}
        repeats = comparison.repeats(10 if tokens <= 128 * 1024 else 3)
        select = rows[name]["select"] = comparison.watch.measure(layer.select(), repeats, warmup=1)
        rows[name]["tflops"] = problem.index_operations(layer.sequences) / select["median_ms"] * 1e-9
    for name in ("per token", "one"):
        rows[name]["ratio"] = rows["bf16"]["whole"]["median_ms"] / rows[name]["whole"]["median_ms"]
    return rows | {"tokens": tokens}


def correlate(layer):
    """Makes heads of q and k noisy copies of the index branch, so that there is something to recall."""
    for main, index in (
        (layer.q, layer.index_q.repeat_interleave(problem.GROUP, 1)),
        (layer.k, layer.index_k[:, None]),
    ):
        main.add_(index).mul_(0.5**0.5)


def block_masses(layer, row):
    """Attention mass of the kv_blocks that a row of a whole prompt sees under dense attention, mean over the heads of a
    group: [H_kv, blocks]."""
    visible, masses = row // problem.BLOCK + 1, []
    for head in range(problem.HEADS_KV):
        heads = slice(head * problem.GROUP, (head + 1) * problem.GROUP)
        keys = layer.k[: row + 1, head].float()
        weights = (layer.q[row, heads].float() @ keys.T / problem.HEAD_DIM**0.5).softmax(-1).mean(0)
        padded = torch.nn.functional.pad(weights, (0, visible * problem.BLOCK - row - 1))
        masses.append(padded.view(visible, problem.BLOCK).sum(1))
    return torch.stack(masses)


def recall(comparison, tokens, correlated):
    """Share of bf16's kv_blocks that fp8 chooses too, and block and score recall of both, over the last rows."""
    plain = comparison.layer([(tokens, tokens)])
    if correlated:
        correlate(plain)
    rounded = plain.with_fp8_index(scale_per_token=True)
    layers = {"bf16": plain, "fp8": rounded}
    for layer in layers.values():
        layer.select()()
    sums = {"kept": 0.0} | {f"{kind} {name}": 0.0 for kind in ("block", "score") for name in layers}
    rows = torch.linspace(tokens // 2, tokens - 1, SAMPLED_ROWS).long().tolist()
    for row in rows:
        masses = block_masses(plain, row)
        best = torch.zeros_like(masses).scatter_(1, masses.topk(problem.TOPK).indices, 1)
        chosen = {
            name: torch.zeros_like(masses).scatter_(1, layer.topk_indices[:, row].long(), 1)
            for name, layer in layers.items()
        }
        sums["kept"] += (chosen["bf16"] * chosen["fp8"]).sum(1).mean().item() / problem.TOPK
        for name, mask in chosen.items():
            sums[f"block {name}"] += (mask * best).sum(1).mean().item() / problem.TOPK
            sums[f"score {name}"] += (mask * masses).sum(1).mean().item()
    return {name: value / len(rows) for name, value in sums.items()}


def run(comparison):
    results = comparison.results.setdefault("fp8", {"speed": [], "recall": []})
    print("whole layer in ms (select in TFLOP/s), fp8 index keys with a scale per token or one; 1.5x wanted at 1M")
    for tokens in comparison.options.lengths:
        row = measure(comparison, tokens)
        results["speed"].append(row)
        cells = (
            f"{name} {row[name]['whole']['median_ms']:.3f} ({row[name]['tflops']:.0f})"
            + (f" {row[name]['ratio']:.2f}x" if "ratio" in row[name] else "")
            for name in ("bf16", "per token", "one")
        )
        print(f"{tokens:>10}  " + "   ".join(cells), flush=True)
        comparison.save()
    for correlated in (False, True):
        tokens = min(max(comparison.options.lengths), 128 * 1024)
        row = recall(comparison, tokens, correlated)
        results["recall"].append({"tokens": tokens, "correlated": correlated} | row)
        print(
            f"recall at {tokens}, main branch {'correlated with' if correlated else 'independent of'} the index branch: "
            + ", ".join(f"{name} {value:.4f}" for name, value in row.items()),
            flush=True,
        )
