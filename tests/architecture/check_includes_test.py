#!/usr/bin/env python3
"""check_includes.py on small trees, each wrong in one way."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("check_includes.py")
TREE = {
    "docs/architecture.md": "# Map\n\n```arrows\nsrc/core -> include\nsrc/api -> src/core\n```\n",
    "include/lib.h": "",
    "src/core/error.h": "#include <lib.h>\n#include <vector>\n",
    "src/api/call.h": "",
    "src/api/call.cc": '#include "api/call.h"\n#include "core/error.h"\n',
}


def complaints(**changes):
    """What the script says of TREE with files changed; `__` in a name stands for `/`, `_` before the ending for a dot."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        files = TREE | {name.replace("__", "/").replace("_", "."): text for name, text in changes.items()}
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        done = subprocess.run([sys.executable, SCRIPT, "--root", root], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert (done.returncode == 0) == (not lines), done
    return lines


class CheckIncludes(unittest.TestCase):
    def test_a_tree_that_keeps_to_its_arrows_passes(self):
        self.assertEqual(complaints(), [])

    def test_an_include_without_an_arrow_is_named_with_its_line(self):
        found = complaints(src__core__error_h='#include <lib.h>\n\n#include "api/call.h"\n')
        expected = (
            "src/core/error.h:3: includes src/api/call.h, but docs/architecture.md has no arrow src/core -> src/api"
        )
        self.assertEqual(found, [expected])

    def test_an_arrow_that_nobody_uses_is_named_with_its_line(self):
        found = complaints(src__api__call_cc='#include "api/call.h"\n')
        self.assertEqual(found, ["docs/architecture.md:5: no include uses the arrow src/api -> src/core"])

    def test_a_file_outside_of_the_map_is_named(self):
        self.assertEqual(complaints(src__more_h=""), ["src/more.h: belongs to no folder of docs/architecture.md"])

    def test_a_file_may_have_arrows_of_its_own(self):
        page = TREE["docs/architecture.md"].replace("src/api ->", "src/api ->\nsrc/api/call.cc -> src/api,")
        self.assertEqual(complaints(docs__architecture_md=page), [])

    def test_arrows_that_lead_around_are_named(self):
        page = TREE["docs/architecture.md"].replace("-> include", "-> include, src/api")
        found = complaints(docs__architecture_md=page, src__core__error_h='#include <lib.h>\n#include "api/call.h"\n')
        expected = "docs/architecture.md: the arrows lead around: src/core -> src/api -> src/core"
        self.assertEqual(found, [expected])


if __name__ == "__main__":
    unittest.main()
