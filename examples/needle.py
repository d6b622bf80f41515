"""A fact hidden in a long context: a small model learns to retrieve it, and a picture shows which kv_blocks it read.

The text is noise with facts in it, a key token and behind it a value token; at its end the text names keys, and the model
says their values. It learns that on short texts that grow, with MSA's schedule (dense attention while kl_loss teaches the
index branch, then sparse attention), and answers in texts that are many times longer, where each query reads `topk` blocks.

The model is made for this: one layer, in which every token also carries the one before it, so that a value can be found by
its key. It shows what the selection does, not what a language model knows. The model of `make demo` is another: a model of
bytes must first learn to find what followed a string before, and those that `msa train` made in a few minutes did so for
strings that lie some 30 bytes back, no further.

    python examples/needle.py --output needle.png
"""

import argparse
import time

import numpy as np
import openmsa
import torch
from small_decoder import Decoder
from torch import nn
from torch.nn.functional import cross_entropy

KEYS, VALUES, NOISE = 32, 32, 64
VOCABULARY = KEYS + VALUES + NOISE
FACTS, QUERIES = 16, 16
HEADS = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 32, "index_dim": 32, "rotary_dim": 8}
OPTIONS = {"block_size": 32, "topk": 4}
# Share of the steps, tokens of a text, dense attention: first there is no noise between the facts.
STAGES = ((0.4, 64, True), (0.3, 256, True), (0.3, 512, False))


class WithPrevious(nn.Module):
    """The embedding of a token, and beside it that of the one before."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.token = nn.Embedding(vocab_size, hidden_size // 2)

    def forward(self, ids):
        return torch.cat((self.token(ids), self.token(ids.roll(1))), -1)


def make_text(tokens: int, draw: np.random.Generator, depth: float | None = None):
    """ids [tokens] whose last 2 * QUERIES tokens are keys and their values. With a depth there is one fact, there, and every
    question is about it."""
    ids = draw.integers(KEYS + VALUES, VOCABULARY, tokens)
    body = tokens - 2 * QUERIES
    keys = draw.permutation(KEYS)[: FACTS if depth is None else 1]
    values = KEYS + draw.integers(0, VALUES, len(keys))
    if depth is None:
        places = 2 * draw.permutation(body // 2)[: len(keys)]
    else:
        places = np.array([int(depth * (body - 2))])
    ids[places], ids[places + 1] = keys, values
    asked = draw.permutation(len(keys))[:QUERIES] if depth is None else np.zeros(QUERIES, np.int64)
    ids[body::2], ids[body + 1 :: 2] = keys[asked], values[asked]
    return torch.from_numpy(ids), places


def answers(logits):
    """Of the keys at the end of one text [tokens, vocabulary]: [QUERIES, vocabulary]."""
    return logits[-2 * QUERIES :: 2]


def right_values(ids):
    """The values of those keys: [QUERIES]."""
    return ids[-2 * QUERIES + 1 :: 2]


def train(model: Decoder, steps: int, tokens_per_step: int, draw: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    begin, done = time.perf_counter(), 0
    for share, tokens, is_dense in STAGES:
        model.set_warmup(is_dense)
        texts = max(tokens_per_step // tokens, 1)
        bounds = torch.arange(texts + 1, dtype=torch.int32) * tokens
        for _ in range(max(int(share * steps), 1)):
            ids = torch.cat([make_text(tokens, draw)[0] for _ in range(texts)])
            logits, kl_loss = model(ids, bounds)
            found = torch.cat([answers(part) for part in logits.split(tokens)])
            loss = cross_entropy(found, torch.cat([right_values(part) for part in ids.split(tokens)]))
            optimizer.zero_grad()
            (loss + kl_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done % max(steps // 12, 1) == 0:
                kind = f"{tokens} tokens, {'dense' if is_dense else 'sparse'}"
                seconds = time.perf_counter() - begin
                print(f"step {done:4}, {kind}: loss {loss:.3f}, kl {kl_loss:.3f}, {seconds:.0f} s", flush=True)


@torch.no_grad()
def accuracy(model: Decoder, tokens: int, texts: int, draw: np.random.Generator) -> float:
    """The share of questions that the model answers, in texts with FACTS facts."""
    right = 0
    for _ in range(texts):
        ids, _ = make_text(tokens, draw)
        right += (answers(model(ids)[0]).argmax(-1) == right_values(ids)).sum().item()
    return right / (texts * QUERIES)


@torch.no_grad()
def first_question(model: Decoder, ids):
    """What the index branch makes of the first key asked for: its block scores [heads, blocks] and choice [heads, topk]."""
    layer = model.layers[0]
    index = layer.attention.project(layer.attention_norm(model.embed(ids)), torch.arange(len(ids)))
    where = len(ids) - 2 * QUERIES
    index_q, index_k = index["index_q"][where : where + 1], index["index_k"][: where + 1]
    scores = openmsa.block_scores(index_q, index_k, block_size=OPTIONS["block_size"])[:, 0]
    return scores, openmsa.select_blocks(index_q, index_k, **OPTIONS)[:, 0]


def look(model: Decoder, tokens: int, rows: int, draw: np.random.Generator):
    """One text per depth of the fact: rows of (block of the fact, scores, chosen), and whether the model answered."""
    found = []
    for depth in np.linspace(0, 1, rows):
        ids, (place,) = make_text(tokens, draw, depth)
        with torch.no_grad():
            is_right = bool(answers(model(ids)[0])[0].argmax() == right_values(ids)[0])
        scores, chosen = first_question(model, ids)
        found.append(((place + 1) // OPTIONS["block_size"], scores, chosen, is_right))
    return found


def picture(found, shares: dict, tokens: int, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (blocks, lengths) = pyplot.subplots(1, 2, figsize=(12, 5), width_ratios=(2.2, 1))
    scores = torch.stack([scores.mean(0) for _, scores, _, _ in found]).numpy()
    blocks.imshow(scores, aspect="auto", cmap="Greys", interpolation="nearest")
    for row, (fact, _, chosen, is_right) in enumerate(found):
        for block in set(chosen.flatten().tolist()) - {-1}:
            blocks.plot(block, row, "o", color="#2471a3", markersize=3.5)
        blocks.plot(fact, row, "s", color="#1e8449" if is_right else "#c0392b", markersize=9, fillstyle="none")
    handles = [
        blocks.plot([], [], "o", color="#2471a3", markersize=4, label="block that was read (of either KV head)")[0],
        blocks.plot([], [], "s", color="#1e8449", fillstyle="none", label="block of the fact, answer right")[0],
        blocks.plot([], [], "s", color="#c0392b", fillstyle="none", label="block of the fact, answer wrong")[0],
    ]
    figure.legend(handles=handles, loc="lower left", ncols=3, frameon=False, fontsize=9)
    blocks.set_yticks(range(len(found)), [f"{100 * row / max(len(found) - 1, 1):.0f} %" for row in range(len(found))])
    blocks.tick_params(axis="y", labelsize=7)
    blocks.set(xlabel=f"kv_block of {OPTIONS['block_size']} tokens", ylabel="depth of the fact in the text")
    blocks.set_title(f"{tokens} tokens: score of each block for the question (darker is higher)", fontsize=10)
    for name, style in (("dense", "--"), ("MSA", "-")):
        lengths.plot(list(shares), [100 * share[name] for share in shares.values()], style, marker="o", label=name)
    lengths.set_xscale("log", base=2)
    lengths.set_xticks(list(shares), [str(tokens) for tokens in shares], rotation=45)
    lengths.set(xlabel="tokens of text", ylabel="right answers, %", ylim=(-3, 103))
    lengths.set_title(f"{FACTS} facts, {QUERIES} questions a text", fontsize=10)
    lengths.legend(frameon=False)
    lengths.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens-per-step", type=int, default=1536)
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest text asked about")
    parser.add_argument("--texts", type=int, default=4, help="texts of each length asked about")
    parser.add_argument("--output", default="needle.png")
    return parser.parse_args(arguments)


def main(arguments=None) -> dict:
    options = parse(arguments)
    torch.set_num_threads(1)  # the matrices are small; openmsa has threads of its own
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    model = Decoder(VOCABULARY, 128, 1, HEADS, OPTIONS)
    model.embed = WithPrevious(VOCABULARY, 128)
    train(model, options.steps, options.tokens_per_step, draw)
    model.eval()
    shares = {}
    tokens = 256
    while tokens <= options.longest:
        shares[tokens] = {}
        for name, is_dense in (("dense", True), ("MSA", False)):
            model.set_warmup(is_dense)
            shares[tokens][name] = accuracy(model, tokens, options.texts, np.random.default_rng(tokens))
        read = OPTIONS["topk"] * OPTIONS["block_size"] / tokens
        dense, sparse = (f"{100 * shares[tokens][name]:.0f} %" for name in ("dense", "MSA"))
        print(f"{tokens:6} tokens: dense {dense} right, MSA {sparse}, reading {100 * min(read, 1):.1f} % of the keys")
        tokens *= 2
    tokens //= 2
    found = look(model, tokens, 21, draw)
    hits = sum(bool((chosen == fact).any()) for fact, _, chosen, _ in found)
    right = sum(is_right for *_, is_right in found)
    print(
        f"one fact in {tokens} tokens, {len(found)} depths: its block was read {hits} times, the answer right {right} times"
    )
    picture(found, shares, tokens, options.output)
    print("written:", options.output)
    return {"shares": shares, "hits": hits, "right": right, "rows": len(found)}


if __name__ == "__main__":
    main()
