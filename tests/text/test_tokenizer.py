"""Token ids equal the slow reference tokenizer's, with real vocabularies and texts where they are available."""

import base64
import io
import json
import lzma
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers

from siglip_onnx import demo
from siglip_onnx.errors import BundleError, CheckpointError
from siglip_onnx.export.tokenizer import write_tokenizer
from siglip_onnx.text.tokenizer import Tokenizer
from siglip_onnx.text.vocabulary import PIECES, PieceTable, write_pieces

HARD = [
    "", " ", "  leading", "trailing  ", "!!!", "! hello", "</s>", "hello</s>", "a </s>", "<unk>", "<pad> a", "▁", "▁▁a",
    "a▁b", " ▁ ", "\u0130stanbul", "ΑΣ ΟΔΟΣ", "㌔ ﬁ ｆｕｌｌ　ｗｉｄｔｈ", "犬、猫。", "¨a", "a ¨", "_under_score_",
    "\x1c a\x1db", "a\u200bb", "😀 😀😀", "🇯🇵", "a" * 500, "word " * 200, "A.B.C", "...", "- -", "a\n\nb", "\u3000a",
    "ﷺ", "\x00a", "a\u0301", "\ufeffabc", "½ ²",
    "か\u3099", "ｶﾞﾊﾟﾝ", "\u1112\u1161\u11ab", "e\u0323\u0302", "don't", "100%", "#tag @name", "１２３",
    "10時～12時", "～夏の海～ ~",
]  # fmt: skip

# The known differences, each with its reason.
EXCEPTIONS = {
    "</s>a": "text after a literal special token starts a new word",
    "x<unk>y": "text after a literal special token starts a new word",
    "a </s> b": "text after a literal special token starts a new word",
}

pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has </s>:UserWarning")  # the reference's own


TEXT_LENGTH = 32  # of the demo model
T5_TIE = "Super Bowl XXX"  # "x" + "xx" costs as much as "xx" + "x"


def stacks_marks(text: str) -> bool:
    """Say whether a text has letters under three marks and more, of which the fast normalizer makes other graphemes."""
    marks = "".join("m" if unicodedata.combining(letter) else " " for letter in unicodedata.normalize("NFD", text))
    return "mmm" in marks


def real_texts(material: Path) -> list[str]:
    """Naughty strings and lines of an English and a Japanese book, composed and decomposed."""
    texts = list(json.loads((material / "text" / "blns.json").read_text(encoding="utf-8")))
    for book in ("botchan.txt", "wagahaiwa_nekodearu.txt"):
        lines = [line for line in (material / "text" / book).read_text(encoding="utf-8").splitlines() if line.strip()]
        texts += np.random.default_rng(0).choice(lines, min(len(lines), 3500), replace=False).tolist()
    return texts + [unicodedata.normalize("NFD", text) for text in texts]


def differences(checkpoint: Path, spiece: Path, texts: list[str], tmp_path: Path) -> list[str]:
    from transformers import SiglipTokenizer

    out = tmp_path / "exact.json"
    reference = SiglipTokenizer(str(spiece))
    write_tokenizer(checkpoint, out, text_length=64, vocab_size=len(reference))
    ids = Tokenizer(out, 64)(texts)
    expected = np.array(reference(texts, padding="max_length", truncation=True, max_length=64).input_ids)
    return [text for text, ours, theirs in zip(texts, ids, expected, strict=True) if not np.array_equal(ours, theirs)]


def test_small_vocabulary(small_checkpoint: Path, tmp_path: Path) -> None:
    assert differences(small_checkpoint, small_checkpoint / "spiece.model", HARD, tmp_path) == []


WORDS = ["a", "photo", "of", "dog's", "Running", "!", "it.", "<dog>", "zorblax", "<my cat>", "<Dog>", "<LOGO>",
         "ﬁne", "  ", "zorblaxes", "x<dog>y", "-", "猫", "'", ",", "(", ")", "10時～12時",
         "star", "STAR", "<logo>"]  # fmt: skip


@pytest.mark.export
@pytest.mark.parametrize("added", [[], ["<dog>", "zorblax", "<my cat>", "star"]])
@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"pad_token": "<unk>"}, {"pad_token": "[PAD]"}])
def test_settings_of_a_fine_tuned_checkpoint(
    options: dict[str, Any], added: list[str], small_checkpoint: Path, tmp_path: Path
) -> None:
    """Random texts with tokens that were added, among them one that the vocabulary has, and special ones."""
    from transformers import SiglipTokenizer

    from siglip_onnx.verify.pytorch import tokenizer

    reference = SiglipTokenizer(str(small_checkpoint / "spiece.model"), **options)
    if added:
        reference.add_tokens(added)
        reference.add_special_tokens({"additional_special_tokens": ["<LOGO>"]})
    reference.save_pretrained(tmp_path / "checkpoint")
    write_tokenizer(tmp_path / "checkpoint", tmp_path / "out.json", text_length=32, vocab_size=300)
    rng = np.random.default_rng(0)
    # The reference loses a letter behind an added token that its vocabulary lacks, as this small one lacks capitals.
    words = WORDS if options.get("do_lower_case", True) or not added else [*map(str.lower, WORDS[:-3]), "star"]
    texts = ["<dog>", *(rng.choice([" ", "", "  "]).join(rng.choice(words, rng.integers(1, 7))) for _ in range(1000))]
    expected = np.array(reference(texts, padding="max_length", truncation=True, max_length=32).input_ids)
    ids = Tokenizer(tmp_path / "out.json", 32)(texts)
    assert [text for text, ours, theirs in zip(texts, ids, expected, strict=True) if (ours != theirs).any()] == []
    if added:
        assert 75 in ids  # <my cat>
    verified = tokenizer(tmp_path / "checkpoint", SimpleNamespace(text=SimpleNamespace(max_position_embeddings=32)))  # type: ignore
    assert [verified(text) for text in texts[:50]] == expected[:50].tolist()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"added_tokens_decoder": {"500": {"content": "<dog>"}}},
            "'<dog>' with the id 500, but the next free id is 73",
        ),
        ({"added_tokens_decoder": {"73": {"content": "<dog>", "single_word": True}}}, "for whole words only"),
        ({"added_tokens_decoder": {str(73 + n): {"content": f"<{n}>"} for n in range(41)}}, "adds 41 tokens; at most"),
        ({"added_tokens_decoder": {"73": {"content": 5}}}, "added tokens of .* are damaged"),
        ({"added_tokens_decoder": {"many": {"content": "<dog>"}}}, "added tokens of .* are damaged"),
        ({"added_tokens_decoder": ["<dog>"]}, "added tokens of .* are damaged"),
        ({"pad_token": "<none>"}, "pads texts with '<none>', which its vocabulary does not have"),
        ({"eos_token": {"content": "<end>"}}, "ends texts with '<end>'"),
        ({"do_lower_case": "no"}, "do_lower_case 'no', expected true or false"),
        ({"model_max_length": 16}, "pads texts to 16 tokens .* but the text tower takes 32"),
        ({"padding_side": "left"}, "has padding_side 'left', expected 'right'"),
        ({"truncation_side": "left"}, "has truncation_side 'left', expected 'right'"),
    ],
)
def test_settings_that_cannot_be_exported_are_named(
    config: dict[str, Any], problem: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copy(small_checkpoint / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=problem):
        write_tokenizer(tmp_path, tmp_path / "out.json", text_length=32, vocab_size=300)


def test_known_differences_from_the_reference(small_checkpoint: Path, tmp_path: Path) -> None:
    """A difference that disappears must leave the list."""
    different = differences(small_checkpoint, small_checkpoint / "spiece.model", list(EXCEPTIONS), tmp_path)
    assert different == list(EXCEPTIONS)


@pytest.mark.export
@pytest.mark.parametrize("file", ["siglip_v1_c4en_32k/spiece.model", "t5_c4_32k/spiece.model"])
def test_more_than_ten_thousand_texts(material: Path, tmp_path: Path, file: str) -> None:
    texts = real_texts(material)
    assert len(texts) >= 10_000
    spiece = Path(shutil.copy(material / "tokenizers" / file, tmp_path))
    different = differences(tmp_path, spiece, texts, tmp_path)
    assert [text for text in different if not stacks_marks(text) and text != T5_TIE] == []
    assert len(different) <= 6


@pytest.mark.export
@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_published_english_vocabulary(material: Path, tmp_path: Path, file: str) -> None:
    home = material / "tokenizers" / "siglip_v1_c4en_32k"
    shutil.copy(home / file, tmp_path)
    assert differences(tmp_path, home / "spiece.model", HARD + real_texts(material)[600:1600], tmp_path) == []


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("file", ["tokenizer.json.xz", "tokenizer_naflex.json.xz"])
def test_gemma_vocabulary_is_lower_cased_ended_and_padded(material: Path, tmp_path: Path, file: str) -> None:
    from transformers import GemmaTokenizerFast

    packed = material / "tokenizers" / "siglip2_gemma_256k" / file
    (tmp_path / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    write_tokenizer(tmp_path, tmp_path / "exact.json", text_length=64, vocab_size=256_000)
    texts = [*HARD, "A photo of a CAT", "\u00c9t\u00c9", "<eos>", "<pad>a", *real_texts(material)]
    assert len(texts) >= 10_000

    reference = GemmaTokenizerFast.from_pretrained(tmp_path, add_bos_token=False, add_eos_token=True, legacy=False)
    reference.padding_side = "right"
    # Letter by letter, as Siglip2Tokenizer of transformers 5: so Σ is σ at the end of a word too.
    lowered = [text.lower().replace("ς", "σ") if "Σ" in text else text.lower() for text in texts]
    expected = np.array(reference(lowered, padding="max_length", truncation=True, max_length=64).input_ids)
    ids = Tokenizer(tmp_path / "exact.json", 64)(texts)
    assert [text for text, ours, theirs in zip(texts, ids, expected, strict=True) if (ours != theirs).any()] == []


@pytest.mark.slow
def test_gemma_vocabulary_pruned(material: Path, tmp_path: Path) -> None:
    packed = material / "tokenizers/siglip2_gemma_256k/tokenizer.json.xz"
    (tmp_path / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
    path = tmp_path / "exact" / "tokenizer.json"
    path.parent.mkdir()
    write_tokenizer(tmp_path, path, text_length=64, vocab_size=256_000)
    tokenizer = Tokenizer(path, 64)
    pieces = PieceTable(path.with_name(PIECES))
    texts = [text for text in [*HARD, *real_texts(material)[::20]] if pieces.normalize([text]) is not None]
    alone = np.concatenate([tokenizer([text]) for text in texts])
    pairs = [number for number in range(len(texts) - 1) if pieces.normalize(texts[number : number + 2]) is not None]
    for number in pairs[::10]:
        np.testing.assert_array_equal(tokenizer(texts[number : number + 2]), alone[number : number + 2])
    assert tokenizer._loaded is None
    path.with_name(PIECES).unlink()
    np.testing.assert_array_equal(alone, Tokenizer(path, 64)(texts))


def test_ids_are_always_the_full_length() -> None:
    tokenizer = Tokenizer(demo.BUNDLE_PATH / "tokenizer.json", TEXT_LENGTH)
    ids = tokenizer(["a cat", "", "word " * 50])
    assert ids.shape == (3, TEXT_LENGTH)
    assert ids.dtype == np.int64
    assert (ids[:, -1] == 1).all()
    assert (ids[1] == 1).all()


def test_many_texts_are_tokenized_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library returns for a text is a hundred times as large as its ids."""
    tokenizer, sizes, encode = Tokenizer(demo.BUNDLE_PATH / "tokenizer.json", TEXT_LENGTH), [], Tokenizer._encode

    def watched(self: Tokenizer, texts: list[str]) -> Any:
        sizes.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "_encode", watched)
    texts = [f"text {number}" for number in range(3000)]
    ids = tokenizer(texts)
    assert (max(sizes), sum(sizes)) == (1024, 3000)
    for number in (0, 1023, 1024, 2999):
        np.testing.assert_array_equal(ids[number], tokenizer([texts[number]])[0])


def test_truncated_texts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(demo.BUNDLE_PATH / "tokenizer.json", TEXT_LENGTH)
    tokenizer(["a cat"])
    assert not caplog.messages
    tokenizer(["word " * 50])
    assert caplog.messages == [f"Only the first {TEXT_LENGTH} tokens of the text {'word ' * 8 + '…'!r} are read."]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "no tokenizer of the tokenizers library"), ('{"model": {"type": "WordPiece"}}', "WordPiece model")],
)
def test_other_tokenizers_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        write_tokenizer(tmp_path, tmp_path / "out.json", text_length=64, vocab_size=100)


def unigram(charsmap: bytes, piece: str = "a") -> dict[str, Any]:
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    vocab = [["<unk>", 0.0], ["</s>", -1.0], [piece, -2.0]]
    return {"normalizer": normalizer, "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}}


def gemma(*steps: dict[str, Any]) -> dict[str, Any]:
    return gemma_of({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": 3}, *steps)


def gemma_of(vocab: dict[str, int], *steps: dict[str, Any]) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
    return {"normalizer": {"type": "Sequence", "normalizers": steps}, "model": model, "added_tokens": []}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (unigram(b"\xf0\xff\xff\xff" + bytes(8)), "states 4,294,967,284 bytes, and has 12"),
        (unigram(b"\0\0"), "states 4 bytes, and has 2"),
        (unigram(b"\4\0\0\0" + bytes(4) + b"\xff\xfe"), "PanicException"),
        (
            gemma() | {"added_tokens": [{"id": 10**9, "content": "b"}]},
            "the id 1000000000, but the text tower has 100 rows",
        ),
        (gemma_of({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": 10**9}), "the id 1000000000, but the text tower has 100"),
        (gemma_of({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": -1}), "the id -1"),
        (gemma_of({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": 2}), "two pieces have the same id"),
        (gemma_of({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": 4}), "4 pieces go up to 4, so that some are missing"),
        (unigram(b"", "a" * 201), "a piece of more than 200 characters"),
        (gemma(*[{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 30), "64 times as long"),
    ],
)
def test_hostile_tokenizers_are_refused_at_export(document: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=f"tokenizer.json .*{message}"):
        write_tokenizer(tmp_path, tmp_path / "out.json", text_length=64, vocab_size=100)


def test_vocabulary_larger_than_the_text_tower(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has \d+ pieces, but the text tower 20 rows"):
        write_tokenizer(small_checkpoint, tmp_path / "out.json", text_length=64, vocab_size=20)


@pytest.mark.parametrize("cleaning", [None, "lower"])
def test_gemmas_tokenizer_that_pads_left_is_refused(tmp_path: Path, cleaning: str | None) -> None:
    """As the class of transformers 5 does without Google's settings."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(gemma()))
    (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    with pytest.raises(CheckpointError, match="has padding_side 'left', expected 'right'"):
        write_tokenizer(tmp_path, tmp_path / "out.json", text_length=64, vocab_size=100, cleaning=cleaning)


def test_pruned_vocabulary_gives_same_ids(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of large vocabularies with a few short texts, applied to a small one."""
    expected = Tokenizer(small_bundle / "tokenizer.json", 16)(HARD)
    monkeypatch.setattr("siglip_onnx.export.tokenizer.LARGE_VOCABULARY", 0)
    path = tmp_path / "tokenizer.json"
    write_tokenizer(small_checkpoint, path, text_length=16, vocab_size=300)
    for text, ids in zip(HARD, expected, strict=True):
        pruned = Tokenizer(path, 16)
        np.testing.assert_array_equal(pruned([text])[0], ids)
        assert (pruned._loaded is not None) == ("</s>" in text or "<unk>" in text)
    plain = [number for number, text in enumerate(HARD) if "</s>" not in text and "<unk>" not in text]
    np.testing.assert_array_equal(Tokenizer(path, 16)([HARD[number] for number in plain]), expected[plain])
    with pytest.raises(BundleError, match="pads to 16 and truncates to 16 tokens"):
        Tokenizer(path, 64)
    path.with_name(PIECES).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="is damaged"):
        Tokenizer(path, 16)


@pytest.mark.export
def test_published_vocabulary_pruned(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siglip_onnx.export.tokenizer.LARGE_VOCABULARY", 0)
    write_tokenizer(material / "tokenizers/siglip_v1_c4en_32k", tmp_path / "t.json", text_length=64, vocab_size=32_000)
    texts = HARD + real_texts(material)[::20]
    expected = Tokenizer(tmp_path / "t.json", 64)(["word " * 500, *texts])[1:]
    tokenizer = Tokenizer(tmp_path / "t.json", 64)
    for text, ids in zip(texts, expected, strict=True):
        if len(text) <= 2000 and "</s>" not in text and "<unk>" not in text:
            np.testing.assert_array_equal(tokenizer([text])[0], ids)
    assert tokenizer._loaded is None
    tokenizer(["word " * 500])
    assert tokenizer._loaded is not None


def test_texts_with_added_tokens_are_left_to_the_whole_vocabulary(tmp_path: Path) -> None:
    """Some are looked for in the text, others in the normalized text, in which they are lower-case as well."""
    document = json.loads((demo.BUNDLE_PATH / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    document["added_tokens"] += [
        flags | {"id": len(document["model"]["vocab"]), "content": "Red Panda", "normalized": True},
        flags | {"id": len(document["model"]["vocab"]) + 1, "content": "<Dog>", "normalized": False},
    ]
    write_pieces(document, tmp_path / PIECES)
    table = PieceTable(tmp_path / PIECES)
    assert [table.normalize([text]) is None for text in ("a red panda", "a RED panda!", "a <Dog>", "</s>")] == [
        True
    ] * 4
    assert [table.normalize([text]) is None for text in ("a panda", "a <dog>", "red")] == [False] * 3


def test_vocabulary_whose_pieces_are_not_in_the_text_has_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte-level BPE writes other characters than the text has."""
    monkeypatch.setattr("siglip_onnx.export.tokenizer.LARGE_VOCABULARY", 5)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pieces = ["<eos>", "<pad>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "Ġs", "Ġst", "Ġsta", "Ġstar"]
    merges = [["Ġ", "s"], ["Ġs", "t"], ["Ġst", "a"], ["Ġsta", "r"]]
    model = {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}, "merges": merges,
             "unk_token": None}  # fmt: skip
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "model": model}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    out = tmp_path / "out.json"
    write_tokenizer(path, out, text_length=32, vocab_size=1000)
    assert not (tmp_path / PIECES).exists()
    ids = Tokenizer(out, 32)(["a star 赤"])[0].tolist()
    assert ids[:2] == [pieces.index("a"), pieces.index("Ġstar")]
    assert 0 < ids.index(0) == len(ids) - ids.count(1) - 1
    write_pieces(json.loads(out.read_text(encoding="utf-8")), tmp_path / PIECES)  # as earlier versions did
    assert Tokenizer(out, 32)(["a star 赤"])[0].tolist() == ids


def test_table_of_absurd_pieces_takes_no_memory(tmp_path: Path) -> None:
    """All substrings of a text that a normalizer lengthens would take gigabytes."""
    document = json.loads((demo.BUNDLE_PATH / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 40}
    write_pieces(document, tmp_path / "pieces.npz")
    table = PieceTable(tmp_path / "pieces.npz")
    assert table.normalize(["a" * 240]) is None
    assert table.normalize(["a" * 50]) == ["a" * 2000]
    arrays = dict(np.load(tmp_path / "pieces.npz"))
    np.savez(tmp_path / "pieces.npz", **arrays | {"longest": np.array(10**9)})
    with pytest.raises(BundleError, match="its longest piece has 1000000000 characters"):
        PieceTable(tmp_path / "pieces.npz")


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The arrays of a Unigram and of a BPE vocabulary, by the name of their file."""
    document = json.loads((demo.BUNDLE_PATH / "tokenizer.json").read_text(encoding="utf-8"))
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": False, "ignore_merges": False}
    vocab = {piece: number for number, piece in enumerate(("<unk>", "</s>", "r", "e", "d", "re", "red"))}
    model = {"type": "BPE", "vocab": vocab, "merges": [["r", "e"], ["re", "d"]]} | options
    write_pieces(document, tmp_path / "unigram.npz")
    write_pieces(document | {"model": model, "normalizer": None}, tmp_path / "bpe.npz")
    return {path.stem: dict(np.load(path)) for path in tmp_path.glob("*.npz")}


def set_value(index: Any, value: float) -> Callable[[Any], Any]:
    """Return a function that changes one value of an array."""

    def change(array: Any) -> Any:
        array = array.copy()
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("kind", "name", "change", "problem"),
    [
        ("bpe", "merge_starts", set_value(3, 700_000_000), "merge_starts has places up to 700,000,000, expected"),
        ("bpe", "merge_starts", set_value(-1, 700_000_000), r"expected ones that rise from 0 to 2"),
        ("bpe", "merge_starts", set_value(0, 1), "merge_starts has places"),
        ("bpe", "merge_starts", lambda array: array.astype(np.int64), "merge_starts is int64 of shape"),
        ("bpe", "merge_starts", lambda array: array[:-1], "merge_starts is uint32 of shape"),
        ("bpe", "merge_pairs", set_value((0, 1), 7), "merge_pairs has the id 7, expected ids of 7 pieces"),
        ("bpe", "merge_pairs", lambda array: array[:1], "merge_pairs is"),
        ("bpe", "merge_ranks", lambda array: array[:1], "merge_pairs is"),
        ("bpe", "order", set_value(0, 4_000_000_000), "order has the id 4,000,000,000"),
        ("bpe", "ends", set_value(-1, 10**9), "ends has places up to 1,000,000,000"),
        ("bpe", "ends", set_value(2, 3), "ends has places"),
        ("bpe", "longest", lambda _: np.array(1), "a piece has 5 bytes, but the longest one 1 characters"),
        ("bpe", "hashes", lambda array: array[:3], "hashes is"),
        ("bpe", "pieces", lambda array: array.astype(np.float64), "pieces is float64"),
        ("unigram", "scores", set_value(5, np.nan), "scores has NaN or infinity"),
        ("unigram", "scores", lambda array: array[:-1], "scores is"),
        ("unigram", "longest", lambda _: np.array(np.inf), "its longest piece has inf characters"),
        ("unigram", "longest", lambda _: np.array([3, 4]), "its longest piece has"),
    ],
)
def test_table_whose_arrays_do_not_fit_together_is_damaged(
    kind: str, name: str, change: Any, problem: str, tables: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    arrays = tables[kind]
    np.savez(tmp_path / PIECES, **arrays | {name: change(arrays[name])})
    with pytest.raises(BundleError, match=f"is damaged .*{problem}"):
        PieceTable(tmp_path / PIECES)


@pytest.mark.parametrize("unk_id", [-1, 10**9, None])
def test_table_without_its_unknown_piece_is_damaged(
    unk_id: int | None, tables: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    document = json.loads(tables["unigram"]["document"].tobytes())
    document["model"]["unk_id"] = unk_id
    arrays = tables["unigram"] | {"document": np.frombuffer(json.dumps(document).encode(), np.uint8)}
    np.savez(tmp_path / PIECES, **arrays)
    with pytest.raises(BundleError, match=r"unk_id is .*, expected one of \d+ ids"):
        PieceTable(tmp_path / PIECES)


@pytest.mark.parametrize("value", [10**30, -5, 1.7, 10**9, True, "a", [1], None])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_table_whose_end_or_padding_is_not_a_piece_is_damaged(
    kind: str, value: Any, tables: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    for change in ({"padding": {"pad_id": value}}, {"end": [value]}, {"end": [0] * 1000}):
        document = json.loads(tables[kind]["document"].tobytes())
        document["padding"] |= change.get("padding", {})
        if "end" in change:
            document["post_processor"]["special_tokens"]["</s>"]["ids"] = change["end"]
        arrays = tables[kind] | {"document": np.frombuffer(json.dumps(document).encode(), np.uint8)}
        np.savez(tmp_path / PIECES, **arrays)
        with pytest.raises(BundleError, match="is damaged"):
            PieceTable(tmp_path / PIECES)


def test_array_that_claims_terabytes_is_damaged(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    np.savez(tmp_path / PIECES, **{name: array for name, array in tables["unigram"].items() if name != "scores"})
    with zipfile.ZipFile(tmp_path / PIECES, "a") as archive:
        archive.writestr("scores.npy", header.getvalue())
    with pytest.raises(BundleError, match="is damaged"):
        PieceTable(tmp_path / PIECES)


def test_table_of_merges_that_was_not_changed_is_read(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    np.savez(tmp_path / PIECES, **tables["bpe"])
    assert PieceTable(tmp_path / PIECES).encode(["red"], ["red"]) == [[6]]
