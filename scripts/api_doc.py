#!/usr/bin/env python3
"""Writes docs/api.md from the public headers; with --check fails when it is not what they say."""

import argparse
import difflib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADERS = ROOT / "include" / "openmsa"
INTRO = """# API

Made from [openmsa.h](../include/openmsa/openmsa.h), [openmsa.hpp](../include/openmsa/openmsa.hpp) and
[openmsa_nccl.h](../include/openmsa/openmsa_nccl.h) by `scripts/api_doc.py` (`make docs`); a test fails when it is not what
they say. [examples/](../examples) has whole programs.
"""


def comment_lines(comment):
    """The lines of a C comment without its frame."""
    first, *rest = re.sub(r"^/\*|\*/$", "", comment).split("\n")
    return [first.strip(), *(re.sub(r"^ ?\*? ?", "", line, count=1).rstrip() for line in rest)]


def prose(lines):
    """Markdown: equations and tables, which are indented, as they are; all else as paragraphs and lists."""
    out, in_code, in_item = [], False, False
    for line in lines:
        if re.match(r"\s*(-|\d+\.) ", line):
            in_item = True
        elif not line.startswith("    "):
            in_item = False
        is_code = line.startswith("  ") and not in_item
        if is_code != in_code:
            out.append("```text" if is_code else "```")
            in_code = is_code
        out.append(line[2:] if is_code or in_item else re.sub(r"\*|<(?=\w)", r"\\\g<0>", line))
    if in_code:
        out.append("```")
    return "\n".join(out).strip() + "\n"


def one_line(comment):
    return re.sub(r"\s+", " ", " ".join(comment_lines(comment))).replace("|", "\\|").strip() if comment else ""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


COMMENT = r"/\*.*?\*/"


def enum_doc(name, body):
    rows = []
    for value, number, comment in re.findall(rf"(\w+)\s*=\s*(\d+),?\s*({COMMENT})?", body, re.S):
        rows.append((f"`{value}`", number, one_line(comment)))
    return f"### `{name}`\n\n" + table(("value", "number", "meaning"), rows)


def struct_doc(name, body):
    """A table of members for each group that a comment of its own opens."""
    groups = [["", []]]
    for group, kind, member, comment in re.findall(
        rf"^  ({COMMENT})$|^  ([\w* ]+?[ *])(\w+(?:\[\w+\])?);(?:[ ]*({COMMENT}))?", body, re.S | re.M
    ):
        if group:
            groups.append([one_line(group), []])
        else:
            groups[-1][1].append((f"`{member}`", f"`{kind.strip()}`", one_line(comment)))
    parts = [f"### `{name}`\n"]
    for title, rows in groups:
        if not rows:
            continue
        if title:
            parts.append(f"{title[0].upper()}{title[1:]}:\n")
        parts.append(table(("member", "type", "meaning"), rows))
    return "\n".join(parts)


def split_header(text):
    """(comment, declaration) pairs, in order; the comment stands above the declaration or behind it on its line."""
    body = text[text.index("/* ----") : text.rindex("#ifdef __cplusplus")]
    declaration = r"typedef enum.*?\}[^;]*;|typedef struct \w+ \{.*?^\}[^;]*;|\w.*?;"
    above = ""
    for comment, declared, behind in re.findall(rf"({COMMENT})|({declaration})(?: ({COMMENT}))?", body, re.S | re.M):
        if declared:
            yield above or behind, declared
            above = ""
        elif comment.startswith("/* ----"):
            yield comment, ""
        else:
            above = comment


def c_section(comment):
    lines = comment_lines(comment)
    name = lines[0].strip("- ")
    return f"## {name.capitalize()}\n" + ("\n" + prose(lines[1:]) if lines[1:] else "")


def c_doc(text, title):
    top = re.match(COMMENT, text, re.S).group(0)
    parts = [f"## {title}\n", prose(comment_lines(top)[2:])]
    for comment, declaration in split_header(text):
        if comment.startswith("/* ----"):
            parts.append(c_section(comment))
            comment = ""
        about = prose(comment_lines(comment)) if comment else ""
        enum = re.match(r"typedef enum (\w+)[^{]*\{(.*)\}", declaration, re.S)
        struct = re.match(r"typedef struct (\w+) \{\n(.*)\n\}", declaration, re.S)
        if enum:
            parts += [enum_doc(*enum.groups()), about]
        elif struct:
            head, _, rest = struct_doc(*struct.groups()).partition("\n\n")
            parts += [head + "\n", about, rest]
        elif declaration:
            parts += ["```c\n" + re.sub(r"^OPENMSA_API |^ {12}", "", declaration, flags=re.M) + "\n```\n", about]
    return "\n".join(part for part in parts if part)


def cpp_signature(declaration):
    """A function without its initialisers and body."""
    return re.sub(r"(\)[^:{;]*?)\s*(?: : .*|\{.*|;)$", r"\1;", declaration, flags=re.S)


def cpp_doc(text):
    """The public declarations of the C++ header, each below its comment."""
    lines = iter(text.split("namespace openmsa {")[1].split("\n"))
    parts, comment, is_public = ["## C++\n", "```cpp"], [], True
    for line in lines:
        stripped = line.strip()
        if stripped in ("public:", "private:"):
            is_public = stripped == "public:"
        elif line == "};":
            is_public = True
            parts.append(line)
        elif stripped.startswith("///"):
            comment.append(line)
        elif stripped and is_public and not re.match(r"[}#]|//", stripped):
            declaration = line
            while not re.search(r"[{;]", declaration):
                declaration += "\n" + next(lines)
            is_class = stripped.startswith("class ")
            depth = 0 if is_class else declaration.count("{") - declaration.count("}")
            while depth > 0:
                body = next(lines)
                depth += body.count("{") - body.count("}")
            parts += [""] * bool(comment) + comment + [declaration if is_class else cpp_signature(declaration)]
            comment = []
    return "\n".join(parts + ["```", ""])


def page_of(c_header, cpp_header, nccl_header):
    page = "\n".join([INTRO, c_doc(c_header, "Rules"), cpp_doc(cpp_header), c_doc(nccl_header, "NCCL")])
    macros = r"OPENMSA_(?:API|ENUM_BASE|STATIC|OPENMSA_H|OPENMSA_NCCL_H|VERSION_\w+)\b"
    names = set(re.findall(rf"\b(?!{macros})(?:openmsa|OPENMSA)_\w+", c_header + nccl_header))
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", page))
    if missing:
        sys.exit("api_doc: not understood in the headers: " + " ".join(missing))
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when docs/api.md is stale")
    check = parser.parse_args().check
    page = ROOT / "docs" / "api.md"
    text = page_of(*((HEADERS / name).read_text() for name in ("openmsa.h", "openmsa.hpp", "openmsa_nccl.h")))
    if not check:
        page.write_text(text)
        return 0
    written = page.read_text() if page.exists() else ""
    difference = difflib.unified_diff(written.splitlines(True), text.splitlines(True), "docs/api.md", "the headers")
    sys.stderr.writelines(difference)
    return 0 if written == text else 1


if __name__ == "__main__":
    sys.exit(main())
