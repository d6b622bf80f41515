"""Texts with facts in them, for needle.py: ``KXQ4931; `` among random words or lines of Python's own library. As a
script it writes training text: documents in which the same few facts, or plain strings, come back again and again.

    python needle_text.py FILE --documents 700 --length 6000 --facts 4 16 --noise 0 0.7
"""

import argparse
import random
import string
import sysconfig
from pathlib import Path

# Nothing separates key and value: after a separator, which all facts share, a small model learns that some value
# follows, but on most seeds never which one.
KEY_LENGTH, VALUE_LENGTH = 3, 4
# Every fifth file of the library is for questions, the others for training.
HELD_OUT = 5


def key_and_value(draw: random.Random) -> tuple[str, str]:
    key = "".join(draw.choices(string.ascii_uppercase, k=KEY_LENGTH))
    return key, "".join(draw.choices(string.digits, k=VALUE_LENGTH))


def fact(draw: random.Random) -> str:
    return "".join(key_and_value(draw)) + "; "


def plain_string(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_uppercase + string.digits, k=draw.randint(5, 10))) + " "


def library_files(is_held_out: bool) -> list[Path]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [file for number, file in enumerate(files) if (number % HELD_OUT == 0) == is_held_out]


class Noise:
    """What surrounds the facts: pieces of `kind` "words" or "code"."""

    def __init__(self, is_held_out: bool):
        code = "".join(file.read_text(errors="ignore") for file in library_files(is_held_out))
        self._code = code.encode("ascii", "ignore").decode()

    def piece(self, kind: str, draw: random.Random) -> str:
        if kind == "words":
            return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8))) + " "
        length = draw.randint(8, 60)
        begin = draw.randrange(len(self._code) - 200)
        return self._code[begin : self._code.find(" ", begin + length) + 1]

    def text(self, kind: str, length: int, draw: random.Random) -> str:
        """At least `length` characters of it in one piece; of code, a passage as it stands."""
        if kind == "code":
            begin = self._code.find("\n", draw.randrange(len(self._code) - length - 1000)) + 1
            return self._code[begin : begin + length]
        pieces = [self.piece(kind, draw) for _ in range(length // 4)]
        return "".join(pieces)[:length]


def document(noise: Noise, length: int, strings: list[str], noise_share: float, draw: random.Random) -> str:
    """Strings that come back, with that share of noise between them."""
    kind = draw.choice(("words", "code"))
    text, noise_length = "", 0
    while len(text) < length:
        if noise_length < noise_share * len(text):
            piece = noise.piece(kind, draw)
            noise_length += len(piece)
        else:
            piece = draw.choice(strings)
        text += piece
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--length", type=int, default=6000, help="characters of a document")
    parser.add_argument("--facts", type=int, nargs=2, default=(4, 16), metavar=("LEAST", "MOST"), help="per document")
    parser.add_argument(
        "--noise", type=float, nargs=2, default=(0, 0.7), metavar=("LEAST", "MOST"), help="share of a document"
    )
    parser.add_argument("--plain", type=float, default=0.0, help="share of documents with plain strings for facts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, noise = random.Random(options.seed), Noise(is_held_out=False)
    texts = []
    for _ in range(options.documents):
        make = plain_string if draw.random() < options.plain else fact
        strings = [make(draw) for _ in range(draw.randint(*options.facts))]
        texts.append(document(noise, options.length, strings, draw.uniform(*options.noise), draw))
    options.file.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
