"""Plain technical English: words of the old dialect are absent from documents, help texts, docstrings and messages."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN = re.compile(
    r"(?<!there )\b(?:is no (?!longer|more|less)|anew\b|whoever\b|pictures?\b|told\b|goes on where\b)[^.\n]{0,30}", re.I
)
# Names of version 0.1 that are still accepted.
ALIASES = {"bench/schema.py", "web/app.py", "web/inputs.py", "web/schemas.py"}  # modules that accept them
ALLOWED = re.compile(r"`(?:pictures?|picture_ids|open_picture|Picture|SAMPLE_PICTURES_PATH|num_images)`")


def documents() -> Iterator[tuple[str, str]]:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "siglip_onnx/demo/MODEL_CARD.md"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line
    for path in (ROOT / "siglip_onnx/web/static/i18n").glob("en.json"):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            yield f"{path.name}:{key}", str(value)


def strings_of_package() -> Iterator[tuple[str, str]]:
    """Yield the place and text of each string of the package: docstrings, help texts, messages; names are left out."""
    for path in sorted((ROOT / "siglip_onnx").rglob("*.py")):
        if path.relative_to(ROOT / "siglip_onnx").as_posix() in ALIASES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def dialect(texts: Iterator[tuple[str, str]]) -> list[str]:
    return [f"{place}: {match[0]}" for place, text in texts for match in FORBIDDEN.finditer(ALLOWED.sub("", text))]


def test_language_of_documents() -> None:
    assert dialect(documents()) == []


def test_language_of_package() -> None:
    assert dialect(strings_of_package()) == []


def test_dialect_is_seen() -> None:
    texts = ["x is no folder", "begin anew", "a Picture", "`pictures`", "is told to", "it is no longer", "tell you"]
    assert dialect(iter([("here", text) for text in texts])) == [
        "here: is no folder", "here: anew", "here: Picture", "here: told to"
    ]  # fmt: skip
