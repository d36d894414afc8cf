"""Tokenizers that could take much more memory or time than their texts are refused before the library loads them."""

import base64
import contextlib
import json
import lzma
import struct
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from siglip_onnx.errors import BundleError
from siglip_onnx.export.tokenizer import OPEN_CLIP_CLEANING
from siglip_onnx.text.growth import _length, check_document, check_text, read_checked
from siglip_onnx.text.tokenizer import Tokenizer

DOUBLE: dict[str, Any] = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(longest: str) -> dict[str, Any]:
    blob = struct.pack("<I", 8) + bytes(8) + f"a\0{longest}\0".encode()
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


def splits(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def replace(pattern: str, content: str, **other: Any) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content, **other}


@pytest.mark.parametrize(
    ("normalizer", "problem"),
    [
        (sequence(*[DOUBLE] * 30), "64 times as long"),
        (sequence(sequence(*[DOUBLE] * 5), sequence(*[DOUBLE] * 5)), "64 times"),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 100}, "100 times"),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 1000}, "1,000 characters, expected"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": "b" * 100}, "101 times"),
        (sequence(*[replace("(?=a)", "a")] * 20), "64 times"),
        (sequence(*[replace("(?:a|)", "a")] * 20), "64 times"),
        ({"type": "Prepend", "prepend": "x" * 41}, "add 41 characters"),
        (sequence(*[{"type": "Prepend", "prepend": "x" * 30}] * 2), "add 60 characters"),
        # What one step adds, the next ones lengthen.
        (sequence({"type": "Prepend", "prepend": "x" * 30}, replace(".", "aa")), "add 60 characters"),
        (sequence({"type": "Prepend", "prepend": "x" * 5}, *[replace("$", "aa")] * 3), "add 53 characters"),
        (charsmap("犬" * 100), "100 times"),
        (sequence(*[charsmap("犬" * 10)] * 2), "100 times"),
        # Each of these letters becomes 18.
        (sequence(replace(".", "\ufdfa\ufdfa\ufdfa"), {"type": "NFKC"}), "54 times"),
        (charsmap("\ufdfa\ufdfa\ufdfa"), "54 times"),
        ({"type": "Prepend", "prepend": "\ufdfa" * 10}, "add 180 characters"),
        (sequence(*[{"type": "Lowercase"}] * 100), "a normalizer of more than 64 steps"),
        (sequence(*[sequence()] * 100), "a normalizer of more than 64 steps"),
        (sequence(*[{"type": "ByteLevel"}] * 9), "144 times"),
    ],
)
@pytest.mark.parametrize("key", ['"normalizer"', '"normali\\u007aer"'])
def test_growing_normalizers_are_refused(normalizer: Any, problem: str, key: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_text(f"{{{key}: {json.dumps(normalizer)}}}")


def test_growing_normalizer_is_one_error_of_the_model(small_bundle: Path, tmp_path: Path) -> None:
    document = json.loads((small_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"normalizer": sequence(*[DOUBLE] * 30)}))
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read: steps that make a text 64 times as long"):
        Tokenizer(tmp_path / "tokenizer.json", document["truncation"]["max_length"])


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("pre_tokenizer", splits(*[BYTE_LEVEL] * 2), "144 times as long"),
        ("pre_tokenizer", splits(*[METASPACE] * 6), "64 times as long"),
        ("pre_tokenizer", splits(*[{"type": "Whitespace"}] * 65), "more than 64 steps"),
        ("pre_tokenizer", {"type": "New"}, "unknown type 'New'"),
        ("pre_tokenizer", {"type": ["New"]}, "unknown type"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 1}, "unknown type"),
        ("pre_tokenizer", ["ByteLevel", True], "pre_tokenizer of the tokenizer is"),  # the library reads this too
        ("normalizer", sequence({"type": "New"}), "unknown type 'New'"),
        ("normalizer", {"type": "BertNormalizer"}, "unknown type"),
        ("normalizer", {"pattern": {"String": "a"}, "content": "aa"}, "unknown type None"),  # the library guesses it
        # A step that is not a sequence has no parts, whatever its keys say.
        ("normalizer", replace(".", "x" * 10, normalizers=[]), "unknown key 'normalizers'"),
        ("normalizer", sequence(replace(".", "x", normalizers=None)), "unknown key 'normalizers'"),
        ("normalizer", {"type": "Prepend", "prepend": "x", "normalizers": []}, "unknown key 'normalizers'"),
        ("normalizer", {"type": "New", "normalizers": []}, "unknown type 'New'"),
        ("normalizer", {"type": "Sequence", "normalizers": {"0": DOUBLE}}, "normalizers of .* is"),
        ("normalizer", {"type": "Sequence", "pretokenizers": []}, "unknown key 'pretokenizers'"),
        ("pre_tokenizer", BYTE_LEVEL | {"pretokenizers": []}, "unknown key 'pretokenizers'"),
        ("pre_tokenizer", splits(BYTE_LEVEL | {"pretokenizers": []}), "unknown key 'pretokenizers'"),
        ("normalizer", replace("x", "") | {"pattern": {"String": "a" * 35, "Regex": "."}}, "a pattern with 2 keys"),
        ("normalizer", replace("x", "") | {"pattern": {}}, "a pattern with 0 keys"),
        ("normalizer", replace("x", "") | {"pattern": "x"}, "pattern of a normalizer Replace is 'x'"),
        ("normalizer", {"type": "Replace", "content": "x"}, "a pattern is None"),
        ("decoder", {"type": "CTC"}, "unknown type 'CTC'"),
        ("decoder", {"type": "Fuse", "x": 1}, "unknown key 'x'"),
        ("truncation", ["Right", 64, "LongestFirst", 62], "truncation of the tokenizer is"),
        ("truncation", {"max_length": "64"}, "max_length of truncation is '64', expected int"),
        ("padding", {"strategy": {"Fixed": 64, "x": 1}}, "unknown key 'x'"),
        ("padding", {"pad_token": "x" * 201}, "pad_token of padding has 201 characters, expected at most 200"),
        ("added_tokens", [["a"]], "an added token is"),
        ("added_tokens", [{"content": "a", "x": 1}], "unknown key 'x'"),
        ("version", 1, "version of the tokenizer is 1"),
        ("x", 1, "the tokenizer has the unknown key 'x'"),
    ],
)
def test_other_types_and_keys_are_refused(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_document({name: value})


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1e-05]], "byte_fallback": False}
BPE = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {"a": 0}}, "unknown type 'WordPiece'"),
        ({"type": "WordLevel", "vocab": {"a": 0}}, "unknown type 'WordLevel'"),
        ({"vocab": {"a": 0}}, "unknown type None"),
        (UNIGRAM | {"max_input_chars_per_word": 1}, "unknown key"),
        (BPE | {"dropout": 0.1}, "dropout of a model BPE is 0.1"),
        (BPE | {"end_of_word_suffix": "x" * 201}, "end_of_word_suffix of a model BPE has 201 characters"),
        (BPE | {"cache_capacity": 10**9}, "unknown key 'cache_capacity'"),
        (BPE | {"vocab": {"a" * 402: 0}}, "a vocabulary of an unknown form"),
        (UNIGRAM | {"vocab": [["\ud83d\ude00" * 402, 0.0]]}, "a vocabulary of an unknown form"),
        (UNIGRAM | {"vocab": [["a", [0.0]]]}, "a vocabulary of an unknown form"),
        (BPE | {"merges": [["a", "b", "c"]]}, "a vocabulary of an unknown form"),
        (BPE | {"vocab": {"a": {"normalizer": None}}}, "a vocabulary of an unknown form"),
    ],
)
def test_other_models_are_refused(model: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_document({"model": model})


@pytest.mark.parametrize("model", [UNIGRAM, BPE, BPE | {"merges": ["a b"]}, BPE | {"end_of_word_suffix": "</w>"}])
@pytest.mark.parametrize("indent", [None, 2])
def test_vocabularies_are_recognized(model: dict[str, Any], indent: int | None) -> None:
    check_document({"model": model})
    check_text(json.dumps({"model": model | {"unk_id": None} if "unk_id" in model else model}, indent=indent))


@pytest.mark.parametrize("value", ['"normalizer": null, "normalizer": null', '"model": {"type": "BPE", "type": "BPE"}'])
def test_same_key_twice_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="the same key twice"):
        check_text(f"{{{value}}}")


def test_much_besides_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="characters besides a vocabulary, expected at most 4,000,000"):
        check_text('{"added_tokens": [' + "[]," * 1_400_000 + "[]]}")


def test_length_is_that_of_the_longest_form() -> None:
    """Forms of Unicode and lower-casing, in any order, make no text longer than what growth counts."""
    forms = [getattr(tokenizers.normalizers, name)() for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt")]
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for character in characters:
        if unicodedata.normalize("NFKD", character) == character == character.lower():
            continue
        texts = {character}
        for _ in range(3):
            texts |= {form.normalize_str(text) for form in forms for text in texts}
        assert max(map(len, texts)) <= _length(character)
    unchanged = [each for each in characters if unicodedata.normalize("NFKD", each) == each == each.lower()]
    text = " ".join(unchanged)  # which keeps letters apart
    for form in forms:
        assert len(form.normalize_str(text)) <= len(text)


@pytest.mark.parametrize(
    ("length", "count", "normalized", "replaced_by"), [(200, 700, False, 0), (200, 1, True, 30), (100, 4, True, 30)]
)
def test_added_tokens_that_take_long_are_refused(length: int, count: int, normalized: bool, replaced_by: int) -> None:
    """The library took 24 s for one of 20,000 characters, and as long for 400 that become 80,000."""
    document = {
        "added_tokens": [{"content": "a" * length, "normalized": normalized}] * count,
        "normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * replaced_by},
    }
    with pytest.raises(ValueError, match="added tokens that are too many or too long"):
        check_document(document)


def test_long_added_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="content of an added token has 20,000 characters, expected at most 200"):
        check_document({"added_tokens": [{"content": "a" * 20_000, "normalized": False}]})


TEXT: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
END: dict[str, Any] = {"SpecialToken": {"id": "</s>", "type_id": 0}}
TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [TEXT, END],
    "pair": [],
    "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
}


@pytest.mark.parametrize(
    ("processor", "problem"),
    [
        (TEMPLATE | {"single": [TEXT, TEXT]}, "a post_processor that repeats a text"),
        (TEMPLATE | {"single": [TEXT, *[END] * 101]}, "adds 101 tokens, expected at most 100"),
        ({"type": "Sequence", "processors": [TEMPLATE] * 60 + [TEMPLATE] * 60}, "more than 64 steps"),
        ({"type": "Sequence", "processors": [TEMPLATE | {"single": [END, END]}] * 60}, "adds 120 tokens"),
        (TEMPLATE | {"special_tokens": {"</s>": {"ids": [1] * 101}}}, "adds 101 tokens"),
        (TEMPLATE | {"special_tokens": {"</s>": {"tokens": ["x" * 201]}}}, "a token has 201 characters"),
        (TEMPLATE | {"special_tokens": {"</s>": [1]}}, "a special token is"),
        (TEMPLATE | {"single": ["$A", "$A"]}, "a piece of a template is '.A'"),
        (TEMPLATE | {"single": [TEXT | END]}, "a piece of a template with 2 keys"),
        (TEMPLATE | {"single": [{"Sequence": ["A", 0]}]}, "Sequence of a piece of a template is"),
        ({"type": "RobertaProcessing"}, "unknown type"),
    ],
)
def test_growing_post_processors_are_refused(processor: dict[str, Any], problem: str) -> None:
    check_document({"post_processor": TEMPLATE})
    with pytest.raises(ValueError, match=problem):
        check_document({"post_processor": processor})


@pytest.mark.parametrize(
    ("part", "key", "problem"),
    [
        ("truncation", "stride", "whose parts overlap"),
        ("padding", "pad_to_multiple_of", "pad_to_multiple_of of padding is 14"),
    ],
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


@pytest.mark.export
def test_conversions_of_sentencepiece_models_pass(material: Path) -> None:
    import transformers
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    kinds = [
        getattr(transformers, f"{name}Tokenizer") for name in ("T5", "Gemma", "Llama", "XLMRoberta", "Albert", "XLNet")
    ]
    for name in ("hf_fixtures/test_sentencepiece.model", "sentencepiece_testdata/test_ja_model.model"):
        for kind in kinds:
            text = convert_slow_tokenizer(kind(str(material / "tokenizers" / name))).to_str()
            tokenizers.Tokenizer.from_str(check_text(text))


@pytest.mark.parametrize("pattern", ["GPT-2", "LLAMA_3", "QWEN_2"])
def test_byte_level_tokenizers_pass(pattern: str) -> None:
    """As GPT-2, Llama 3 and Qwen have them."""
    vocab = {letter: number for number, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], ignore_merges=True))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if pattern != "GPT-2":
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(globals()[pattern]), "isolated")
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
        begin = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 256)])
        tokenizer.post_processor = tokenizers.processors.Sequence([tokenizer.post_processor, begin])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=256)
    loaded = tokenizers.Tokenizer.from_str(check_text(tokenizer.to_str()))
    assert loaded.encode("it's 犬").ids == tokenizer.encode("it's 犬").ids


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
    "text",
    [
        '{"version": "' + r"\u0041" * 600_000 + '"}',
        '{"normalizer": '
        + '{"type": "Sequence", "normalizers": [' * 400
        + '"'
        + "x" * 3_000_000
        + '"'
        + "]}" * 400
        + "}",
        '{"model": {"type": "BPE", "merges": [' + r'"\u0041", ' * 1_000_000 + '"a"]}}',
        '{"model": {"type": "BPE", "merges": [' + '"\\"vocab":[", ' * 200_000 + '"a"]}}',
        '{"model": {' + '"vocab": {"vocab": [' * 100_000,
        '{"model": {' + '"vocab": ' * 300_000,
    ],
)
def test_time_is_proportional_to_the_file(text: str) -> None:
    """It is about that of parsing the file, and not that of reading a part again for each escape or key."""

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        with contextlib.suppress(ValueError):
            call()
        return time.perf_counter() - start

    parsing = min(seconds(lambda: json.loads(json.dumps([text] * 3))) for _ in range(3))
    assert min(seconds(lambda: check_text(text)) for _ in range(3)) < 100 * parsing
