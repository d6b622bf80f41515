"""Documents against the tree: links and named files exist, listings are those of examples/, and no example enters a CUDA stream
that has not waited for the one before. Run by ctest, with nothing but Python's own library: python3 test_documents.py"""

import ast
import doctest
import re
import textwrap
import unittest
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("apps", "cmake", "docs", "examples", "hub", "include", "judge", "python", "scripts", "src", "tests")
SOURCES = (".h", ".hpp", ".c", ".cc", ".cu", ".cuh", ".S", ".py", ".sh", ".cmake")
DOCUMENTS = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_listings(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def listings(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_listings(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def unwaited_streams(source: str) -> list[str]:
    """Streams that `source` enters with torch.cuda.stream before it called their wait_stream or wait_event."""
    waits: dict[str, int] = {}
    entered: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            stream = ast.unparse(node.func.value)
            if node.func.attr in ("wait_stream", "wait_event"):
                waits[stream] = min(node.lineno, waits.get(stream, node.lineno))
            elif node.func.attr == "stream" and stream.endswith("cuda"):
                entered.append((ast.unparse(node.args[0]), node.lineno))
    return [f"{stream}, line {line}" for stream, line in entered if not waits.get(stream, line) < line]


def docstrings(module: Path) -> list[str]:
    """The doctests of a module, each docstring as one program."""
    nodes = ast.walk(ast.parse(module.read_text()))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
    return ["".join(example.source for example in doctest.DocTestParser().get_examples(text)) for text in texts]


class Links(unittest.TestCase):
    maxDiff = None

    def test_lead_somewhere(self):
        broken = []
        for document in DOCUMENTS:
            for link in re.findall(r"\]\(([^()\s]+)\)", without_listings(document.read_text())):
                if re.match(r"\w+:", link):
                    continue
                path, _, anchor = unquote(link).partition("#")
                target = (document.parent / path).resolve() if path else document
                if not target.exists():
                    broken.append(f"{name_of(document)}: {link}")
                elif anchor and anchor not in anchors(target.read_text()):
                    broken.append(f"{name_of(document)}: {link}: no such heading")
        self.assertEqual(broken, [])

    def test_named_files_exist(self):
        """`src/cpu/work.h` from the root, {a,b} and * included; source files also by the end of their path, as `work.h`."""
        sources = [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
        missing = []
        for document in DOCUMENTS:
            for span in re.findall(r"`([^`\n]+)`", without_listings(document.read_text())):
                if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*{{}},-]*", span):
                    head, choice, tail = re.fullmatch(r"([^{]*)(?:\{([^}]*)\})?(.*)", span).groups()
                    names = [head + part + tail for part in (choice or "").split(",")]
                    missing += [
                        f"{name_of(document)}: {name}" for name in names if not any(ROOT.glob(name.rstrip("/")))
                    ]
                elif re.fullmatch(r"[\w/-]+\.(h|hpp|c|cc|cu|cuh|py|sh)", span):
                    if not any(source.endswith(f"/{span}") for source in sources):
                        missing.append(f"{name_of(document)}: {span}")
        self.assertEqual(missing, [])

    def test_documents_that_sources_name_exist(self):
        missing = []
        for folder in FOLDERS:
            for path in sorted((ROOT / folder).rglob("*")):
                if path.suffix in SOURCES or path.name == "CMakeLists.txt":
                    named = re.findall(r"docs/[\w/-]+\.md", path.read_text())
                    missing += [f"{name_of(path)}: {name}" for name in named if not (ROOT / name).exists()]
        self.assertEqual(missing, [])


class Listings(unittest.TestCase):
    def test_of_the_readme_are_compiled(self):
        examples = [path.read_text() for path in (ROOT / "examples").iterdir() if path.suffix in (".c", ".cc")]
        readme = (ROOT / "README.md").read_text()
        quoted = listings(readme, "cpp") + listings(readme, "c")
        self.assertTrue(quoted)
        for listing in quoted:
            self.assertTrue(any(listing in example for example in examples), f"in no example:\n{listing}")


class Streams(unittest.TestCase):
    def test_are_entered_after_a_wait(self):
        programs = [
            (name_of(document), listing)
            for document in DOCUMENTS
            for listing in listings(document.read_text(), "python")
        ]
        for folder in ("examples", "python", "tests/python"):
            for module in sorted((ROOT / folder).rglob("*.py")):
                programs += [(name_of(module), source) for source in [module.read_text(), *docstrings(module)]]
        found = [f"{name}: {stream}" for name, source in programs for stream in unwaited_streams(source)]
        self.assertEqual(found, [])

    def test_without_a_wait_are_found(self):
        program = textwrap.dedent("""
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                attend(tensors)
        """)
        self.assertEqual(unwaited_streams(program), ["stream, line 3"])
        late = program + "stream.wait_stream(torch.cuda.current_stream())\n"
        self.assertEqual(unwaited_streams(late), ["stream, line 3"])
        mended = program.replace("with", "stream.wait_stream(torch.cuda.current_stream())\nwith", 1)
        self.assertEqual(unwaited_streams(mended), [])


if __name__ == "__main__":
    unittest.main()
