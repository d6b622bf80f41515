#!/usr/bin/env python3
"""Writes the pictures of README.md and docs/ (docs/images/*.svg), and the tables of README.md and docs/performance.md that
hold the same figures, from docs/data/h200.json. With --check it writes nothing and fails where something is stale."""

import argparse
import difflib
import json
import math
import pathlib
import re
import sys
from decimal import Decimal

from svg import Page

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "h200.json"


def tokens(name: str) -> int:
    """of "128K" or "1M"."""
    return int(name[:-1]) << {"K": 10, "M": 20}[name[-1]]


# ---------------------------------------------------------------------------------------------------------- tables


def gain(dense: Decimal, ours: Decimal) -> str:
    ratio = dense / ours
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def tables(data: dict) -> dict[str, str]:
    """By the name that stands in the document: `<!-- table: NAME -->`."""
    prefill, decode = data["prefill"]["rows"], data["decode"]["rows"]
    places = [f"{row['context']} x {row['batch']}" for row in decode]

    def column(rows, name):
        return [str(row[name]) for row in rows]

    def ratio(row, name):
        return f"{row['dense'] / row[name]:.3g}"

    def gains(rows, name="openmsa"):
        return [gain(row["dense"], row[name]) for row in rows]

    return {
        "prefill": table(
            ["prompt, tokens", *(row["tokens"] for row in prefill)],
            [
                ["dense, ms", *column(prefill, "dense")],
                ["openmsa, ms", *column(prefill, "openmsa")],
                ["times faster", *gains(prefill)],
            ],
        ),
        "decode": table(
            ["decode step, context x batch", *places],
            [
                ["dense, us", *column(decode, "dense")],
                ["openmsa, us", *column(decode, "openmsa")],
                ["times faster", *gains(decode)],
                ["with fp8 index keys, us", *column(decode, "fp8_index_keys")],
                ["times faster", *gains(decode, "fp8_index_keys")],
            ],
        ),
        "prefill in full": table(
            ["tokens", "dense (cuDNN), ms", "openmsa, ms", "dense / openmsa", "commit"],
            [
                [row["tokens"], str(row["dense"]), str(row["openmsa"]), ratio(row, "openmsa"), row["commit"]]
                for row in prefill
            ],
        ),
        "decode in full": table(
            [
                "context x batch",
                "dense",
                "select",
                "attend",
                "layer",
                "dense / layer",
                "fp8 index keys",
                "dense / that",
                "commit",
            ],
            [
                [place, *(str(row[name]) for name in ("dense", "select", "attend", "openmsa")), ratio(row, "openmsa")]
                + [str(row["fp8_index_keys"]), ratio(row, "fp8_index_keys"), row["commit"]]
                for place, row in zip(places, decode)
            ],
        ),
    }


def with_tables(document: str, made: dict[str, str]) -> str:
    """The document with the lines of each marked table replaced."""
    return re.sub(
        r"(<!-- table: (.*?) -->\n)(?:\|.*\n)*", lambda found: found.group(1) + made[found.group(2)], document
    )


# -------------------------------------------------------------------------------------------------------- pictures


class LogPlot:
    """Both axes logarithmic, in a rectangle of the page."""

    def __init__(self, page: Page, box, x_range, y_range):
        self.page, self.box, self.x_range, self.y_range = page, box, x_range, y_range

    def place(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.box

        def share(value, span):
            return math.log(value / span[0]) / math.log(span[1] / span[0])

        return left + width * share(x, self.x_range), top + height * (1 - share(y, self.y_range))

    def axes(self, x_names: list[str], y_names: dict[float, str]):
        left, top, width, height = self.box
        for value, name in y_names.items():
            y = self.place(self.x_range[0], value)[1]
            self.page.line([(left, y), (left + width, y)], "line")
            self.page.text(left - 8, y + 4, name, "faint small", "end")
        for name in x_names:
            x = self.place(tokens(name), self.y_range[0])[0]
            self.page.line([(x, top + height), (x, top + height + 5)], "faint")
            self.page.text(x, top + height + 20, name, "faint small", "middle")

    def curve(self, points, colour, name):
        """points: (tokens, value); the name stands at the last one."""
        places = [self.place(tokens(at), float(value)) for at, value in points]
        self.page.line(places, colour, 2.5)
        for place in places:
            self.page.dot(*place, colour)
        x, y = places[-1]
        self.page.text(x + 12, y + 5, name, colour=colour)

    def gap(self, x_name: str, high: Decimal, low: Decimal):
        """The ratio of two curves, between them."""
        x, top = self.place(tokens(x_name), float(high))
        bottom = self.place(tokens(x_name), float(low))[1]
        self.page.line([(x, top + 9), (x, bottom - 9)], "faint", 1, stroke_dasharray="2 3")
        self.page.text(x + 12, (top + bottom) / 2 + 5, f"{gain(high, low)}x", "title")


def time_over_context(data: dict) -> Page:
    prefill = data["prefill"]["rows"]
    decode = [row for row in data["decode"]["rows"] if row["batch"] == 1]
    page = Page(940, 352, "Time of one attention layer over context, dense and openmsa, for a prompt and a decode step")
    page.text(24, 34, "Time of one attention layer over context", "title")
    page.text(24, 55, "the shape of MiniMax-M3: " + data["layer"] + "; one H200", "faint small")

    page.text(24, 88, "a prompt of N tokens")
    plot = LogPlot(page, (72, 106, 270, 206), (6 << 10, 1 << 20), (1, 1e5))
    plot.axes([row["tokens"] for row in prefill], {1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s"})
    for name, colour in (("dense", "dense"), ("openmsa", "sparse")):
        plot.curve([(row["tokens"], row[name]) for row in prefill], colour, f"{name} {prefill[-1][name] / 1000:.1f} s")
    plot.gap(prefill[-1]["tokens"], prefill[-1]["dense"], prefill[-1]["openmsa"])

    page.text(476, 88, "a decode step, one sequence with a context of N tokens")
    plot = LogPlot(page, (528, 106, 220, 206), (26 << 10, 1 << 20), (8, 1000))
    plot.axes([row["context"] for row in decode], {10: "10 us", 100: "100 us", 1e3: "1 ms"})
    curves = (
        ("dense", "dense", "dense"),
        ("openmsa", "sparse", "openmsa"),
        ("fp8_index_keys", "fp8", "fp8 index keys"),
    )
    for key, colour, name in curves:
        plot.curve([(row["context"], row[key]) for row in decode], colour, f"{name} {decode[-1][key]:.0f} us")
    plot.gap(decode[-1]["context"], decode[-1]["dense"], decode[-1]["openmsa"])
    return page


def branches() -> Page:
    """Heights are made up: the picture shows what is done, not what came of it."""
    scores = [30, 12, 20, 47, 16, 9, 24, 14, 52, 18, 11, 27, 15, 40, 13, 22]
    topk, left, step, width = 4, 196, 37, 31
    own = len(scores) - 1  # the query's own kv_block is always chosen
    best = sorted(range(own), key=lambda b: -scores[b])[: topk - 1]
    chosen = sorted([*best, own])
    center = [left + step * b + width / 2 for b in range(len(scores))]
    page = Page(
        940, 400, "The index branch scores every kv_block and keeps a few; the main branch attends to those alone"
    )

    def row_of_blocks(y, height, name, meaning):
        page.text(24, y + height / 2 - 2, name, "code")
        page.text(24, y + height / 2 + 15, meaning, "faint small")
        for b, x in enumerate(center):
            is_chosen = b in chosen
            page.rectangle(
                x - width / 2, y, width, height, "light" if is_chosen else "none", "sparse" if is_chosen else "line"
            )

    def query(y, name, meaning):
        page.rectangle(822, y, 94, 30, "none", "faint")
        page.text(869, y + 20, name, "code", "middle")
        page.text(869, y - 8, meaning, "faint small", "middle")
        page.arrow([(822, y + 15), (left + step * len(scores) + 4, y + 15)], "faint")

    page.text(24, 34, "Index branch", "title")
    page.text(
        172, 34, "one small key per token, for all heads: the score of a kv_block is its largest product with the query"
    )
    base = 142
    for b, x in enumerate(center):
        page.rectangle(
            x - 9, base - 1.35 * scores[b], 18, 1.35 * scores[b], "sparse" if b in chosen else "line", radius=2
        )
    page.text(24, base - 34, "block scores", "code")
    page.text(24, base - 17, "of one query", "faint small")
    row_of_blocks(152, 26, "index_k", "every kv_block")
    query(150, "index_q[i]", "per KV head")

    for b in chosen:
        page.arrow([(center[b], 182), (center[b], 256)], "sparse")
    page.text(24, 216, "top-k", "code")
    page.text(24, 233, "own kv_block always", "faint small")

    row_of_blocks(260, 44, "k, v", "chosen kv_blocks")
    query(267, "q[i]", "its G heads")
    for b in chosen:
        page.line([(center[b], 308), (center[b], 326)], "sparse", 1.5)
    page.arrow([(center[chosen[0]], 326), (869, 326), (869, 346)], "sparse")
    page.rectangle(822, 348, 94, 30, "light", "sparse")
    page.text(869, 368, "o[i]", "code", "middle")
    page.text(24, 368, "Main branch", "title")
    page.text(172, 368, "exact attention over topk x block_size tokens, however long the context is")
    return page


# ------------------------------------------------------------------------------------------------------------ main


def made_files() -> dict[pathlib.Path, str]:
    data = json.loads(DATA.read_text(), parse_float=Decimal, parse_int=Decimal)  # digits as they were measured
    images = ROOT / "docs" / "images"
    files = {images / "time.svg": str(time_over_context(data)), images / "branches.svg": str(branches())}
    for document in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        files[document] = with_tables(document.read_text(), tables(data))
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    is_check = parser.parse_args().check
    is_stale = False
    for path, text in made_files().items():
        if not is_check:
            path.write_text(text)
            continue
        written = path.read_text() if path.exists() else ""
        name = str(path.relative_to(ROOT))
        difference = list(difflib.unified_diff(written.splitlines(True), text.splitlines(True), name, DATA.name))
        sys.stderr.writelines(difference)
        is_stale = is_stale or bool(difference)
    sys.exit(is_stale)


if __name__ == "__main__":
    main()
