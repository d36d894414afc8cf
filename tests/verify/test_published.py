"""``verify --published``: what it compares, what it names as missing, and when it fails."""

import hashlib
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.checkpoints import make_checkpoint
from support.commands import assert_error, run
from support.images import save_all
from transformers import SiglipImageProcessor, SiglipModel, SiglipTokenizer

from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.tokenizer import write_tokenizer
from siglip_onnx.hub.published import PUBLISHED
from siglip_onnx.text.tokenizer import Tokenizer
from siglip_onnx.verify import published

NAME = "siglip-base-patch16-224"
TEXTS = ["a cat", "赤い丸"]
QUANTITIES = {"cosines", "head", "ids", "logits", "probabilities", "shares", "text cosines"}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with the name of a published one, and its bundle in ``bundle`` next to it."""
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("published") / NAME, "square")
    export_bundle(checkpoint, checkpoint.with_name("bundle"))
    return checkpoint


@pytest.fixture
def numbers(named: Path, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's answers for the small checkpoint, as if they were published; the images are in ``images``."""
    entries = [
        {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in save_all(images[:2], tmp_path / "images")
    ]
    model = SiglipModel.from_pretrained(named).eval()
    tokenizer = SiglipTokenizer(str(named / "spiece.model"))
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    pixels = SiglipImageProcessor.from_pretrained(named)(images[:2], return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels)
    logits, text = output.logits_per_image, output.text_embeds
    head = [[model.logit_scale.item(), model.logit_bias.item()]]
    values = {
        "head": head,
        "ids": [row[: row.index(1) + 1] for row in ids.tolist()],
        "logits": logits.tolist(),
        "probabilities": logits.sigmoid().tolist(),
        "shares": logits.softmax(-1).tolist(),
        "cosines": (output.image_embeds @ text.T).tolist(),
        "text cosines": (text @ text.T).tolist(),
    }
    assert set(values) == QUANTITIES
    checks = [
        {"checkpoint": NAME, "quantity": quantity, "source": "PyTorch", "images": entries, "texts": TEXTS,
         "values": rows, "tolerance": 0 if quantity == "ids" else 1e-4}
        for quantity, rows in values.items()
    ]  # fmt: skip
    path = tmp_path / "published.json"
    path.write_text(json.dumps({"checks": checks}))
    monkeypatch.setattr(published.read_checks, "__defaults__", (path,))
    return path


def test_every_quantity_is_compared(named: Path, numbers: Path) -> None:
    bundle = named.with_name("bundle")
    result = run("verify", bundle, "--published", "--images", numbers.parent / "images", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    for variant in ("fp32", "int8"):
        findings = {finding["quantity"]: finding["max_abs"] for finding in document["published"][variant]}
        assert set(findings) == QUANTITIES
        assert None not in findings.values()
    fp32, int8 = ({one["quantity"]: one["max_abs"] for one in document["published"][name]} for name in ("fp32", "int8"))
    assert fp32["logits"] < 1e-4 < int8["logits"]
    assert fp32["ids"] == 0


@pytest.mark.parametrize("quantity", sorted(QUANTITIES))
def test_one_different_number_fails(named: Path, numbers: Path, quantity: str) -> None:
    document = json.loads(numbers.read_text())
    (check,) = [check for check in document["checks"] if check["quantity"] == quantity]
    check["values"][0][0] += 1 if quantity == "ids" else 0.01
    numbers.write_text(json.dumps(document))
    result = run("verify", named.with_name("bundle"), "--published", "--images", numbers.parent / "images")
    assert_error(result, 1, f"fp32: difference of the {quantity} to ")


def test_missing_images_are_named(named: Path, numbers: Path, tmp_path: Path) -> None:
    """An image of the same name but other content is missing too."""
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(numbers.parent / "images" / "0.png", others)
    Image.new("RGB", (40, 40)).save(others / "1.png")
    result = run("verify", named.with_name("bundle"), "--published", "--images", others, "--json")
    assert result.exit_code == 0, result.stderr
    for finding in json.loads(result.stdout)["published"]["fp32"]:
        assert finding["missing"] == ["1.png"]
        assert finding["max_abs"] is None
    assert "missing: 1.png" in run("verify", named.with_name("bundle"), "--published", "--images", others).stdout


def test_the_real_numbers_fail_for_a_random_model_of_that_name(named: Path) -> None:
    result = run("verify", named.with_name("bundle"), "--published")
    assert_error(result, 1, "fp32: difference of the ids to")
    assert "missing: 000000039769.jpg" in result.stdout


def test_a_checkpoint_without_published_numbers(small_bundle: Path) -> None:
    result = run("verify", small_bundle, "--published")
    assert_error(result, 4, "was exported from 'small', for which there are no published numbers")


def test_the_data_file_is_consistent() -> None:
    names = {checkpoint.name for checkpoint in PUBLISHED}
    for check in published.read_checks():
        assert check.checkpoint in names
        assert check.quantity in QUANTITIES
        assert check.source
        if check.quantity in ("logits", "probabilities", "shares", "cosines"):
            assert np.shape(check.values) == (len(check.images), len(check.texts))
        elif check.quantity == "ids":
            assert len(check.values) == len(check.texts)


@pytest.mark.slow
def test_published_ids_are_reproduced(material: Path, tmp_path: Path) -> None:
    """These published numbers need no weights."""
    tokenizers: dict[bool, Any] = {}
    for gemma in (False, True):
        home = tmp_path / str(gemma)
        home.mkdir()
        if gemma:
            packed = material / "tokenizers/siglip2_gemma_256k/tokenizer.json.xz"
            (home / "tokenizer.json").write_bytes(lzma.decompress(packed.read_bytes()))
        else:
            shutil.copy(material / "tokenizers/siglip_v1_c4en_32k/spiece.model", home)
        rows = 256_000 if gemma else 32_000
        write_tokenizer(home, home / "exact.json", text_length=64, vocab_size=rows)
        tokenizers[gemma] = Tokenizer(home / "exact.json", 64)
    checks = [check for check in published.read_checks() if check.quantity == "ids"]
    assert len(checks) == 3
    for check in checks:
        gemma = check.checkpoint.startswith("siglip2")
        expected = published.pad_ids(check.values, 64, 0 if gemma else 1)
        assert (tokenizers[gemma](check.texts) == expected).all()
