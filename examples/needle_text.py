"""Texts with facts in them: ``kx7=4931; `` among random words or lines of Python's own library, for needle.py. As a script it
writes training text, documents in which each fact comes back many times.

    python needle_text.py FILE --documents 1000 --length 6000 --facts 4 16
"""

import argparse
import random
import string
import sysconfig
from pathlib import Path

KEY_LETTERS, KEY_LENGTH, VALUE_LENGTH = string.ascii_lowercase + string.digits, 3, 4
# Every fifth file of the library is for questions, the others for training.
HELD_OUT = 5


def key_and_value(draw: random.Random) -> tuple[str, str]:
    key = "".join(draw.choices(KEY_LETTERS, k=KEY_LENGTH))
    return key + "=", "".join(draw.choices(string.digits, k=VALUE_LENGTH))


def fact(draw: random.Random) -> str:
    return "".join(key_and_value(draw)) + "; "


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


def document(noise: Noise, length: int, num_facts: int, most_noise: float, draw: random.Random) -> str:
    """Facts that come back, with up to that share of noise between them."""
    facts = [fact(draw) for _ in range(num_facts)]
    kind, share = draw.choice(("words", "code")), draw.uniform(0, most_noise)
    text, noise_length = "", 0
    while len(text) < length:
        if noise_length < share * len(text):
            piece = noise.piece(kind, draw)
            noise_length += len(piece)
        else:
            piece = draw.choice(facts)
        text += piece
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--length", type=int, default=6000, help="characters of a document")
    parser.add_argument("--facts", type=int, nargs=2, default=(4, 16), metavar=("LEAST", "MOST"))
    parser.add_argument("--noise", type=float, default=0.7, help="largest share of noise in a document")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, noise = random.Random(options.seed), Noise(is_held_out=False)
    texts = (
        document(noise, options.length, draw.randint(*options.facts), options.noise, draw)
        for _ in range(options.documents)
    )
    options.file.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
