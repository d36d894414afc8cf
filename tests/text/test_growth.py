"""Tokenizers that would lengthen a text without bound are refused before the library loads them."""

import base64
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BundleError
from siglip_onnx.text.growth import check_document, check_file
from siglip_onnx.text.tokenizer import Tokenizer

DOUBLE: dict[str, Any] = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(longest: str) -> dict[str, Any]:
    blob = struct.pack("<I", 8) + bytes(8) + f"a\0{longest}\0".encode()
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


@pytest.mark.parametrize(
    "normalizer",
    [
        sequence(*[DOUBLE] * 30),
        sequence(sequence(*[DOUBLE] * 5), sequence(*[DOUBLE] * 5)),
        {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000},
        sequence(*[{"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "a"}] * 20),
        {"type": "Prepend", "prepend": "x" * 1_000_000},
        charsmap("犬" * 1000),
        sequence(*[{"type": "Lowercase"}] * 100),
        sequence(*[{"type": "ByteLevel"}] * 9),
    ],
)
@pytest.mark.parametrize("key", ['"normalizer"', '"normali\\u007aer"'])
def test_growing_normalizers_are_refused(small_bundle: Path, tmp_path: Path, normalizer: Any, key: str) -> None:
    text = (small_bundle / "tokenizer.json").read_text(encoding="utf-8")
    document = json.loads(text)
    end = json.dumps(document).rindex("}")
    # A second one replaces the first.
    (tmp_path / "tokenizer.json").write_text(f"{json.dumps(document)[:end]}, {key}: {json.dumps(normalizer)}}}")
    with pytest.raises(BundleError, match="a normalizer"):
        Tokenizer(tmp_path / "tokenizer.json", open_bundle(small_bundle).config.text.max_position_embeddings)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 24}, "64 times as long"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Split"}] * 65}, "more than 64 steps"),
        ("pre_tokenizer", {"type": "New"}, "unknown kind 'New'"),
        ("pre_tokenizer", {"type": ["New"]}, "unknown kind"),
        ("normalizer", sequence({"type": "New"}), "unknown kind 'New'"),
        ("normalizer", {"pattern": {"String": "a"}, "content": "aa"}, "unknown kind None"),  # the library guesses it
    ],
)
def test_steps_that_grow_or_are_unknown_are_refused(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_document({name: value})


@pytest.mark.parametrize(
    ("length", "count", "normalized", "replaced_by"),
    [(20_000, 1, False, 0), (400, 1, True, 90), (1, 30_000_000, False, 0), (2000, 10, True, 0)],
)
def test_added_tokens_that_take_long_are_refused(length: int, count: int, normalized: bool, replaced_by: int) -> None:
    """The library took 24 s for one of 20,000 characters, and as long for 400 that become 80,000."""
    document = {
        "added_tokens": [{"content": "a" * length, "normalized": normalized}] * count,
        "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * replaced_by},
    }
    with pytest.raises(ValueError, match="added tokens that are too many or too long"):
        check_document(document)


def test_growing_post_processors_are_refused(small_bundle: Path, tmp_path: Path) -> None:
    document = json.loads((small_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    document["post_processor"]["single"] = document["post_processor"]["single"] * 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="adds more than 100 tokens"):
        check_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("part", "key", "problem"),
    [("truncation", "stride", "whose parts overlap"), ("padding", "pad_to_multiple_of", "a padding to multiples")],
)
def test_parts_of_texts_that_nobody_reads_are_refused(
    small_bundle: Path, tmp_path: Path, part: str, key: str, problem: str
) -> None:
    """With a stride of the length less 2, 20 texts of 20,000 characters took 2.3 GB."""
    document = json.loads((small_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    document[part][key] = document["truncation"]["max_length"] - 2
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=problem):
        Tokenizer(tmp_path / "tokenizer.json", document["truncation"]["max_length"])


def test_ordinary_tokenizers_pass(small_bundle: Path) -> None:
    check_file(small_bundle / "tokenizer.json")
    check_document({})
    check_document(
        {
            "normalizer": sequence(*[{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}] * 60),
            "added_tokens": [{"content": "<unused>", "normalized": False}] * 1000,
        }
    )


def test_real_tokenizers_pass(material: Path) -> None:
    paths = list((material / "tokenizers").rglob("tokenizer.json"))
    assert paths
    for path in paths:
        check_file(path)


@pytest.mark.parametrize(
    "content",
    [
        '"' + r"\u0041" * 30_000 + '"',
        "[" + r'"\u0041", ' * 100_000 + r'"normalizer"]',
        '{"normalizer": [' * 400 + '"' + "x" * 4_000_000 + '"' + "]}" * 400,
    ],
)
def test_time_is_proportional_to_the_file(content: str, tmp_path: Path) -> None:
    """It is about that of parsing the file, and not that of reading a part again for each escape or key."""
    text = f'{{"normalizer": null, "x": {content}}}'
    (tmp_path / "tokenizer.json").write_text(text)

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    parsing = min(seconds(lambda: json.loads(text)) for _ in range(3))
    assert min(seconds(lambda: check_file(tmp_path / "tokenizer.json")) for _ in range(3)) < 100 * parsing
