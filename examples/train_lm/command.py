"""The command line: prepare, train, retrieve, record, report; all."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from . import comparison, evaluation, report, selections, text
from .sequences import Sequences
from .settings import ARMS, SMOKE_RECIPE, SMOKE_SHAPE, Recipe, Shape
from .training import Training


def parse(arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser("train_lm", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("train-lm-out"), help="of all files (train-lm-out)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, seconds on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    for field in dataclasses.fields(Recipe):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, dest=field.name, type=type(field.default), help=f"({field.default})")
    reads = argparse.ArgumentParser(add_help=False)
    reads.add_argument("--text-bytes", type=int, default=200 << 20, help="of source code, at most (200 MB)")
    asks = argparse.ArgumentParser(add_help=False)
    asks.add_argument("--questions", type=int, default=20, help="of each length (20)")
    asks.add_argument("--longest", type=int, default=128 << 10)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", parents=[reads], help="writes the tokenizer and the tokens of installed packages")
    train = commands.add_parser("train", help="trains an arm")
    train.add_argument("--arm", choices=ARMS, required=True)
    train.add_argument("--resume", action="store_true", help="goes on from the last checkpoint")
    train.add_argument("--minutes", type=float, help="at most; --resume goes on")
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, help="layers by torch.compile (on a GPU)")
    retrieve = commands.add_parser("retrieve", parents=[asks], help="asks for facts at 4K to 128K tokens")
    retrieve.add_argument("--arm", choices=ARMS, required=True)
    record = commands.add_parser("record", help="selections of a trained model: selections.npz, counts, a picture")
    record.add_argument("--arm", choices=ARMS, default="msa-pt")
    commands.add_parser("report", help="curves.svg and table.md")
    purpose = "all of these for all arms, over all GPUs; begun again, it goes on"
    everything = commands.add_parser("all", parents=[reads, asks], help=purpose)
    everything.add_argument("--arms", default=",".join(ARMS), help=f"some of {', '.join(ARMS)} (all)")
    options = parser.parse_args(arguments)
    if options.command == "all":
        options.arms = options.arms.split(",")
        for arm in options.arms:
            if arm not in ARMS:
                everything.error(f"--arms: expected some of {', '.join(ARMS)}, got {arm}")
        if "msa-cpt" in options.arms and "dense" not in options.arms:
            everything.error("--arms: expected dense beside msa-cpt, which begins with its checkpoint")
    return options


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.command == "all":
        prepare = ["--text-bytes", str(options.text_bytes)]
        retrieve = ["--questions", str(options.questions), "--longest", str(options.longest)]
        jobs = comparison.jobs_of(options.folder, options.arms, prepare, retrieve)
        front = arguments[: arguments.index("all")]
        gpus = comparison.visible_gpus(options.device)
        return 0 if comparison.Comparison(options.folder, front, jobs, gpus).run() else 1
    shape, base = (SMOKE_SHAPE, SMOKE_RECIPE) if options.smoke else (Shape(), Recipe())
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Recipe)}
    recipe = dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})
    COMMANDS[options.command](options, shape, recipe)
    return 0


def prepare(options, shape: Shape, recipe: Recipe) -> None:
    text.prepare(options.folder / "text", shape.vocab_size, options.text_bytes)


def train(options, shape: Shape, recipe: Recipe) -> None:
    training = _training(options, shape, recipe)
    if options.resume:
        training.resume()
    else:
        training.begin(options.folder / "dense")
    if options.compile or (options.compile is None and options.device == "cuda"):
        torch._dynamo.config.recompile_limit = 64  # kinds of layers, lengths, phases
        for layer in training.model.layers:
            layer.compile(dynamic=False)
    evaluate = evaluation.Evaluation(_sequences(options, recipe, "held_out"), recipe.context, recipe.held_out_sequences)
    is_done = training.run(evaluate, options.minutes)
    print("done" if is_done else f"stopped after step {training.next_step}; --resume goes on")


def retrieve(options, shape: Shape, recipe: Recipe) -> None:
    training = _trained(options, shape, recipe)
    lengths = [length for length in evaluation.RETRIEVAL_LENGTHS if length <= options.longest] or [options.longest]
    held_out = _sequences(options, recipe, "held_out")
    shares = evaluation.retrieval(training, held_out, lengths, options.questions)
    (training.folder / "retrieval.json").write_text(json.dumps(shares) + "\n")
    print(json.dumps(shares))


def record(options, shape: Shape, recipe: Recipe) -> None:
    """All layers of a sequence of `context` tokens; of a long one the first, middle and last sparse layer, for its size."""
    training = _trained(options, shape, recipe)
    held_out = _sequences(options, recipe, "held_out")
    sparse = range(shape.num_dense_layers, shape.num_layers)
    some = sorted({sparse[0], sparse[len(sparse) // 2], sparse[-1]})
    recordings = {recipe.context: selections.selections(training, held_out, recipe.context)}
    recordings[recipe.long_context] = selections.selections(training, held_out, recipe.long_context, some)
    selections.record(training.folder / "selections.npz", recordings, shape.block_size)
    found = {length: [selections.counts(layer) for layer in layers] for length, layers in recordings.items()}
    (training.folder / "selections.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    selections.picture(training, held_out, recipe.context, training.folder / "selections.png")


def make_report(options, shape: Shape, recipe: Recipe) -> None:
    report.curves(options.folder, options.folder / "curves.svg")
    (options.folder / "table.md").write_text(report.table(options.folder))
    print(report.table(options.folder), end="")


COMMANDS = {"prepare": prepare, "train": train, "retrieve": retrieve, "record": record, "report": make_report}


def _training(options, shape: Shape, recipe: Recipe) -> Training:
    sequences = _sequences(options, recipe, "train")
    return Training(options.arm, options.folder / options.arm, shape, recipe, sequences, options.device)


def _trained(options, shape: Shape, recipe: Recipe) -> Training:
    training = _training(options, shape, recipe)
    training.load(training.folder / "checkpoint.pt")
    return training


def _sequences(options, recipe: Recipe, part: str) -> Sequences:
    return Sequences(text.load(options.folder / "text", part), recipe, part == "held_out")
