"""``--overwrite`` removes what the command itself wrote, and never a file of the user's."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from support.checkpoints import make_checkpoint
from support.commands import run
from support.images import save_all

import siglip_onnx
from siglip_onnx.bulk.job import begin_job, open_job
from siglip_onnx.errors import CheckpointError, SiglipOnnxError
from siglip_onnx.export.pipeline import export_bundle

HALF_WRITTEN = f".siglip_onnx-{'b' * 32}.part"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_all([Image.new("RGB", (20, 20), (number * 80, 0, 0)) for number in range(3)], tmp_path / "images")
    return tmp_path / "images"


def embed(images: Path, out: Path, *options: str) -> Result:
    return run("embed", images, "--out", out, "--workers", 1, *options)


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files by name, without what every run may leave."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write(path: Path, content: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


MINE = ("vectors/svg/logo.svg", "vectors/readme.txt", "metadata/metadata_000000.parquet", "plan/2026.jsonl.bak",
        "rows/notes", "parquet/000000.parquet", ".tmp/draft.txt", "photo.jpg", "receipts/0001.json")  # fmt: skip


def test_a_job_that_is_overwritten_leaves_the_users_files(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert embed(images, out).exit_code == 0
    before = set(tree(out))
    for name in MINE:
        write(out / name)
    assert embed(images, out, "--overwrite", "--dtype", "float16").exit_code == 0
    assert open_job(out).facts.dtype == "float16"
    assert set(tree(out)) == before | set(MINE)
    assert {tree(out)[name] for name in MINE} == {b"mine"}


@pytest.mark.parametrize("layout", ["npy", "clip-retrieval", "parquet"])
def test_a_job_that_is_overwritten_leaves_nothing_of_the_old_one(images: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    assert embed(images, out, "--layout", layout, "--shard-size", "1").exit_code == 0
    assert embed(images, out, "--overwrite", "--layout", "npy", "--shard-size", "2").exit_code == 0
    assert embed(images, tmp_path / "fresh", "--shard-size", "2").exit_code == 0
    fresh = tree(tmp_path / "fresh")
    assert set(tree(out)) == set(fresh)
    assert all(tree(out)[name] == content for name, content in fresh.items() if name != "log.jsonl")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "fresh").iterdir()}


@pytest.mark.parametrize(
    "content",
    ["{}", '{"name": "nightly backup"}', '{"format": "siglip_onnx.bundle"}', '{"format": null}', "[1]", "", "no JSON",
     '{"format": "siglip_onnx.job_summary/1"}'],
)  # fmt: skip
def test_a_folder_with_another_job_json_is_refused(images: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    write(out / "job.json", content)
    for name in ("vectors/000000.npy", "metadata/a", "plan/000000.jsonl", "rows/a", "parquet/a", "summary.json",
                 ".tmp/a", f".tmp/{HALF_WRITTEN}", "log.jsonl"):  # fmt: skip
        write(out / name)
    before = tree(out)
    for options in ([], ["--overwrite"]):
        refused = embed(images, out, *options)
        assert refused.exit_code == 1
        assert "job.json" in refused.stderr
        assert tree(out) == before


def test_a_run_that_is_refused_removes_nothing(images: Path, tmp_path: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    assert embed(images, out).exit_code == 0
    write(out / ".tmp" / HALF_WRITTEN, "half")
    before = tree(out)
    assert "variant" in embed(images, out, "--variant", "fp32").stderr
    assert "No images were found" in embed(empty, out, "--overwrite").stderr
    assert tree(out) == before
    other = tmp_path / "other"
    write(other / ".tmp" / HALF_WRITTEN)
    write(other / "photo.jpg")
    before = tree(other)
    assert "is not empty and is not a job folder" in embed(images, other, "--overwrite").stderr
    assert tree(other) == before
    assert embed(images, out, "--overwrite").exit_code == 0
    assert not (out / ".tmp").exists(), "what a killed run left there is removed by a run that is accepted"


def test_temporary_files_of_others_are_kept(images: Path, tmp_path: Path) -> None:
    """Caches name files by their MD5, and call a folder ``.tmp``."""
    theirs = tmp_path / "out" / ".tmp" / ("d" * 32)
    write(theirs)
    for options in ([], [], ["--overwrite"]):
        assert embed(images, tmp_path / "out", *options).exit_code == 0
        assert theirs.read_text() == "mine"


def test_a_lock_file_of_the_users_is_not_emptied(images: Path, tmp_path: Path) -> None:
    write(tmp_path / "out" / ".lock")
    assert embed(images, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / ".lock").read_text() == "mine"


@pytest.mark.parametrize("name", ["vectors", "vectors/000000.npy", "job.json", "rows", "summary.json", ".tmp"])
def test_links_are_refused_before_anything_is_removed(images: Path, tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    assert embed(images, out).exit_code == 0
    place = out / name
    if place.exists():
        place.rename(elsewhere)
    else:
        write(elsewhere / ("c" * 32))
    place.symlink_to(elsewhere)
    write(tmp_path / "beside")
    before = tree(out), elsewhere.read_bytes() if elsewhere.is_file() else tree(elsewhere)
    refused = embed(images, out, "--overwrite", "--dtype", "float16")
    assert refused.exit_code == 1
    assert "cannot be overwritten" in refused.stderr
    assert (tree(out), elsewhere.read_bytes() if elsewhere.is_file() else tree(elsewhere)) == before
    assert place.is_symlink()


def test_an_older_or_damaged_job_of_ours_can_be_overwritten(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert embed(images, out).exit_code == 0
    facts = open_job(out).facts
    (out / "job.json").write_text(json.dumps({"format": "siglip_onnx.job/0", "layout": "npy"}))
    begin_job(out, facts, overwrite=True)
    assert set(tree(out)) == {"job.json"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "square")
    bundle = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(checkpoint, bundle, precisions=["fp32"])
    return checkpoint, bundle


@pytest.mark.parametrize("kind", ["file", "folder", "link", "linked folder", "broken link"])
def test_export_replaces_no_folder_that_holds_anything_else(tiny: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    checkpoint, bundle = tiny
    out = Path(shutil.copytree(bundle, tmp_path / "out"))
    write(tmp_path / "elsewhere" / "photo.jpg")
    if kind == "file":
        write(out / "onnx" / "notes.txt")
    elif kind == "folder":
        (out / "drafts").mkdir()
    elif kind == "link":
        (out / "onnx" / "photo.jpg").symlink_to(tmp_path / "elsewhere" / "photo.jpg")
    elif kind == "linked folder":
        (out / "photos").symlink_to(tmp_path / "elsewhere")
    else:
        (out / "photos").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="also holds"):
        export_bundle(checkpoint, out, precisions=["fp32"], overwrite=True)
    assert tree(tmp_path) == before


def test_export_does_not_replace_through_a_link(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = tiny
    shutil.copytree(bundle, tmp_path / "v1")
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    before = tree(tmp_path / "v1")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        export_bundle(checkpoint, tmp_path / "current", precisions=["fp32"], overwrite=True)
    assert tree(tmp_path / "v1") == before


def test_a_file_that_is_added_during_the_export_is_kept(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = tiny
    out = Path(shutil.copytree(bundle, tmp_path / "out"))

    def add_a_file(step: str) -> None:
        if step.startswith("Comparing"):
            write(out / "thesis.txt")

    with pytest.raises(CheckpointError, match=r"also holds thesis\.txt"):
        export_bundle(checkpoint, out, precisions=["fp32"], overwrite=True, report=add_a_file)
    assert (out / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failed_replacement_is_undone(tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, bundle = tiny
    out = Path(shutil.copytree(bundle, tmp_path / "out"))
    before = tree(out)
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(SiglipOnnxError, match="No space left on device"):
        export_bundle(checkpoint, out, precisions=["fp32"], overwrite=True)
    assert tree(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    export_bundle(checkpoint, out, precisions=["int8"], overwrite=True)
    assert siglip_onnx.load(out).variant == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
