"""A dense checkpoint becomes a sparse model: train a small dense decoder on source text, save it, load it into a model
with an index branch, teach that branch by kl_loss alone, then train on with sparse attention.

    python examples/convert_dense.py

Prints the loss on held-out text, in nats per byte, after each stage: of the dense model; of the same weights with
sparse attention and an untrained index branch; after that branch has learnt; after sparse training; and of the dense
model trained for as long.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import openmsa.torch
import torch
from small_decoder import Decoder
from torch import nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).parents[1]
HEADS = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 32, "index_dim": 32, "rotary_dim": 16}
OPTIONS = {"block_size": 16, "topk": 3}


def read_text() -> torch.Tensor:
    """This repository's C++ sources, as bytes."""
    paths = sorted((ROOT / "src").rglob("*.cc"))
    if not paths:
        raise SystemExit(f"convert_dense: expected C++ sources in {ROOT / 'src'}, found none")
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8).long()


class Text:
    """Windows of the first nine tenths for training; the rest is held out."""

    def __init__(self, tokens: int, batch: int):
        text = read_text()
        self.tokens, self.batch = tokens, batch
        self.train, self.held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]

    def draw(self, generator: torch.Generator):
        """ids, the byte after each of them, and where each window begins."""
        starts = torch.randint(len(self.train) - self.tokens, (self.batch,), generator=generator).tolist()
        return self._windows(self.train, starts)

    def held_out_windows(self, count: int):
        step = (len(self.held_out) - self.tokens - 1) // count
        return self._windows(self.held_out, [i * step for i in range(count)])

    def _windows(self, text, starts):
        bounds = torch.arange(len(starts) + 1, dtype=torch.int32) * self.tokens
        ids, targets = (torch.cat([text[s + shift : s + shift + self.tokens] for s in starts]) for shift in (0, 1))
        return ids, targets, bounds


def train(model: Decoder, text: Text, steps: int, parameters, learning_rate: float, weights=(1.0, 1.0), seed=0) -> None:
    """weights of the language loss and of kl_loss."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.3)
    model.train()
    for _ in range(steps):
        ids, targets, bounds = text.draw(generator)
        logits, kl_loss = model(ids, bounds)
        optimizer.zero_grad()
        (weights[0] * cross_entropy(logits, targets) + weights[1] * kl_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def held_out_loss(model: Decoder, text: Text, windows: int, dense: bool) -> float:
    model.eval()
    model.set_warmup(dense)
    ids, targets, bounds = text.held_out_windows(windows)
    return cross_entropy(model(ids, bounds)[0], targets).item()


@torch.no_grad()
def recall(model: Decoder, text: Text, windows: int) -> float:
    """The share of the kv_blocks of highest attention mass that the index branches choose, over layers."""
    ids, _, bounds = text.held_out_windows(windows)
    sequences = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds}
    shares = []

    def attend(number, attention, x):
        layer = attention.project(x, torch.arange(len(x)) % text.tokens)
        indices = openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], **sequences, **OPTIONS)
        shares.append(openmsa.torch.block_recall(layer["q"], layer["k"], indices, **sequences, **OPTIONS)[0].mean())
        return attention.eval()(x, bounds)[0]

    model.logits(model.embed(ids), attend)
    return torch.stack(shares).mean().item()


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense-steps", type=int, default=300)
    parser.add_argument("--index-steps", type=int, default=80, help="of kl_loss alone")
    parser.add_argument("--sparse-steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256, help="of a window")
    parser.add_argument("--batch", type=int, default=8, help="windows of a step")
    parser.add_argument("--layers", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments=None) -> dict[str, float]:
    options = parse(arguments)
    torch.set_num_threads(1)  # the matrices are small; openmsa has threads of its own
    torch.manual_seed(0)
    text = Text(options.tokens, options.batch)
    make = lambda: Decoder(256, 128, options.layers, HEADS, OPTIONS)  # noqa: E731
    losses = {}

    def report(name: str, model: Decoder, dense: bool) -> None:
        losses[name] = held_out_loss(model, text, 16, dense)
        share = "" if dense else f", {100 * recall(model, text, 4):.0f} % of the best kv_blocks chosen"
        print(f"{name + ':':34} {losses[name]:.3f}{share}", flush=True)

    dense = make()
    dense.set_warmup(True)
    train(dense, text, options.dense_steps, dense.parameters(), 3e-3, weights=(1.0, 0.0))
    report("dense", dense, dense=True)

    with tempfile.TemporaryDirectory() as folder:  # the checkpoint, as a dense model writes it: no index branch
        path = Path(folder) / "dense.pt"
        torch.save({name: w for name, w in dense.state_dict().items() if ".indexer." not in name}, path)
        model = make()
        missing, unexpected = model.load_state_dict(torch.load(path), strict=False)
    assert not unexpected and all(".indexer." in name for name in missing)
    report("sparse, index branch untrained", model, dense=False)

    model.set_warmup(True)
    train(model, text, options.index_steps, model.index_parameters(), 5e-3, weights=(0.0, 1.0), seed=1)
    report("sparse, index branch trained", model, dense=False)

    model.set_warmup(False)
    train(model, text, options.sparse_steps, model.parameters(), 1e-3, seed=2)
    report("sparse, trained on", model, dense=False)

    longer = copy.deepcopy(dense)
    longer.set_warmup(True)
    train(longer, text, options.sparse_steps, longer.parameters(), 1e-3, weights=(1.0, 0.0), seed=2)
    report("dense, trained on as long", longer, dense=True)
    return losses


if __name__ == "__main__":
    main()
