"""Updating the plan: new, changed and missing inputs rewrite only their own shards."""

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import run
from support.images import make_image
from support.jobs import SHARD_SIZE, InProcess, embed, rows_of, sha256_of, tree

from siglip_onnx.bulk.known_inputs import KnownInputs
from siglip_onnx.bulk.listing import Filter, Listing, read_names
from siglip_onnx.bulk.records import Input
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.errors import JobError, SiglipOnnxError


def test_new_inputs_fill_the_last_shard_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    before = {path: path.stat().st_ino for path in out.rglob("00000[0-2].*")}
    embed(out, folder, spec, engine)
    assert engine.shards == engine.embedded == []
    new = [folder / f"0a{number}.png" for number in range(8)]
    for number, path in enumerate(new):
        make_image(np.random.default_rng(100 + number), (20, 20)).save(path)
    summary = embed(out, folder, spec, engine)
    assert summary["vectors"] == 45
    assert engine.shards == [3, 4]
    assert sorted(engine.embedded) == sorted(map(sha256_of, new))
    assert {path: path.stat().st_ino for path in before} == before


def test_changed_images_are_embedded_and_touched_ones_are_not(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    changed, touched = folder / "03.png", folder / "sub" / "34.png"
    make_image(np.random.default_rng(50), (9, 30)).save(changed)
    os.utime(touched, ns=(1, 1))
    embed(out, folder, spec, engine)
    assert engine.embedded == [sha256_of(changed)]
    assert len(engine.shards) == 2
    rows = {row["path"]: row for row in rows_of(out)}
    assert rows[str(touched)]["mtime_ns"] == 1
    assert rows[str(changed)]["height"] == 30
    fresh = tmp_path / "fresh"
    embed(fresh, folder, spec)
    assert tree(out) == tree(fresh)


def test_prune_drops_missing_inputs_from_their_shards_only(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    first = sorted(folder.rglob("*.png"))[:11]  # all of shard 0, one of shard 1
    for path in first:
        path.unlink()
    assert embed(out, folder, spec, engine)["vectors"] == 37
    assert embed(out, folder, spec, engine, prune=True)["vectors"] == 26
    assert engine.shards == [1]
    assert engine.embedded == []
    assert not {str(path) for path in first} & {row["path"] for row in rows_of(out)}
    assert sorted(path.name for path in (out / "vectors").iterdir()) == ["000001.npy", "000002.npy", "000003.npy"]
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(JobError, match="--prune would drop all"):
        embed(out, folder, spec, prune=True)
    assert len(rows_of(out)) == 26


def test_prune_keeps_inputs_that_exist(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    """They are not listed this time, because another folder is, or with other options."""
    out, other, hidden = tmp_path / "out", tmp_path / "other", folder / ".hidden.png"
    other.mkdir()
    (folder / "00.png").rename(hidden)
    make_image(np.random.default_rng(60)).save(other / "new.png")
    arguments = ("--out", out, "--model", small_bundle)
    assert run("embed", folder, "--hidden", *arguments).exit_code == 0
    (folder / "03.png").unlink()
    result = run("embed", other, *arguments)
    assert "kept, although missing: 1 input;" in result.stderr
    assert "kept, although not among the inputs this time: 36 files; to leave them out, choose another" in result.stderr
    assert run("embed", other, "--prune", *arguments).exit_code == 0
    assert {row["path"] for row in rows_of(out)} == {str(path) for path in (*folder.rglob("*.png"), other / "new.png")}
    assert run("embed", folder, "--prune", *arguments).exit_code == 0
    assert str(hidden) in {row["path"] for row in rows_of(out)}


def test_inputs_that_cannot_be_examined_are_not_gone(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lstat = tmp_path / "out", os.lstat
    embed(out, folder / "sub", spec)

    def refuse(path: str, *arguments: Any, **keywords: Any) -> os.stat_result:
        if str(path).startswith(str(folder / "sub")):
            raise PermissionError(13, "Permission denied")
        return lstat(path, *arguments, **keywords)

    num_images = len(rows_of(out))
    (folder / "few").mkdir()
    (folder / "00.png").rename(folder / "few" / "00.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", refuse)
        assert embed(out, folder / "few", spec, prune=True)["vectors"] == num_images + 1


def test_unreadable_folder_is_a_row(
    folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, listdir = tmp_path / "out", os.listdir
    embed(out, folder, spec)

    def refuse(path: str) -> list[str]:
        if str(path).endswith("/sub"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SiglipOnnxError, match="sub cannot be listed, so --prune cannot tell"):
        embed(out, folder, spec, prune=True)
    assert embed(out, folder, spec)["errors"] == 1


def names_of(listing: Listing) -> list[str]:
    return [Path(item.path).name for item in listing]


def test_links_to_folders_are_counted_and_followed_on_request_once(tmp_path: Path) -> None:
    """No file is listed under two names, and a real folder keeps its own name, whatever links lead to it."""
    folder, outside = tmp_path / "images", tmp_path / "outside"
    for path in (folder / "z_real", outside / "deep"):
        path.mkdir(parents=True)
    for path in (folder / "z_real" / "a.png", outside / "b.png", outside / "deep" / "c.png"):
        path.touch()
    (folder / "circle").symlink_to(folder)
    (folder / "a_link").symlink_to(folder / "z_real")
    (folder / "again").symlink_to(outside)
    (folder / "and_again").symlink_to(outside / "deep")
    (outside / "deep" / "back").symlink_to(folder)
    listing = Listing([folder])
    assert names_of(listing) == ["a.png"]
    assert listing.linked_folders == 4
    followed = Listing([folder], entries=Filter(follow_links=True))
    paths = [item.path.removeprefix(f"{folder}/") for item in followed]
    assert paths == ["z_real/a.png", "again/b.png", "again/deep/c.png"]
    assert followed.linked_folders == 0


def test_hidden_files_trash_and_thumbnails_are_left_out(tmp_path: Path) -> None:
    kept = ["a.jpg", "b/c.jpg", "trash/d.jpg"]
    hidden = [
        ".a.jpg", "._a.jpg", ".git/x.jpg", ".thumbnails/x.jpg", ".Trash-1000/x.jpg", "@eaDir/a.jpg/THUMB_M.jpg",
        "b/@eaDir/x.jpg", "$RECYCLE.BIN/x.jpg", "#recycle/x.jpg", "System Volume Information/x.jpg", "__MACOSX/x.jpg",
    ]  # fmt: skip
    for name in (*kept, *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [item.path.removeprefix(f"{tmp_path}/") for item in Listing([tmp_path])] == kept
    assert names_of(Listing([tmp_path], all_files=True)) == ["a.jpg", "c.jpg", "d.jpg"]
    everything = Listing([tmp_path], entries=Filter(hidden=True))
    files = {item.path.removeprefix(f"{tmp_path}/") for item in everything if item.size_bytes is not None}
    assert files == {*kept, *hidden}
    assert len(names_of(Listing([tmp_path / ".git"]))) == 1  # a folder that was named is listed


@pytest.mark.parametrize(
    ("globs", "left"),
    [
        (["*.png"], {"a.jpg", "raw/b.jpg", "x/raw/c.jpg"}),
        (["raw"], {"a.jpg", "a.png"}),
        (["raw/"], {"a.jpg", "a.png"}),
        (["x/*"], {"a.jpg", "a.png", "raw/b.jpg"}),
        (["raw/*"], {"a.jpg", "a.png", "x/raw/c.jpg"}),
        (["a.*", "x"], {"raw/b.jpg"}),
        ([], {"a.jpg", "a.png", "raw/b.jpg", "x/raw/c.jpg"}),
    ],
)
def test_exclude_compares_names_or_paths_below_the_folder(globs: list[str], left: set[str], tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "raw/b.jpg", "x/raw/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = Listing([tmp_path], entries=Filter(exclude=globs))
    assert {item.path.removeprefix(f"{tmp_path}/") for item in listed} == left


def test_files_without_an_image_suffix_are_counted_by_kind(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    for name in ("a.CR2", "b.dng", "c.jxl", "d.MOV", "e.mp4", "f.mkv"):
        (folder / name).touch()
    (folder / "link").symlink_to(folder / "sub")
    listing = Listing([folder])
    assert len(list(listing)) == 37
    assert listing.left_out_kinds == {"raw": 2, "jxl": 1, "video": 3, "other": 1}
    result = run("embed", folder, "--out", tmp_path / "out", "--model", small_bundle, "--exclude", "sub")
    assert result.stderr == (
        "siglip-onnx: skipped 7 files without an image extension (2 RAW, 1 JPEG XL, 3 video, 1 other); use --all-files "
        "to try them. Convert RAW and JPEG XL files to JPEG or PNG to embed them.\n"
        "siglip-onnx: did not follow 1 link to folders; use --follow-links.\n"
    )
    assert result.stdout.endswith("13 vectors of 64 from 13 inputs (ok 13)\n")


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder whose tree is removed by a program that does not recurse, unlike pytest."""
    (tmp_path / "deep").mkdir()
    yield tmp_path / "deep"
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)  # noqa: S607


def make_levels(folder: Path, name: str, count: int) -> int:
    """Create folders in one another; return a descriptor of the deepest."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(count):
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    return descriptor


def test_tree_of_1500_levels_is_embedded(deep: Path, spec: ModelSpec, tmp_path: Path) -> None:
    make_image(np.random.default_rng(1)).save(deep / "z.png")
    descriptor = make_levels(deep, "d", 1500)
    os.link(deep / "z.png", "a.png", dst_dir_fd=descriptor)
    os.close(descriptor)
    assert embed(tmp_path / "out", deep, spec)["statuses"] == {"ok": 2}
    # Beyond what the system opens by one path, the first folder that cannot be listed stands for all below it.
    os.close(make_levels(deep, "x" * 200, 30))
    listing = Listing([deep])
    assert names_of(listing) == ["a.png", "x" * 200, "z.png"]
    assert len(listing.unlisted) == 1
    summary = embed(tmp_path / "out", deep, spec)
    assert summary["statuses"] == {"ok": 2, "io_error": 1}


@pytest.mark.parametrize("layout", ["npy", "parquet"])
def test_file_dated_after_2262_is_one_row(layout: str, folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    """File systems hold years that 64-bit nanoseconds do not; such a time counts as the last one that they hold."""
    future = 10**19  # the year 2286
    os.utime(folder / "03.png", ns=(future, future))
    if (folder / "03.png").stat().st_mtime_ns != future:
        pytest.skip("this file system does not hold the year 2286")
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    facts, engine = spec.job_facts(layout=layout, shard_size=SHARD_SIZE), InProcess()
    assert embed(tmp_path / "out", folder, spec, facts=facts)["statuses"] == {"ok": 37}
    (row,) = [row for row in rows_of(tmp_path / "out") if row["path"].endswith("/03.png")]
    assert row["mtime_ns"] == 2**63 - 1
    embed(tmp_path / "out", folder, spec, engine, facts=facts)
    assert engine.shards == []


def test_known_inputs_finds_what_was_added() -> None:
    rng = np.random.default_rng(2)
    known, expected = KnownInputs(), dict[str, int]()
    for shard in range(60):
        inputs = [Input(f"/p/{rng.integers(1 << 40)}", int(rng.integers(100)), 5) for _ in range(rng.integers(1, 90))]
        expected |= {item.path: len(known) + number for number, item in enumerate(inputs)}
        known.add(inputs, shard)
    paths = [*expected, *(f"/q/{number}" for number in range(200))]
    numbers = known.find([Input(path, None, None) for path in paths])
    assert numbers == [expected.get(path, -1) for path in paths]
    assert not known.mark_seen(0, known.latest("x", 0))
    assert not known.mark_seen(0, Input("x", 1, 1))  # listed twice
    assert known.mark_seen(1, Input("y", None, None))
    assert known.latest("y", 1) == Input("y", None, None)


def test_of_a_line_that_is_longer_than_any_path_only_the_beginning_is_kept() -> None:
    """A sparse file of a gigabyte would otherwise be ten thousand names of 100 kB."""
    lines = io.BytesIO(b"a.png\n" + bytes(1_000_000) + b"\nb.png\n" + b"x" * 99_999 + b"\n" + b"c.png")
    names = list(read_names(lines))
    assert [names[0], *names[2:3], *names[4:]] == ["a.png", "b.png", "c.png"]
    assert len(names[1]) <= 100_000
    assert names[3] == "x" * 99_999
