"""Run every code block of README.md and docs/, and compare the output that follows a block with the real output.

Comments in a document: ``<!-- not run: REASON -->`` above a block leaves it out, ``<!-- needs: LIBRARY -->`` skips it
where that library is not installed, ``<!-- run by: TEST -->`` names another test that runs the document's blocks.
The blocks run in order in one folder that looks like a checkout; Python blocks share their names. In an output ``...``
stands for any text, and floats may differ as CPUs differ. ``UPDATE_DOCUMENTS=1 pytest tests/docs`` writes the real
outputs into the documents, except where one has ``...``; read the difference before you commit it.
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?:<!-- (not run|needs): ([^>]+) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
OUTPUTS = ("text", "json", "csv")
# Commands that need the network, minutes, or Ctrl-C; their blocks must say so.
NOT_HERE = re.compile(
    r"^\s*(?:\w+=\S+ )?(?:curl|git|make|pip|ray|siglip-onnx (?:web|export|import|models (?:pull|push)))\b", re.M
)
FLOAT = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?|\d+e-\d+")


class Block(NamedTuple):
    """A fenced block of a document; ``output`` is the text of an output block right after it."""

    line: int
    mark: str
    reason: str
    language: str
    code: str
    output: str | None


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a Markdown text that can be run, or are marked."""
    matches = list(BLOCK.finditer(text))
    for match, following in zip_longest(matches, matches[1:]):
        mark, reason, language, code = match.groups("")
        is_output = following and following[3] in OUTPUTS and not text[match.end() : following.start()].strip()
        if language not in OUTPUTS and language:
            line = text.count("\n", 0, match.start()) + 1
            yield Block(line, mark, reason, language, code, following[4] if following and is_output else None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_of_document(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = document.read_text(encoding="utf-8")
    if elsewhere := re.search(r"^<!-- run by: (\S+) -->$", text, re.M):
        assert document.name in (ROOT / elsewhere[1]).read_text(encoding="utf-8"), f"{elsewhere[1]} does not run it"
        return
    make_checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, object] = {"__name__": "__main__"}
    for block in read_blocks(text):
        if block.mark == "not run" or (block.mark == "needs" and find_spec(block.reason) is None):
            continue
        where = f"{document.name}:{block.line}"
        output = run_python(block.code, names, where) if block.language == "python" else run_shell(block.code, where)
        if block.output is None:
            continue
        if "UPDATE_DOCUMENTS" in os.environ and "..." not in block.output:
            text = text.replace(f"\n{block.output}```\n", f"\n{output.rstrip()}\n```\n", 1)
            document.write_text(text, encoding="utf-8")
        elif not same(block.output, output):
            pytest.fail(f"{where} shows\n{block.output}\nbut the output is\n{output}")


@pytest.mark.parametrize(
    ("shown", "real", "equal"),
    [
        ("a red star 0.86, 6.8e-05", "a  red star 0.85, 7.1e-05\n", True),
        ("a red star 0.86", "a red star 0.31", False),
        ("3 images", "4 images", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\ne", "a\nb\nc\nd", False),
        ("a 1.5\n...", "a 2.5\nb", False),
        ("a", "a\nb", False),
    ],
)
def test_comparison_of_outputs(shown: str, real: str, equal: bool) -> None:
    assert same(shown, real) == equal


def test_blocks_are_found_with_marks_and_outputs() -> None:
    text = "<!-- not run: minutes -->\n```sh\nmake\n```\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    marked, compared = read_blocks(text)
    assert marked == Block(1, "not run", "minutes", "sh", "make\n", None)
    assert compared == Block(6, "", "", "python", "print(1)\n", "1\n")


def make_checkout(folder: Path) -> None:
    """Link what a checkout has and the model ``MODEL``, and put images where the documents name some."""
    for name in ("siglip_onnx", "examples", "benchmarks", "docs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "MODEL").symlink_to(ROOT / "siglip_onnx/demo/bundle")
    (folder / "photos").mkdir()
    for image in ("red_star.png", "six_eggs.png", "word_open.png"):
        for name in (f"photos/{image}", "photo.jpg", "dog.jpg"):
            (folder / name).write_bytes((ROOT / "siglip_onnx/demo/images" / image).read_bytes())


def run_python(code: str, names: dict[str, object], where: str) -> str:
    """Run a Python block in this process and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, where, "exec"), names)  # noqa: S102 - the documents are our own
    return output.getvalue()


def run_shell(code: str, where: str) -> str:
    """Run a shell block and return its standard output."""
    refused = NOT_HERE.search(code)
    assert refused is None, f"{where} runs {refused[0].strip()!r}; write <!-- not run: REASON --> above it"
    shell = ["/bin/bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{where} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def same(shown: str, real: str) -> bool:
    """Compare two outputs: words exactly, white space and the size of floats loosely."""
    masked, masked_real = (FLOAT.sub("0.0", text).strip() + "\n" for text in (shown, real))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(masked, masked_real, flags) and all(
        any(close(line, other) for other in real.splitlines()) for line in shown.splitlines() if "..." not in line
    )


def close(shown: str, real: str) -> bool:
    floats, real_floats = ([float(number) for number in FLOAT.findall(line)] for line in (shown, real))
    words = [FLOAT.sub("0.0", line).split() for line in (shown, real)]
    return words[0] == words[1] and floats == pytest.approx(real_floats, rel=0.2, abs=1e-9)
