"""The text: source code of the packages that this Python has, and its tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FILE, IMAGE = 0, 1  # tokens: a file begins; a patch of a page
# One in so many files is held out.
HELD_OUT = 40
LARGEST_FILE = 256 << 10
SAMPLE_BYTES = 24 << 20  # that the tokenizer is trained on
BATCH = 512  # files that are encoded at once
PARTS = ("train", "held_out")


def source_files(most_bytes: int) -> Iterator[tuple[Path, str]]:
    """Files and their text, packages in an order that their names' digests give, no text twice. Generated tables, of long
    lines or many of them, are left out."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))
    packages = {path for root in roots for path in root.iterdir() if path.name != "site-packages"}
    seen: set[bytes] = set()
    total = 0
    for package in sorted(packages, key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        for path in [package] if package.suffix == ".py" else sorted(package.rglob("*.py")):
            if not path.is_file() or not 200 < path.stat().st_size < LARGEST_FILE:
                continue
            text = path.read_text(encoding="utf-8", errors="ignore")
            digest = hashlib.sha256(text.encode()).digest()
            if digest in seen or len(text) > 100 * (1 + text.count("\n")):
                continue
            seen.add(digest)
            total += len(text)
            yield path, text
            if total >= most_bytes:
                return


def is_held_out(path: Path) -> bool:
    return zlib.crc32("/".join(path.parts[-3:]).encode()) % HELD_OUT == 0


def prepare(folder: Path, vocab_size: int, most_bytes: int) -> None:
    """Writes tokenizer.json and, of each part, tokens uint16 and where its files begin."""
    files = list(source_files(most_bytes))
    if not files:
        raise SystemExit("train_lm: expected source files of Python packages, found none")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _trained_tokenizer([text for path, text in files if not is_held_out(path)], vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    for part in PARTS:
        texts = [text for path, text in files if is_held_out(path) == (part == "held_out")]
        encoded = list(_encoded(tokenizer, texts))
        np.save(folder / f"{part}.npy", np.concatenate(encoded))
        np.save(folder / f"{part}_starts.npy", np.cumsum([0, *map(len, encoded)])[:-1])
        size, tokens = sum(map(len, texts)) / 1e6, sum(map(len, encoded)) / 1e6
        print(f"{part}: {len(texts)} files, {size:.1f} MB, {tokens:.2f} M tokens")


def _encoded(tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """Tokens of each file, FILE in front."""
    for begin in range(0, len(texts), BATCH):
        for one in tokenizer.encode_batch(texts[begin : begin + BATCH]):
            yield np.array([FILE, *one.ids], np.uint16)


def _trained_tokenizer(texts: list[str], vocab_size: int):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<file>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    step = max(sum(map(len, texts)) // SAMPLE_BYTES, 1)
    tokenizer.train_from_iterator(texts[::step], trainer)
    return tokenizer


@dataclasses.dataclass
class Corpus:
    """Tokens of one part.

    feeds_line  whether a token of the vocabulary begins with a line feed; the blanks that the next line begins with are often
                part of it
    words       those of the vocabulary that with the blank before them are one token
    """

    tokens: np.ndarray
    starts: np.ndarray
    tokenizer: object
    feeds_line: np.ndarray
    words: list[str]

    def passage(self, draw: np.random.Generator, length: int) -> np.ndarray:
        """So many tokens from the beginning of some file on."""
        begin = int(draw.choice(self.starts))
        return np.take(self.tokens, np.arange(begin, begin + length), mode="wrap").astype(np.int64)

    def line_ends(self, passage: np.ndarray) -> np.ndarray:
        """Places of a passage in front of its line feeds, or its beginning where it has none."""
        places = np.flatnonzero(self.feeds_line[passage])
        return places if len(places) else np.zeros(1, np.int64)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text).ids, np.int64)

    def decode(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens.tolist())


def load(folder: Path, part: str) -> Corpus:
    from tokenizers import Tokenizer

    path = folder / f"{part}.npy"
    if not path.exists():
        raise SystemExit(f"train_lm: {path}: expected tokens; `python examples/train_lm.py prepare` writes them")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    feeds_line = np.array([token.startswith("Ċ") for token in vocabulary])  # as byte-level tokens spell a line feed
    words = [token[1:] for token in vocabulary if re.fullmatch("Ġ[a-z]{4,}", token)]
    return Corpus(np.load(path, mmap_mode="r"), np.load(folder / f"{part}_starts.npy"), tokenizer, feeds_line, words)
