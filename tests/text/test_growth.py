"""Tokenizers that would lengthen a text without bound are refused before the library loads them."""

import base64
import json
import lzma
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.errors import BundleError
from siglip_onnx.export.tokenizer import OPEN_CLIP_CLEANING
from siglip_onnx.text.growth import check_document, check_text, read_checked
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
        read_checked(tmp_path / "tokenizer.json")


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
    read_checked(small_bundle / "tokenizer.json")
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
        tokenizers.Tokenizer.from_str(read_checked(path))
    for path in (material / "tokenizers").rglob("tokenizer*.json.xz"):
        check_text(lzma.decompress(path.read_bytes()).decode())


GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SIGLIP = r"""[!"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]"""
OF_EXPORT = [
    step["pattern"]["Regex"]
    for steps in OPEN_CLIP_CLEANING.values()
    for step in steps
    if "Regex" in step.get("pattern", {})
] + ["[ ▁]+$", " {2,}"]
# Runs in which an expression may look for something that is not there.
HARD = [
    run * (length // len(run)) + end
    for length in (2_000, 16_000)
    for run in (" ", "a", "A", "1Σ", "'", "a'1Σ", "\n ", " ▁", "!", "Σ'", "<|")
    for end in ("x", "1", "\n", "Σ")
]


@pytest.mark.parametrize("expression", [GPT_2, LLAMA_3, QWEN_2, CLIP, SIGLIP, r"\s+", r"^\s+", *OF_EXPORT])
def test_expressions_of_real_tokenizers_take_proportional_time(expression: str) -> None:
    """As they are loaded: two that export writes are replaced by ones that match the same."""
    step = {"type": "Replace", "pattern": {"Regex": expression}, "content": "#"}
    check_document({"normalizer": step})
    check_document({"pre_tokenizer": sequence_of_splits(expression)})
    loaded = json.loads(check_text(json.dumps({"normalizer": step}, ensure_ascii=expression.isascii())))
    new = tokenizers.normalizers.Replace(tokenizers.Regex(loaded["normalizer"]["pattern"]["Regex"]), "#")
    old = tokenizers.normalizers.Replace(tokenizers.Regex(expression), "#")
    for text in [*HARD[: len(HARD) // 2], "ΑΣ ΟΔΟΣ", "ΑΣ' 1Σ'' ΣΣ", " a  b ▁ \n ▁", ""]:
        assert new.normalize_str(text) == old.normalize_str(text)
    characters = tokenizers.normalizers.Replace(tokenizers.Regex("."), "#")
    unit = min(seconds_of(characters, "a" * max(map(len, HARD))) for _ in range(3))
    assert max(seconds_of(new, text) for text in HARD) < 50 * unit  # those that are replaced take 500 times as long


def sequence_of_splits(*expressions: str) -> dict[str, Any]:
    splits = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated"} for each in expressions]
    return {"type": "Sequence", "pretokenizers": splits}


def seconds_of(normalizer: Any, text: str) -> float:
    start = time.process_time()
    normalizer.normalize_str(text)
    return time.process_time() - start


@pytest.mark.parametrize(
    "expression",
    [
        r"a*a*(?!a)\w", "a*a*[^a]", "a+b", "a*(?=b)", r"a*\b", r"\s+$", "[ ]+$", "(a|aa)+[bc]", "(?:a|b)*c", r"\G",
        "(.*)(.*)x", r"(\w+\s?)+[0-9]", "a?" * 20 + "b", "a{0,99}a{0,99}b", "a{1,3}+b", "a{2}?b", "a++b", "a+?b",
        r"(a*)(a*)\1x",
        "(?<=a*)b", "x(?!a*b)", "a{501}", "a{500,}b", "a{3,1}b", "a{,}b", r"\s*[\r\n]+", r"\s*[\r\n]+|\s|\s+",
        r"\X", r"\R+", r"\K", r"(?<name>a)\k<name>", "(?x)a", "(?#a)", "(?>a+)b", "(ab)+", "[]a]*b", "a" * 2001,
        "(", "[a", "a|b*c",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ['"Regex"', '"\\u0052egex"'])
def test_expressions_that_may_take_longer_are_refused(expression: str, key: str) -> None:
    pattern = f"{{{key}: {json.dumps(expression)}}}"
    for document in (
        f'{{"normalizer": {{"type": "Replace", "content": "", "pattern": {pattern}}}}}',
        f'{{"pre_tokenizer": {{"type": "Split", "pattern": {pattern}}}}}',
    ):
        with pytest.raises(ValueError, match="a regular expression"):
            check_text(document)


def test_expression_of_export_in_another_spelling_is_refused() -> None:
    """It would not be replaced."""
    with pytest.raises(ValueError, match="a regular expression whose time"):
        check_text('{"normalizer": {"type": "Replace", "content": "", "pattern": {"Regex": "\\u005b \u2581]+$"}}}')


@pytest.mark.parametrize("pattern", [{"Regex": "[ab]" * 10}, {"String": "aaaaaaaaab"}])
def test_many_patterns_are_refused(pattern: dict[str, str]) -> None:
    step = {"type": "Replace", "pattern": pattern, "content": ""}
    check_document({"normalizer": sequence(*[step] * 50)})
    with pytest.raises(ValueError, match="patterns of 510 steps for each character, expected at most 500"):
        check_document({"normalizer": sequence(*[step] * 51)})


def test_slow_expression_is_one_error_of_the_model(small_bundle: Path, tmp_path: Path) -> None:
    document = json.loads((small_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": r"a*a*(?!a)\w"}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read: a regular expression whose time"):
        Tokenizer(tmp_path / "tokenizer.json", document["truncation"]["max_length"])


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
    assert min(seconds(lambda: read_checked(tmp_path / "tokenizer.json")) for _ in range(3)) < 100 * parsing
