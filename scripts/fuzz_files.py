#!/usr/bin/env python3
"""Runs `msa attend|generate|eval|train` on files that are nearly right (mutations.py) and finds where it does not answer as it
promises: exit status 0, 1 or 2, one line on stderr where it refuses, nothing written then, in bounded time and memory. Every
file kind that the program reads: layers, weights, shards, configurations, tokenizers, training states, logs.

    scripts/fuzz_files.py build/msa build-fuzz/files --seconds 60
    scripts/fuzz_files.py build/msa build-fuzz/files --first 1234 --cases 1      # a find again; its files stay in the folder
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import mutations

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZERS = ROOT / "tests" / "tokenizer" / "data"
GOLDEN = ROOT / "tests" / "golden" / "data"

WORDS = "the lazy dog int main ( void ) { return 0 ; } // größer, 東京\n".split(" ")
GEOMETRY = (
    "--layers 2 --hidden 16 --heads-q 4 --heads-kv 2 --head-dim 16 --intermediate 32 --index-dim 16 --block-size 8 --topk 2 "
    "--batch 1 --seqlen 64 --short-batch 2 --short-seqlen 32 --warmup-steps 1 --recall-every 1 --threads 1"
).split()
GENERATE = "generate --model model --prompt lazy --max-new-tokens 4 --threads 1 --json out".split()
EVALUATE = "eval --model model --text text --seqlen 64 --max-bytes 256 --threads 1 --json out".split()
TRAIN = (
    "train --from model --output out --text text --steps 1 --batch 1 --seqlen 64 --short-batch 0 --threads 1".split()
)
RESUME = "train --resume --output model --threads 1".split()
ATTEND = "attend --input layer --output out --threads 1".split()
SELECTION = "--block-size 8 --topk 2".split()


# ------------------------------------------------------------------------------------------------------ files to begin with


def layer(rng: random.Random, is_paged: bool) -> bytes:
    """Two sequences with 20 and 5 keys; 3 and 5 queries. Paged: 4 pages of 16 keys."""

    def normal(*shape):
        count = 1
        for n in shape:
            count *= n
        return ("F32", shape, [rng.gauss(0, 1) for _ in range(count)])

    tensors = {"q": normal(8, 4, 16), "index_q": normal(8, 2, 16), "d_o": normal(8, 4, 16)}
    tensors["cu_seqlens_q"] = ("I32", (3,), (0, 3, 8))
    if is_paged:
        tensors |= {
            "k_cache": normal(4, 16, 2, 16),
            "v_cache": normal(4, 16, 2, 16),
            "index_k_cache": normal(4, 16, 16),
        }
        tensors |= {"seqlens_k": ("I32", (2,), (20, 5)), "block_table": ("I32", (2, 2), (3, 0, 1, -1))}
    else:
        tensors |= {"k": normal(25, 2, 16), "v": normal(25, 2, 16), "index_k": normal(25, 16)}
        tensors["cu_seqlens_k"] = ("I32", (3,), (0, 20, 25))
    return mutations.safetensors_of(tensors)


def unfinished(state: bytes) -> bytes:
    """The training state as it was a step before its end."""
    header, data = mutations.read_safetensors(state)
    header["__metadata__"]["step"] = "1"
    return mutations.safetensors(json.dumps(header).encode(), data)


def make_bases(msa: pathlib.Path, folder: pathlib.Path) -> None:
    """folder/text, folder/bytes: a model and its training state, folder/golden: in shards, with a tokenizer,
    folder/layers."""
    rng = random.Random(1)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("text", "golden", "layers"):
        (folder / name).mkdir(parents=True)
    for i in range(40):
        (folder / "text" / f"{i}.c").write_text(" ".join(rng.choices(WORDS, k=300)))
    for is_paged in (False, True):
        (folder / "layers" / ("paged" if is_paged else "plain")).write_bytes(layer(rng, is_paged))
    train = [msa.resolve(), "train", "--output", "bytes", "--text", "text", "--steps", "2", *GEOMETRY]
    subprocess.run(train, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    state = folder / "bytes" / "training.safetensors"
    state.write_bytes(unfinished(state.read_bytes()))
    (folder / "bytes" / "generation_config.json").write_text(
        '{"eos_token_id": [0, 3], "temperature": 0.7, "top_p": 0.9}'
    )
    for path in (GOLDEN / "m3_model").iterdir():
        shutil.copy(path, folder / "golden")
    shutil.copy(folder / "bytes" / "generation_config.json", folder / "golden")


# -------------------------------------------------------------------------------------------------------------------- cases


class Case:
    """Files in a folder, one of them changed, and a command that reads it."""

    def __init__(self, seed: int, bases: pathlib.Path, folder: pathlib.Path):
        self.rng = random.Random(seed)
        self.bases = bases
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "text").symlink_to(bases.resolve() / "text")
        self.kind = self.rng.choice(sorted(KINDS))
        self.command = KINDS[self.kind](self)

    def model(self, name: str) -> None:
        shutil.copytree(self.bases / name, self.folder / "model")
        if name == "golden":
            tokenizers = sorted(path for path in TOKENIZERS.glob("*.json") if "cases" not in path.name)
            shutil.copy(self.rng.choice(tokenizers), self.folder / "model" / "tokenizer.json")

    def change(self, mutate, file: str) -> None:
        path = self.folder / file
        path.write_bytes(mutate(self.rng, path.read_bytes()))

    def layer(self) -> list[str]:
        shutil.copy(self.bases / "layers" / self.rng.choice(("plain", "paged")), self.folder / "layer")
        self.change(mutations.change_safetensors, "layer")
        selection = self.rng.choice((SELECTION, SELECTION, ["--dense"]))
        more = self.rng.choice(([], ["--backward"], ["--backend", "reference"]))
        return [*ATTEND, *selection, *more]

    def weights(self) -> list[str]:
        name, file = self.rng.choice((("bytes", "model.safetensors"), ("golden", "model-00001-of-00002.safetensors")))
        return self.changed_model(mutations.change_safetensors, file, name)

    def config(self) -> list[str]:
        return self.changed_model(mutations.change_json, "config.json")

    def generation_config(self) -> list[str]:
        return self.changed_model(mutations.change_json, "generation_config.json")

    def shard_index(self) -> list[str]:
        return self.changed_model(mutations.change_json, "model.safetensors.index.json", "golden")

    def tokenizer(self) -> list[str]:
        return self.changed_model(mutations.change_json, "tokenizer.json", "golden")

    def changed_model(self, mutate, file: str, name: str = "") -> list[str]:
        name = name or self.rng.choice(("bytes", "golden"))
        self.model(name)
        self.change(mutate, f"model/{file}")
        return self.rng.choice((GENERATE, EVALUATE, *([TRAIN] if name == "bytes" else [])))

    def state(self) -> list[str]:
        self.model("bytes")
        self.change(mutations.change_safetensors, "model/training.safetensors")
        self.shorten()
        return RESUME

    def shorten(self) -> None:
        """A run that is long because it was asked to be long is no find."""
        path = self.folder / "model" / "training.safetensors"
        with contextlib.suppress(Exception):  # what is no state any more stays as it is
            header, data = mutations.read_safetensors(path.read_bytes())
            options = json.loads(header["__metadata__"]["options"])
            for name in ("steps", "batch", "seqlen", "short_batch", "short_seqlen"):
                if isinstance(options[name], (int, float)) and 64 < options[name] <= 10**9:
                    options[name] = 64
            header["__metadata__"]["options"] = json.dumps(options)
            path.write_bytes(mutations.safetensors(json.dumps(header).encode(), data))

    def log(self) -> list[str]:
        self.model("bytes")
        self.change(mutations.change_json_lines, "model/log.jsonl")
        return RESUME


KINDS = {
    "config": Case.config,
    "generation_config": Case.generation_config,
    "layer": Case.layer,
    "log": Case.log,
    "shard_index": Case.shard_index,
    "state": Case.state,
    "tokenizer": Case.tokenizer,
    "weights": Case.weights,
}


# --------------------------------------------------------------------------------------------------------------------- runs


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def limit(memory: int, seconds: int):
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(msa: pathlib.Path, case: Case, options) -> tuple[int | None, str]:
    """Exit status (negative: a signal; None: past the wall limit) and stderr."""
    process = subprocess.Popen(
        [msa.resolve(), *case.command],
        cwd=case.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: limit(options.memory << 20, options.cpu_seconds),
    )
    try:
        err = process.communicate(timeout=options.wall_seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        err = process.communicate()[1]
        return None, err.decode(errors="replace")
    return process.returncode, err.decode(errors="replace")


def fault(case: Case, before: dict[str, bytes], status: int | None, err: str) -> str:
    """What is wrong with such an answer; "" where nothing is."""
    if status is None:
        return "hangs"
    if status < 0:
        return f"dies of {signal.Signals(-status).name}"
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if err.count("\n") > 1:
        return f"{err.count(chr(10))} lines on stderr"
    if status == 0:
        return ""
    if not err.startswith("msa: "):
        return "refuses without a line"
    if status == 1 and "json.exception" in err:
        return "blames itself for a file"
    after = contents(case.folder)
    left = [name for name in after if name not in before]
    if status == 1:  # a training that stops at a loss that is not a number has its log
        left = [name for name in left if not name.endswith("log.jsonl")]
    if left:
        return f"refuses and leaves {', '.join(left)}"
    if status == 2 and after != before:
        return "refuses and changes files"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("msa", type=pathlib.Path, help="the program")
    parser.add_argument("folder", type=pathlib.Path, help="for the files; those of a find stay in it")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, help="seed of the first case [the time]")
    parser.add_argument("--cases", type=int, help="run so many, instead of some seconds")
    parser.add_argument("--memory", type=int, default=3072, help="MiB of address space")
    parser.add_argument("--cpu-seconds", type=int, default=20)
    parser.add_argument("--wall-seconds", type=int, default=120, help="above: it hangs, or the machine is busy")
    options = parser.parse_args()

    bases = options.folder / "bases"
    make_bases(options.msa, bases)
    first = int(time.time()) if options.first is None else options.first
    deadline = time.monotonic() + options.seconds
    finds, counts = [], {}
    for seed in itertools.count(first):
        if seed - first == options.cases or (options.cases is None and time.monotonic() > deadline):
            break
        case = Case(seed, bases, options.folder / f"case-{seed}")
        before = contents(case.folder)
        status, err = run(options.msa, case, options)
        found = fault(case, before, status, err)
        counts[case.kind, status] = counts.get((case.kind, status), 0) + 1
        if found:
            finds.append(seed)
            print(
                f"seed {seed}, {case.kind}: {found}\n  msa {' '.join(case.command)}\n  {err.strip()[:300]}", flush=True
            )
        elif options.cases != 1:
            shutil.rmtree(case.folder)
    for kind in sorted(KINDS):
        answers = ", ".join(f"{counts[k, s]} x {s}" for k, s in sorted(counts, key=str) if k == kind)
        print(f"files: {kind}: {answers or 'none'}")
    print(f"files: seeds {first} to {seed - 1}")
    if finds:
        print(f"fuzz_files: found something: --first {' or '.join(map(str, finds))} --cases 1", file=sys.stderr)
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main())
