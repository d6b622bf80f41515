#!/usr/bin/env python3
"""Compares the formulas that docs/api.md shows, line by line, with formulas.txt: a formatter that wraps comments can move
the end of a formula into the sentence after it. Run with --update after a change of a formula, and read the difference."""

import argparse
import difflib
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "api.md"


def formulas(page):
    """The lines of all blocks of text, a blank line after each block."""
    blocks = re.findall(r"^```text\n(.*?)^```$", page, re.S | re.M)
    return "\n".join(blocks)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write formulas.txt")
    update = parser.parse_args().update
    found, known = formulas(PAGE.read_text()), HERE / "formulas.txt"
    if update:
        known.write_text(found)
        return 0
    expected = known.read_text()
    sys.stderr.writelines(
        difflib.unified_diff(expected.splitlines(True), found.splitlines(True), "formulas.txt", "docs/api.md")
    )
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main())
