import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import assert_error, run
from support.manifests import with_hashes, write_document, write_manifest

import siglip_onnx
from siglip_onnx.bundle import strip
from siglip_onnx.bundle.folder import open_bundle, verify_folder
from siglip_onnx.bundle.integrity import FileFacts, file_facts
from siglip_onnx.bundle.manifest import embedding_space, read_manifest
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import BundleError
from siglip_onnx.text.tokenizer import Tokenizer

Document = dict[str, Any]


def edit(bundle: Path, change: Callable[[Document], object]) -> None:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    change(document)
    write_document(bundle, document)


def test_manifest_round_trip(small_bundle: Path) -> None:
    bundle = open_bundle(small_bundle)
    assert json.loads(bundle.manifest.to_json()) == json.loads((small_bundle / "manifest.json").read_text())
    assert bundle.verify_files() == []
    assert bundle.manifest.logit_scale == 4.5
    assert bundle.manifest.logit_bias == -9.25


def card_of(document: Document) -> Document:
    card: Document = document["variants"]["int8"]["accuracy"]
    return card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "not of format"),
        (
            lambda d: d.update(format_version=3),
            "version 3, but this siglip_onnx reads versions 1 and 2. Upgrade",
        ),
        (lambda d: d.pop("logit_bias"), r"incomplete or damaged \(logit_bias is missing\)"),
        (lambda d: d.update(logit_scale="4"), r'logit_scale is "4", expected a number'),
        (lambda d: d.update(logit_scale=100), "between -10 and 10"),
        (lambda d: d.update(embedding_dim=True), "embedding_dim is true, expected a whole number"),
        (lambda d: d.update(variants={}), "incomplete or damaged"),
        (lambda d: d["variants"].update(int3=d["variants"]["int8"]), "int3"),
        (lambda d: d["files"].update({"../x": {"size_bytes": 1, "sha256": "0" * 64}}), "outside the bundle"),
        (lambda d: d.update(variants=3), "incomplete or damaged"),
        (lambda d: card_of(d).update(vision_cosine_min=None), "values that are not numbers"),
        (lambda d: card_of(d).update(text_cosine_min=10**4000), "values that are not numbers"),
        (lambda d: d["files"]["config.json"].update(size_bytes=10**4000), "expected the size of a file"),
    ],
)
def test_bad_manifests(copy: Path, change: Callable[[Document], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


def test_manifest_of_version_0_1_opens_with_its_old_keys(copy: Path) -> None:
    def make_old(document: Document) -> None:
        document["knows"] = "shapes"
        del document["description"]
        for variant in document["variants"].values():
            variant["accuracy"]["num_images"] = variant["accuracy"].pop("num_images")

    num_images = open_bundle(copy).manifest.variants["int8"].accuracy["num_images"]
    edit(copy, make_old)
    manifest = open_bundle(copy).manifest
    assert (manifest.description, manifest.knows) == ("shapes", "shapes")
    assert manifest.variants["int8"].accuracy["num_images"] == num_images
    rewritten = json.loads(manifest.to_json())
    assert rewritten["description"] == "shapes"
    assert "knows" not in rewritten


def test_manifest_with_keys_of_a_newer_version_opens(copy: Path) -> None:
    edit(copy, lambda document: document.update(later="dual"))
    assert open_bundle(copy).manifest.model_name


def test_changed_manifest_is_refused(copy: Path) -> None:
    """A changed bias would change probabilities without a word."""
    manifest = copy / "manifest.json"
    changed = re.sub(r'"logit_bias": (-?[\d.]+)', r'"logit_bias": \g<1>1', manifest.read_text())
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    with pytest.raises(BundleError, match=r"manifest.json was changed or is damaged: sha256 .* Export or download"):
        open_bundle(copy)


def test_manifest_that_is_not_json(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        open_bundle(copy)


def test_folder_that_is_not_a_bundle(tmp_path: Path, small_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="looks like a checkpoint; export it first"):
        open_bundle(small_checkpoint)


def test_missing_or_short_weights_matter_to_their_variant_alone(copy: Path) -> None:
    data = copy / "onnx" / "text_model.onnx_data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"has {len(content) - 1} bytes, expected {len(content)} bytes"):
        siglip_onnx.load(copy, variant="fp32")
    assert siglip_onnx.load(copy).variant == "int8"
    data.unlink()
    with pytest.raises(BundleError, match="is missing"):
        siglip_onnx.load(copy, variant="fp32")
    assert siglip_onnx.load(copy).variant == "int8"
    assert verify_folder(copy) == ["onnx/text_model.onnx_data: missing"]


@pytest.mark.parametrize(("deleted", "left"), [("int8", "fp32"), ("fp32", "int8")])
def test_bundle_without_the_files_of_a_variant_opens(copy: Path, deleted: str, left: str) -> None:
    expected = siglip_onnx.load(copy, variant=left).encode_texts(["a cat"])
    for name in read_manifest(copy).variants[deleted].files:
        (copy / name).unlink()
    model = siglip_onnx.load(copy)
    assert model.variant == left
    np.testing.assert_array_equal(model.encode_texts(["a cat"]), expected)
    with pytest.raises(BundleError, match=f"has no variant '{deleted}'; it has {left}"):
        siglip_onnx.load(copy, variant=deleted)
    facts = json.loads(run("info", "--model", copy, "--json").stdout)
    assert (list(facts["variants"]), facts["default_variant"]) == ([left], left)
    assert {line.partition(":")[2] for line in verify_folder(copy)} == {" missing"}
    for name in read_manifest(copy).variants[left].files:
        (copy / name).unlink()
    with pytest.raises(BundleError, match="no files of its variants, fp32, int8"):
        open_bundle(copy)


def test_bundle_with_weights_named_as_in_version_0_1_opens() -> None:
    """The demo model is such a bundle."""
    names = open_bundle(BUNDLE_PATH).manifest.all_files()
    assert "onnx/vision_model.onnx.data" in names
    assert verify_folder(BUNDLE_PATH) == []


def test_embedding_space_does_not_depend_on_joined_graphs_but_on_all_weights_of_the_towers() -> None:
    facts = {name: FileFacts(1, f"{number:064x}") for number, name in enumerate(("tokenizer.json", "tower", "weights"))}
    shared, tower = {"tokenizer.json": facts["tokenizer.json"]}, {"onnx/vision_model.onnx": facts["tower"]}
    weights = {"onnx/model.onnx_data": facts["weights"]}  # an imported tower may name its weights so
    assert embedding_space("fp32", shared, tower) == "fp32-d50ede152bd4f1bc"
    assert embedding_space("fp32", shared, tower | weights) == "fp32-88697644173c0d51"
    joined = weights | {"onnx/model.onnx": facts["weights"]}
    assert embedding_space("fp32", shared, tower | joined) == "fp32-d50ede152bd4f1bc"


def test_strip_removes_the_other_variants(copy: Path) -> None:
    expected = siglip_onnx.load(copy).encode_texts(["a cat"])
    space = read_manifest(copy).variants["int8"].embedding_space
    (copy / "notes.txt").write_text("of the user")
    stripped = run("models", "strip", copy, "--keep", "int8")
    assert stripped.exit_code == 0, stripped.stderr
    assert "freed" in stripped.stderr
    manifest = read_manifest(copy)
    assert set(manifest.variants) == {"int8"}
    assert manifest.variants["int8"].embedding_space == space
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert files == {*manifest.all_files(), "manifest.json", "notes.txt"}
    assert verify_folder(copy) == []
    np.testing.assert_array_equal(siglip_onnx.load(copy).encode_texts(["a cat"]), expected)


def test_strip_repairs_a_bundle_whose_variant_was_deleted(copy: Path) -> None:
    data = copy / "onnx" / "text_model.onnx_data"
    data.unlink()
    assert run("models", "strip", copy, "--keep", "int8").exit_code == 0
    assert verify_folder(copy) == []


def test_interrupted_strip_is_finished_by_the_next(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = {path.name for path in (copy / "onnx").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(strip, "remove_own_files", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            strip.strip_bundle(copy, ["int8"])
    assert list(open_bundle(copy).manifest.variants) == ["int8"]
    assert {path.name for path in (copy / "onnx").iterdir()} == graphs
    assert strip.strip_bundle(copy, ["int8"]) > 0
    assert {path.name for path in (copy / "onnx").iterdir()} < graphs
    assert verify_folder(copy) == []
    assert "to_remove" not in read_manifest(copy).source


def test_strip_keeps_model_files_of_the_user(copy: Path) -> None:
    """transformers.js gives such names to further variants."""
    for name in ("vision_model_fp16.onnx", "model_q4.onnx", "model_q4.onnx_data"):
        (copy / "onnx" / name).write_text("of the user")
    assert run("models", "strip", copy, "--keep", "int8").exit_code == 0
    for name in ("vision_model_fp16.onnx", "model_q4.onnx", "model_q4.onnx_data"):
        assert (copy / "onnx" / name).read_text() == "of the user"
    assert not (copy / "onnx" / "text_model.onnx").exists()


def test_strip_refuses_what_would_leave_no_sound_bundle(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert_error(run("models", "strip", copy, "--keep", "q4"), 4, "has no variant 'q4'; it has fp32, int8")
    assert_error(run("models", "strip", copy, "--keep", "int8,q4"), 4, "has no variant 'q4'")
    assert_error(run("models", "strip", copy), 2, "--keep")
    (copy.parent / "link").symlink_to(BUNDLE_PATH)
    for demo in ("demo", copy.parent / "link"):
        assert_error(run("models", "strip", demo, "--keep", "int8"), 4, "part of the package")
    weights = copy / "onnx" / "vision_model_quantized.onnx_data"
    weights.write_bytes(bytes(weights.stat().st_size))
    before[weights] = weights.read_bytes()
    assert_error(run("models", "strip", copy, "--keep", "int8"), 4, "nothing was removed")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_strip_removes_no_file_that_no_bundle_has_and_changes_nothing_through_links(copy: Path) -> None:
    thesis = copy / "mail" / "thesis.docx"
    thesis.parent.mkdir()
    thesis.write_text("of the user")
    manifest = read_manifest(copy)
    fp32 = manifest.variants["fp32"]
    listed = replace(fp32, files={**fp32.files, "mail/thesis.docx": file_facts(thesis)})
    hostile = replace(manifest, variants={**manifest.variants, "fp32": listed})
    write_manifest(copy, hostile)
    assert run("models", "strip", copy, "--keep", "int8").exit_code == 0
    assert thesis.read_text() == "of the user"

    blob = copy.parent / "blob"
    (copy / "manifest.json").rename(blob)
    (copy / "manifest.json").symlink_to(blob)
    before = blob.read_bytes()
    assert run("models", "strip", copy, "--keep", "int8").exit_code == 4
    assert blob.read_bytes() == before


def test_tokenizer_that_does_not_pad_to_the_tower(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="pads to 16 and truncates to 16 tokens, but the text tower takes exactly 64"):
        Tokenizer(small_bundle / "tokenizer.json", 64)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json", 64)


@pytest.mark.parametrize("first", ["images", "texts"])
def test_towers_of_two_models_are_never_mixed(small_bundle: Path, tmp_path: Path, first: str) -> None:
    """A model that is replaced while a program has it open would give wrong numbers, and fill the label cache."""
    live = Path(shutil.copytree(small_bundle, tmp_path / "live"))
    other = Path(shutil.copytree(small_bundle, tmp_path / "other"))
    for path in other.glob("onnx/*_data"):
        numbers = np.frombuffer(path.read_bytes(), np.uint8).copy()
        path.write_bytes((numbers ^ 1).tobytes())
    write_manifest(other, with_hashes(other))
    model = siglip_onnx.load(live, variant="fp32", label_cache=tmp_path / "cache")
    image = IMAGES_PATH / "red_star.png"
    vectors = model.encode_images(image) if first == "images" else model.encode_labels(["a"])
    shutil.rmtree(live)
    shutil.copytree(other, live)
    with pytest.raises(BundleError, match=r"was replaced after the model was opened: sha256 .* Load the model again"):
        model.classify(image, ["a", "b"])
    shutil.rmtree(live)
    shutil.copytree(small_bundle, live)  # the same files with other times
    again = model.encode_images(image) if first == "images" else model.encode_labels(["a"])
    np.testing.assert_array_equal(again, vectors)
    assert len(model.classify(image, ["a", "b"])) == 2
