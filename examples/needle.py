"""A fact hidden in a long text, retrieved by a model that `msa train` made, and the kv_blocks that it read to do so.

`make needle` trains the model (4.5 minutes on two cores): first to continue strings that came before; then on texts in
which facts such as ``KXQ4931;`` come back within a hundred bytes, and then within a thousand, with dense attention
while kl_loss teaches the index branch; then within 4096 bytes, with sparse attention. Here transformers runs it on
openmsa: a fact is hidden at some depth of a text many times longer than what a query reads, and the model continues
``KXQ``.

    make needle
    python examples/needle.py --output needle.png
"""

import argparse
import random
import sys
from pathlib import Path

import openmsa
import openmsa.integrations.transformers
import torch
import transformers
from needle_text import VALUE_LENGTH, Noise, key_and_value
from transformers.models.minimax_m3_vl.modeling_minimax_m3_vl import MiniMaxM3VLForCausalLM


def load_model(folder: Path, is_dense: bool = False) -> MiniMaxM3VLForCausalLM:
    """is_dense: the same weights without the index branch, so that every query reads everything."""
    if not (folder / "model.safetensors").exists():
        print(f"needle.py: {folder}: expected a model; `make needle` trains one", file=sys.stderr)
        sys.exit(2)
    openmsa.integrations.transformers.register()
    model = MiniMaxM3VLForCausalLM.from_pretrained(folder, attn_implementation="openmsa", dtype=torch.float32)
    if is_dense:
        for layer in model.model.layers:
            layer.self_attn.indexer = None
    return model.eval()


class Question:
    """A text of `length` bytes with a fact at `depth` (0 to 1), and the fact's key again at its end."""

    def __init__(self, noise: Noise, kind: str, length: int, depth: float, draw: random.Random):
        key, self.value = key_and_value(draw)
        body = noise.text(kind, length - 2 * (len(key) + VALUE_LENGTH), draw)
        place = body.rfind(" ", 0, 1 + int(depth * len(body))) + 1
        text = f"{body[:place]}{key}{self.value}; {body[place:]} {key}"
        self.place = place + len(key)  # of the value
        self.ids = torch.tensor([list(text.encode())])

    def kv_blocks(self, block_size: int) -> range:
        """Those that hold the value: one, or two where it lies across their border."""
        return range(self.place // block_size, (self.place + VALUE_LENGTH - 1) // block_size + 1)


@torch.no_grad()
def answer(model, question: Question) -> str:
    length = question.ids.shape[1]
    ids = model.generate(question.ids, max_new_tokens=VALUE_LENGTH, do_sample=False)
    return bytes(ids[0, length:].tolist()).decode("latin-1")


@torch.no_grad()
def what_was_read(model, question: Question) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For the last byte of the question, per sparse layer: block_scores and topk_indices [num_heads_kv, ...]."""
    indexers = [layer.self_attn.indexer for layer in model.model.layers if layer.self_attn.indexer is not None]
    outputs = []
    hooks = [indexer.register_forward_hook(lambda *call: outputs.append(call[-1])) for indexer in indexers]
    model(question.ids, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    found = []
    for indexer, (index_q, index_k) in zip(indexers, outputs):
        index = index_q[0, :, -1:].transpose(0, 1), index_k[0, 0]
        options = {"block_size": indexer.block_size, "topk": indexer.topk_blocks}
        scores = openmsa.block_scores(*index, block_size=indexer.block_size)[:, 0]
        found.append((scores, openmsa.select_blocks(*index, **options)[:, 0]))
    return found


def picture(rows, shares: dict, tokens: int, block_size: int, path: str) -> None:
    """rows: one per depth, (kv_blocks of the fact, scores, chosen kv_blocks, whether the answer was right)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (blocks, lengths) = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=(2.2, 1))
    scores = torch.stack([scores for _, scores, _, _ in rows])
    scores = scores - scores.median(dim=1, keepdim=True).values
    shades = (scores / scores.amax(dim=1, keepdim=True)).numpy()
    blocks.imshow(shades, vmin=0, vmax=1, aspect="auto", cmap="Greys", interpolation="nearest")
    for row, (fact, _, chosen, is_right) in enumerate(rows):
        blocks.plot(sorted(chosen), [row] * len(chosen), "o", color="#2471a3", markersize=3.5)
        color = "#1e8449" if is_right else "#c0392b"
        blocks.plot(fact, [row] * len(fact), "s", color=color, markersize=9, fillstyle="none")
    handles = [
        blocks.plot([], [], "o", color="#2471a3", markersize=4, label="kv_block that was read (by any KV head)")[0],
        blocks.plot([], [], "s", color="#1e8449", fillstyle="none", label="kv_block of the fact, answer right")[0],
        blocks.plot([], [], "s", color="#c0392b", fillstyle="none", label="kv_block of the fact, answer wrong")[0],
    ]
    figure.legend(handles=handles, loc="lower left", ncols=3, frameon=False, fontsize=9)
    blocks.set_yticks(range(len(rows)), [f"{100 * row / max(len(rows) - 1, 1):.0f} %" for row in range(len(rows))])
    blocks.tick_params(axis="y", labelsize=7)
    blocks.set(xlabel=f"kv_block of {block_size} tokens", ylabel="depth of the fact in the text")
    blocks.set_title(f"{tokens} tokens: score of each kv_block (white: median of its row, black: highest)", fontsize=10)
    for name, style in (("dense", "--"), ("MSA", "-")):
        lengths.plot(list(shares), [100 * share[name] for share in shares.values()], style, marker="o", label=name)
    lengths.set_xscale("log", base=2)
    lengths.set_xticks(list(shares), [str(tokens) for tokens in shares], rotation=45)
    lengths.set(xlabel="tokens of text", ylabel="right answers, %", ylim=(-3, 103))
    lengths.set_title("one fact a text, the same weights", fontsize=10)
    lengths.legend(frameon=False)
    lengths.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=Path("needle-out/model"), help="folder (default: needle-out/model)"
    )
    parser.add_argument("--text", choices=("words", "code"), default="words", help="what the fact is hidden in")
    parser.add_argument("--longest", type=int, default=4096, help="tokens of the longest text")
    parser.add_argument("--depths", type=int, default=11, help="places of the fact, first to last")
    parser.add_argument("--output", default="needle.png")
    return parser.parse_args(arguments)


def main(arguments=None) -> dict:
    options = parse(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the matrices are small; openmsa has threads of its own
    models = {"MSA": load_model(options.model), "dense": load_model(options.model, is_dense=True)}
    sparse = next(
        layer.self_attn.indexer for layer in models["MSA"].model.layers if layer.self_attn.indexer is not None
    )
    read = sparse.topk_blocks * sparse.block_size
    noise, shares, rows = Noise(is_held_out=True), {}, []
    tokens = 512
    while tokens <= options.longest:
        draw = random.Random(tokens)
        depths = [number / max(options.depths - 1, 1) for number in range(options.depths)]
        questions = [Question(noise, options.text, tokens, depth, draw) for depth in depths]
        answers = {name: [answer(model, q) for q in questions] for name, model in models.items()}
        right = {name: [a == q.value for a, q in zip(given, questions)] for name, given in answers.items()}
        shares[tokens] = {name: sum(some) / len(some) for name, some in right.items()}
        shown = ", ".join(f"{name} {100 * share:.0f} % right" for name, share in shares[tokens].items())
        print(
            f"{tokens:6} tokens: {shown}; a sparse query reads {100 * min(read / tokens, 1):.1f} % of the keys",
            flush=True,
        )
        tokens *= 2
    tokens //= 2
    print("dense: the same weights, every key read")
    for question, is_right in zip(questions, right["MSA"]):
        layers = what_was_read(models["MSA"], question)
        chosen = {block for _, indices in layers for block in indices.flatten().tolist()} - {-1}
        scores = torch.stack([scores.amax(0) for scores, _ in layers]).amax(0)
        rows.append((question.kv_blocks(sparse.block_size), scores, chosen, is_right))
    hits = sum(not chosen.isdisjoint(fact) for fact, _, chosen, _ in rows)
    print(f"{tokens} tokens, {len(rows)} depths: the fact's kv_block was read {hits} times")
    picture(rows, shares, tokens, sparse.block_size, options.output)
    print("written:", options.output)
    return {"shares": shares, "hits": hits, "rows": len(rows)}


if __name__ == "__main__":
    main()
