"""Pages of source code as pixels. A page has lines of COLUMNS characters in a bitmap font; a patch is PATCH characters of a
line: what one token of the model holds."""

from __future__ import annotations

import functools

import numpy as np

COLUMNS, PATCH = 80, 8
TOKENS_PER_LINE = 10  # of the text that a page shows, some of which may lie beyond its last line
WIDTH, HEIGHT = 6, 11  # pixels of a character
PATCH_PIXELS = PATCH * WIDTH * HEIGHT


@functools.cache
def _glyphs() -> np.ndarray:
    """[128, HEIGHT, WIDTH] of 0 or 1: ASCII, the rest blank."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default_imagefont()
    glyphs = np.zeros((128, HEIGHT, WIDTH), np.uint8)
    for code in range(33, 127):
        image = Image.new("1", (WIDTH, HEIGHT))
        ImageDraw.Draw(image).text((0, 0), chr(code), font=font, fill=1)
        glyphs[code] = np.asarray(image)
    return glyphs


def num_patches(lines: int) -> int:
    return lines * COLUMNS // PATCH


def page(text: str, lines: int) -> np.ndarray:
    """[lines * HEIGHT, COLUMNS * WIDTH] of 0 or 1: the first lines, cut at the last column."""
    codes = np.zeros((lines, COLUMNS), np.uint8)
    for row, line in zip(codes, text.expandtabs(4).split("\n")):
        encoded = np.frombuffer(line.encode("ascii", "replace")[:COLUMNS], np.uint8)
        row[: len(encoded)] = encoded
    return _glyphs()[codes].transpose(0, 2, 1, 3).reshape(lines * HEIGHT, COLUMNS * WIDTH)


def patches(text: str, lines: int) -> np.ndarray:
    """[lines * COLUMNS / PATCH, PATCH_PIXELS]: of each line from left to right."""
    pixels = page(text, lines).reshape(lines, HEIGHT, COLUMNS // PATCH, PATCH * WIDTH)
    return pixels.transpose(0, 2, 1, 3).reshape(-1, PATCH_PIXELS)
