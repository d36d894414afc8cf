"""Models of the Hub: download, cache, resume and repair, and offline use."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import assert_error, run
from support.hub_server import Hub, serve
from support.waiting import wait_until

import siglip_onnx
from siglip_onnx import demo
from siglip_onnx.bundle.folder import open_bundle, verify_folder
from siglip_onnx.errors import BundleError, CacheError, CheckpointError, DownloadError, ModelNotFoundError
from siglip_onnx.hub import cache
from siglip_onnx.hub import pull as hub_pull
from siglip_onnx.hub.cache import CachedModel, cached_models, find_cached, stale_entries
from siglip_onnx.hub.names import parse_hub_name

NAME = "someone/tiny-siglip"
STAR = demo.IMAGES_PATH / "red_star.png"
WEIGHTS = "onnx/vision_model_quantized.onnx_data"
FOREIGN_MANIFESTS = {
    "web application": b'{"name": "a web application", "start_url": "/"}',
    "another format": b'{"format": "another/1", "variants": {}}',
    "list": b"[]",
    "not JSON": b"Manifest-Version: 1.0\n",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "nested": b"[" * 100_000,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub, and an empty cache."""
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_bundle_is_pulled_used_listed_verified_and_removed(hub: Hub, small_bundle: Path) -> None:
    commit = hub.add(NAME, small_bundle)
    pulled = run("models", "pull", NAME)
    assert pulled.exit_code == 0, pulled.output
    assert f"{NAME} at revision {commit[:12]}" in pulled.stderr
    assert "MB/s" in pulled.stderr
    folder = Path(pulled.stdout.strip())
    assert folder.name == commit
    assert verify_folder(folder) == []
    assert set(open_bundle(folder).manifest.variants) == {"int8"}
    assert hub.requests["onnx/vision_model.onnx_data"] == 0, "fp32 was not requested"
    before = hub.requests.total()
    embedding = siglip_onnx.load(NAME).encode_texts(["a"])
    assert (embedding == siglip_onnx.load(small_bundle).encode_texts(["a"])).all()
    assert hub.requests.total() == before, "a model in the cache needs no network"
    listed = json.loads(run("models", "list", "--json").stdout)["models"]
    assert [(row["model"], row["revision"], row["variants"]) for row in listed] == [(NAME, commit, ["int8"])]
    assert NAME in run("models", "list").stdout
    assert run("models", "verify").exit_code == 0
    assert run("models", "rm", NAME).exit_code == 0
    assert cached_models() == []
    assert_error(run("models", "rm", NAME), 4, "is not in the cache")
    folder.parent.mkdir()  # as a run leaves it that is killed before its last step
    assert run("models", "rm", NAME).exit_code == 0
    assert not folder.parent.exists()


def test_what_a_killed_pull_left_beside_the_model_is_removed(hub: Hub, small_bundle: Path) -> None:
    commit = hub.add(NAME, small_bundle)
    folder = Path(run("models", "pull", NAME).stdout.strip())
    partial = folder.with_name(f"{commit}.partial")
    partial.mkdir()
    (partial / "manifest.json").touch()
    assert run("models", "pull", NAME).exit_code == 0
    assert not partial.exists()
    assert verify_folder(folder) == []


def test_load_downloads_each_variant_once(hub: Hub, small_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.add(NAME, small_bundle)
    with caplog.at_level("INFO", "siglip_onnx"):
        assert siglip_onnx.load(NAME).variant == "int8"
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert "files" in caplog.text
    siglip_onnx.load(NAME)
    assert hub.requests[WEIGHTS] == 1
    lines: list[str] = []
    assert siglip_onnx.load(NAME, variant="fp32", report=lines.append).variant == "fp32"
    assert "files" in lines[0]
    assert set(open_bundle(cached_models()[0].folder).manifest.variants) == {"int8", "fp32"}
    with pytest.raises(BundleError, match="has no variant 'q4'; it has fp32, int8"):
        siglip_onnx.load(NAME, variant="q4")
    assert siglip_onnx.load(NAME).variant == "int8"


def test_pulling_a_variant_keeps_the_cached_ones(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    run("models", "pull", NAME)
    assert run("models", "pull", NAME, "--variant", "fp32").exit_code == 0
    assert set(open_bundle(cached_models()[0].folder).manifest.variants) == {"int8", "fp32"}


def test_variant_whose_files_were_deleted_from_the_cache_is_downloaded_again(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    assert run("models", "pull", NAME, "--variant", "fp32", "--variant", "int8").exit_code == 0
    folder = cached_models()[0].folder
    for name in open_bundle(folder).manifest.variants["fp32"].files:
        (folder / name).unlink()
    assert siglip_onnx.load(NAME).variant == "int8"
    assert siglip_onnx.load(NAME, variant="fp32").variant == "fp32"
    assert set(open_bundle(folder).manifest.variants) == {"int8", "fp32"}
    assert not stale_entries(), "nothing was damaged"
    assert run("models", "strip", NAME, "--keep", "int8").exit_code == 0
    assert run("models", "check", NAME).exit_code == 0
    assert siglip_onnx.load(NAME, variant="fp32").variant == "fp32"


def test_branch_of_a_cached_commit_is_known_offline_and_can_be_removed(hub: Hub, small_bundle: Path) -> None:
    commit = hub.add(NAME, small_bundle)
    siglip_onnx.load(f"{NAME}@{commit}")
    siglip_onnx.load(f"{NAME}@v1")
    siglip_onnx.load(f"{NAME}@v1", variant="fp32")
    assert siglip_onnx.load(f"{NAME}@v1", variant="fp32", offline=True).variant == "fp32"
    assert run("models", "rm", f"{NAME}@v1").exit_code == 0
    assert cached_models() == []


def test_short_branch_is_not_the_beginning_of_a_commit(hub: Hub, small_bundle: Path) -> None:
    """A tag "1" would be the beginning of one of 16 commits."""
    commit = hub.add(NAME, small_bundle)
    siglip_onnx.load(NAME)
    assert find_cached(NAME, commit[:7]) == find_cached(NAME, commit) == find_cached(NAME, None)
    for revision in (commit[0], commit[:6]):
        assert find_cached(NAME, revision) is None
        with pytest.raises(DownloadError, match="no such revision on the Hub"):
            siglip_onnx.load(f"{NAME}@{revision}")
        with pytest.raises(ModelNotFoundError, match=f"has no revision {revision} in the cache"):
            cache.remove(NAME, revision)
    assert cache.remove(NAME, commit[:7]) > 0


def test_ambiguous_commit_is_not_removed(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    first = cached_by_loading(NAME)
    second = replace(first, revision=first.revision[:39] + ("0" if first.revision[39] != "0" else "1"), asked="v2")
    shutil.copytree(first.folder, second.folder)
    cache.write_record(second)
    with pytest.raises(ModelNotFoundError, match="2 revisions in the cache that begin with"):
        cache.remove(NAME, first.revision[:12])
    assert first.folder.is_dir() and second.folder.is_dir()  # noqa: PT018
    cache.remove(NAME, "v2")
    assert first.folder.is_dir() and not second.folder.exists()  # noqa: PT018


def test_model_without_a_revision_stays_that_of_the_default_branch(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    first = cached_by_loading(NAME)
    hub.add(NAME, small_bundle, **{"README.md": b"another commit"})
    other = cached_by_loading(f"{NAME}@v1")
    assert other.revision != first.revision
    assert find_cached(NAME, None) == find_cached(NAME, "main") == first
    hub.requests.clear()
    siglip_onnx.load(NAME)
    assert not hub.requests
    assert run("models", "pull", NAME).exit_code == 0  # the default branch has moved to the commit of v1
    for revision in (None, "main", "v1"):
        found = find_cached(NAME, revision)
        assert found is not None
        assert (found.revision, found.asked, found.also) == (other.revision, "v1", ("",))
    hub.add(NAME, small_bundle)  # as a tag of the first commit answers
    assert run("models", "pull", f"{NAME}@{first.revision}").exit_code == 0
    assert find_cached(NAME, None) == found
    again = find_cached(NAME, first.revision)
    assert again is not None
    assert (again.revision, again.asked, again.also) == (first.revision, first.revision, ())


def cached_by_loading(name: str) -> CachedModel:
    siglip_onnx.load(name)
    repository, _, revision = name.partition("@")
    found = find_cached(repository, revision or None)
    assert found is not None
    return found


def test_revisions(hub: Hub, small_bundle: Path) -> None:
    commit = hub.add(NAME, small_bundle)
    siglip_onnx.load(f"{NAME}@v1")
    before = hub.requests.total()
    for revision in ("v1", commit, commit[:10]):
        siglip_onnx.load(f"{NAME}@{revision}")
    assert hub.requests.total() == before
    with pytest.raises(DownloadError, match="has no such revision"):
        siglip_onnx.load(f"{NAME}@v2")
    with pytest.raises(DownloadError, match="is not on the Hub, or requires a login"):
        siglip_onnx.load("someone/nothing")


@pytest.mark.export
def test_classifier_and_single_tower_need_no_files_of_a_text_tower(
    hub: Hub, small_checkpoint: Path, tmp_path: Path
) -> None:
    from support.checkpoints import make_classifier, make_single_tower

    labels = ("a", "b", "c")
    classifier = make_classifier(
        small_checkpoint, tmp_path / "c", labels=labels, problem_type="single_label_classification"
    )
    hub.add("someone/classifier", classifier)
    hub.add("someone/text", make_single_tower(small_checkpoint, tmp_path / "t", "text"))
    assert [match.text for match in siglip_onnx.load("someone/classifier").classify(STAR)] == list(labels)
    assert siglip_onnx.load("someone/text").encode_texts(["a"]).shape == (1, 64)
    listed = json.loads(run("models", "list", "--json").stdout)["models"]
    assert [(row["kind"], row["model_kind"]) for row in listed] == [
        ("checkpoint", "classifier"),
        ("checkpoint", "text"),
    ]
    (classifier / "preprocessor_config.json").unlink()
    hub.add("someone/classifier2", classifier)
    assert_error(run("models", "pull", "someone/classifier2"), 4, "it has no preprocessor_config.json")
    assert hub.requests["model.safetensors"] == 2, "no weights were downloaded"


def test_pulled_checkpoint_is_exported_in_the_cache(hub: Hub, small_checkpoint: Path, small_bundle: Path) -> None:
    commit = hub.add("google/siglip2-base-patch16-224", small_checkpoint, **{"pytorch_model.bin": bytes(20_000)})
    done = run("models", "pull", "siglip2-base-patch16-224", "--json")
    assert done.exit_code == 0, done.output
    assert "to export it" in done.stderr
    assert "Writing int8 towers" in done.stderr
    row = json.loads(done.stdout)
    assert (row["model"], row["revision"], row["kind"]) == ("google/siglip2-base-patch16-224", commit, "checkpoint")
    assert hub.requests["pytorch_model.bin"] == 0
    model = siglip_onnx.load("siglip2-base-patch16-224")
    source = model.bundle.manifest.source
    assert (source["checkpoint"], source["revision"]) == ("google/siglip2-base-patch16-224", commit)
    assert (model.encode_texts(["a"]) == siglip_onnx.load(small_bundle).encode_texts(["a"])).all()
    assert stale_entries() == []


def test_checkpoint_beside_a_manifest_of_another_program_is_exported(
    hub: Hub, small_checkpoint: Path, small_bundle: Path
) -> None:
    hub.add(NAME, small_checkpoint, **{"manifest.json": FOREIGN_MANIFESTS["web application"]})
    done = run("models", "pull", NAME, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kind"] == "checkpoint"
    model = siglip_onnx.load(NAME)
    assert model.bundle.manifest.source["checkpoint"] == NAME
    assert (model.encode_texts(["a"]) == siglip_onnx.load(small_bundle).encode_texts(["a"])).all()
    hub.requests.clear()
    siglip_onnx.load(NAME)
    assert not hub.requests


@pytest.mark.export
@pytest.mark.parametrize("content", FOREIGN_MANIFESTS.values(), ids=FOREIGN_MANIFESTS)
def test_manifest_of_another_program_makes_no_bundle(hub: Hub, small_bundle: Path, content: bytes) -> None:
    hub.add(NAME, small_bundle, **{"manifest.json": content})
    assert_error(
        run("models", "pull", NAME), 4, "neither a model of siglip_onnx nor a SigLIP checkpoint: it has no model"
    )
    assert hub.requests[WEIGHTS] == 0
    assert cached_models() == []


@pytest.mark.export
def test_layouts_are_chosen_by_the_files(hub: Hub, small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    """transformers 5, weights of PyTorch in shards, and open_clip beside other files with names of transformers."""
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import load_file
    from support import layouts

    layouts.write_transformers5(small_checkpoint, tmp_path / "v5")
    hub.add("someone/v5", tmp_path / "v5")

    sharded = Path(shutil.copytree(small_checkpoint, tmp_path / "sharded"))
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    shard = "pytorch_model-00001-of-00001.bin"
    torch.save(weights, sharded / shard)
    layouts.write_json(sharded / "pytorch_model.bin.index.json", {"weight_map": dict.fromkeys(weights, shard)})
    hub.add("someone/sharded", sharded)
    hub.add("someone/merged", small_checkpoint, **{"adapter_config.json": b"{}"})  # a whole one, with what was merged
    described = {"open_clip_config.json": json.dumps(layouts.OPEN_CLIP_CONFIG).encode()}  # without weights of open_clip
    hub.add("someone/described", sharded, **described)
    for name in ("someone/v5", "someone/sharded", "someone/merged", "someone/described"):
        model, expected = siglip_onnx.load(name), siglip_onnx.load(small_bundle)
        assert (model.encode_texts(["a"]) == expected.encode_texts(["a"])).all(), name

    hub.add("someone/saved", layouts.SAVED_BY_TRANSFORMERS_5)
    assert siglip_onnx.load("someone/saved").bundle.manifest.logit_scale == 3.0

    reference = layouts.make_wide_checkpoint(tmp_path / "reference")
    both = Path(shutil.copytree(reference, tmp_path / "both"))
    named = layouts.open_clip_weights(reference)
    save_file(named, both / "open_clip_model.safetensors")
    layouts.write_json(both / "open_clip_config.json", layouts.OPEN_CLIP_CONFIG)
    hub.add("someone/both", both)
    assert "layout" not in siglip_onnx.load("someone/both").bundle.manifest.source, "as export: transformers"
    assert hub.requests["open_clip_model.safetensors"] == 0
    save_file({f"model.{name}": array for name, array in named.items()}, both / "model.safetensors")
    for name in ("someone/marqo", "someone/marqo2"):
        hub.add(name, both)
        hub.requests.clear()
        source = siglip_onnx.load(name).bundle.manifest.source
        assert (source["layout"], source["checkpoint"]) == ("open_clip", name)
        assert hub.requests["config.json"] == 0
        (both / "open_clip_model.safetensors").unlink(missing_ok=True)


@pytest.mark.export
def test_models_of_sentence_transformers(hub: Hub, small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> None:
    kind = "sentence_transformers.models"
    modules = [{"path": "0_Transformer", "type": f"{kind}.Transformer"}, {"path": "1", "type": f"{kind}.Normalize"}]
    wrapped = tmp_path / "wrapped"
    shutil.copytree(small_checkpoint, wrapped / "0_Transformer")
    (wrapped / "modules.json").write_text(json.dumps(modules))
    hub.add("someone/wrapped", wrapped)
    model = siglip_onnx.load("someone/wrapped")
    assert (model.encode_texts(["a"]) == siglip_onnx.load(small_bundle).encode_texts(["a"])).all()
    modules.append({"path": "2_Dense", "type": f"{kind}.Dense"})
    hub.add("someone/dense", wrapped, **{"modules.json": json.dumps(modules).encode()})
    hub.requests.clear()
    assert_error(run("models", "pull", "someone/dense"), 4, "with a Dense module, which changes the embeddings")
    hub.put("someone/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "README.md": b""})
    assert_error(run("models", "pull", "someone/adapter"), 4, "holds an adapter (adapter_config.json)")
    assert hub.requests["model.safetensors"] == hub.requests["0_Transformer/model.safetensors"] == 0


@pytest.mark.export
def test_added_tokens_are_pulled(hub: Hub, small_checkpoint: Path, small_bundle: Path) -> None:
    pieces = json.loads((small_bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    hub.add(NAME, small_checkpoint, **{"added_tokens.json": json.dumps({"<box>": len(pieces)}).encode()})
    assert siglip_onnx.load(NAME).tokenize(["<box>"])[0, 0] == len(pieces)


@pytest.mark.export
def test_failed_export_raises_the_exporters_error(hub: Hub, small_checkpoint: Path) -> None:
    config = json.loads((small_checkpoint / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    hub.add(NAME, small_checkpoint, **{"config.json": json.dumps(config).encode()})
    lines: list[str] = []
    message = r"tiny-siglip could not be exported \(exit code 4\): .*hidden_act 'relu'"
    with pytest.raises(CheckpointError, match=message):
        siglip_onnx.load(NAME, report=lines.append)
    assert not any("{" in line for line in lines)
    assert cached_models() == []


@pytest.mark.export
def test_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    hub.add(NAME, tmp_path / "other")
    with pytest.raises(BundleError, match=r"neither a model of siglip_onnx nor a SigLIP checkpoint: it has no prepro"):
        siglip_onnx.load(NAME)


def test_interrupted_download_resumes(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    hub.cut = {WEIGHTS: 50}
    failed = run("models", "pull", NAME)
    assert_error(failed, 4, "could not be downloaded")
    assert "run the command again" in failed.stderr
    assert cached_models() == []
    text_requests = hub.requests["tokenizer.json"]
    hub.cut = {}
    assert run("models", "pull", NAME).exit_code == 0
    assert hub.requests["tokenizer.json"] == text_requests, "complete files are not downloaded again"
    assert verify_folder(cached_models()[0].folder) == []


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_wrong_checksum_is_retried_once_and_then_refused(hub: Hub, small_bundle: Path, file: str) -> None:
    hub.add(NAME, small_bundle)
    hub.corrupt = {file: 1}
    assert run("models", "pull", NAME).exit_code == 0
    assert run("models", "rm", NAME).exit_code == 0
    hub.corrupt = {file: 2}
    assert_error(run("models", "pull", NAME), 4, f"{file} of {NAME} failed its checksum twice")
    assert cached_models() == []


def test_bundle_that_contradicts_its_manifest_is_refused(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle, **{"config.json": b"{}"})
    assert_error(run("models", "pull", NAME), 4, "is damaged on the Hub: config.json")
    assert cached_models() == stale_entries() == []


def test_damaged_model_in_the_cache_is_downloaded_again_once(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    siglip_onnx.load(NAME)
    damage(cached_models()[0].folder)
    lines: list[str] = []
    siglip_onnx.load(NAME, report=lines.append).encode_texts(["a"])
    assert "Fetching it again" in lines[0]
    assert len(stale_entries()) == 1
    assert verify_folder(cached_models()[0].folder) == []
    damage(cached_models()[0].folder)
    hub.corrupt = {WEIGHTS: 99}
    with pytest.raises(DownloadError, match="failed its checksum twice"):
        siglip_onnx.load(NAME)


def test_folder_of_a_user_is_never_changed(hub: Hub, copy: Path) -> None:
    damage(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(BundleError, match=r"vision_model_quantized\.onnx_data: sha256"):
        siglip_onnx.load(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert hub.requests.total() == 0


def damage(folder: Path) -> None:
    path = folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_offline(hub: Hub, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    hub.add(NAME, small_bundle)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flag = ["--offline"] if how == "option" else []
    image = demo.IMAGES_PATH / "red_star.png"
    for command in (["models", "pull", NAME], ["classify", image, "--text", "a", "--model", NAME]):
        assert_error(run(*command, *flag), 4, f"siglip-onnx models pull {NAME}")
    assert hub.requests.total() == 0
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    siglip_onnx.load(NAME)
    before = hub.requests.total()
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("classify", image, "--text", "a", "--model", NAME, *flag).exit_code == 0
    with pytest.raises(DownloadError, match=f"models pull {NAME} --variant fp32"):
        siglip_onnx.load(NAME, variant="fp32", offline=True)
    damage(cached_models()[0].folder)
    with pytest.raises(BundleError, match=f"models pull {NAME}@"):
        siglip_onnx.load(NAME, offline=True)
    assert hub.requests.total() == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("siglip2-base-patch16-224", ("google/siglip2-base-patch16-224", None)),
        ("siglip-base-patch16-256-multilingual@abc", ("google/siglip-base-patch16-256-multilingual", "abc")),
        ("a/b", ("a/b", None)),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
    ],
)
def test_hub_names(name: str, expected: tuple[str, str | None]) -> None:
    parsed = parse_hub_name(name)
    assert (parsed.name, parsed.revision) == expected


@pytest.mark.parametrize("name", ["a", "a/b/c", "../b", "a/..", "-a/b", "a b/c", "a/b@", "a/b@../..", "http://a/b", ""])
def test_invalid_hub_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        parse_hub_name(name)


def test_mistyped_path_does_not_use_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="was not found"):
        parse_hub_name("out/bundel")
    with pytest.raises(ModelNotFoundError, match="Did you mean 'siglip2-base-patch16-224'"):
        parse_hub_name("siglip2-base-patch16-24")


def test_unwritable_cache_is_one_error(hub: Hub, small_bundle: Path, tmp_path: Path) -> None:
    hub.add(NAME, small_bundle)
    (tmp_path / "file").touch()
    failed = run("--cache-dir", tmp_path / "file", "models", "pull", NAME)
    assert failed.exit_code == CacheError.exit_code == 4
    assert "SIGLIP_ONNX_CACHE" in failed.stderr


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LOAD = f"""
import siglip_onnx
print(siglip_onnx.load({NAME!r}, report=lambda line: None).encode_texts(["a"]).shape)
"""


def test_eight_concurrent_processes_download_once(hub: Hub, small_bundle: Path) -> None:
    hub.add(NAME, small_bundle)
    hub.gate = threading.Event()
    processes = [start(LOAD) for _ in range(8)]
    hub.gate.set()
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert out.startswith("(1, ")
    assert hub.requests[WEIGHTS] == 1
    assert len(cached_models()) == 1
    assert verify_folder(cached_models()[0].folder) == []
    assert stale_entries() == []


def test_killed_download_leaves_the_cache_usable(hub: Hub, small_bundle: Path, full: bool) -> None:
    hub.add(NAME, small_bundle)
    for requests in range(1, 11) if full else (4,):
        hub.gate = threading.Event()
        hub.requests.clear()
        process = start(LOAD)
        wait_until(lambda requests=requests: hub.requests.total() >= min(requests, 4))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        hub.gate.set()
        assert cached_models() == []
        siglip_onnx.load(NAME).encode_texts(["a"])
        assert verify_folder(cached_models()[0].folder) == []
        assert stale_entries() == []
        assert run("models", "rm", NAME).exit_code == 0


def test_checkpoint_may_be_called_bundle(hub: Hub, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def export(checkpoint: Path, out: Path, *_: object) -> None:
        called.append(((checkpoint / "config.json").is_file(), out.exists()))
        raise BundleError("the test ends here")

    monkeypatch.setattr(hub_pull, "_run_export", export)
    hub.add("someone/bundle", small_checkpoint)
    assert_error(run("models", "pull", "someone/bundle"), 4, "the test ends here")
    assert called == [(True, False)]
