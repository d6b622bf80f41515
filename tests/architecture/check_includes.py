#!/usr/bin/env python3
"""Compares the includes of the sources with the arrows of docs/architecture.md: its block "arrows", whose lines are

    folder -> folder, folder

and give all that the files of a folder may include beside each other. A file belongs to the longest name that its path
begins with; a name may be a single file. Fails for an include that no arrow allows, for an arrow that no include uses, for a
source file that belongs to nothing, and for arrows that lead back to where they began."""

import argparse
import pathlib
import re
import sys

SOURCES = ("include", "src", "judge", "apps", "python/src")
ENDINGS = {".h", ".hpp", ".cc", ".c", ".cuh", ".cu", ".in"}
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')


def arrows_of(page):
    """{folder: set of folders}, and the line that each folder's arrows stand on."""
    text = page.read_text()
    block = re.search(r"^```arrows\n(.*?)^```$", text, re.S | re.M)
    if block is None:
        sys.exit(f'{page}: expected a block "arrows"')
    first = text[: block.start(1)].count("\n") + 1
    arrows, lines = {}, {}
    for number, line in enumerate(block.group(1).splitlines(), first):
        source, _, targets = line.partition("->")
        arrows[source.strip()] = {target.strip() for target in targets.split(",") if target.strip()}
        lines[source.strip()] = number
    return arrows, lines


def owner(path, folders):
    """The longest of `folders` that `path` lies in or is."""
    owners = [folder for folder in folders if path == folder or path.startswith(folder + "/")]
    return max(owners, key=len, default=None)


def resolve(root, file, name):
    """The file of this tree that an include means, relative to root; None for headers of others and generated ones."""
    for base in (file.parent, root / "include", root / "src", root / "apps", root):
        if (base / name).is_file():
            return (base / name).resolve().relative_to(root).as_posix()
    return None


def includes(root):
    """(file, line, file that it includes) of all sources."""
    files = [file for folder in SOURCES for file in sorted((root / folder).rglob("*")) if file.suffix in ENDINGS]
    for file in files:
        yield file.relative_to(root).as_posix(), 0, None
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            target = resolve(root, file, found.group(1)) if found else None
            if target is not None:
                yield file.relative_to(root).as_posix(), number, target


def circle(arrows):
    """Folders whose arrows lead back to the first of them; [] when there is no such circle."""

    def walk(path):
        for target in sorted(arrows.get(path[-1], ())):
            if target == path[0]:
                return [*path, target]
            if target not in path:
                found = walk([*path, target])
                if found:
                    return found
        return []

    return next((found for folder in arrows if (found := walk([folder]))), [])


def problems(root, page):
    arrows, lines = arrows_of(page)
    folders = arrows.keys() | {target for targets in arrows.values() for target in targets}
    place = page.relative_to(root).as_posix()
    used = set()
    for file, number, target in includes(root):
        source = owner(file, folders)
        if target is None:
            if source is None:
                yield f"{file}: belongs to no folder of {place}"
            continue
        to = owner(target, folders)
        used.add((source, to))
        if source is not None and source != to and to not in arrows.get(source, ()):
            yield f"{file}:{number}: includes {target}, but {place} has no arrow {source} -> {to}"
    for source, targets in arrows.items():
        for to in sorted(targets):
            if (source, to) not in used:
                yield f"{place}:{lines[source]}: no include uses the arrow {source} -> {to}"
    if around := circle(arrows):
        yield f"{place}: the arrows lead around: {' -> '.join(around)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent.parent)
    root = parser.parse_args().root.resolve()
    found = list(problems(root, root / "docs" / "architecture.md"))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
