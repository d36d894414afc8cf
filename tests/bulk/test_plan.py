"""Updating the plan: new, changed and missing inputs rewrite only their own shards."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.images import make_image
from support.jobs import InProcess, embed, rows_of, sha256_of, tree

from siglip_onnx.bulk.known_inputs import KnownInputs
from siglip_onnx.bulk.listing import Listing
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


def test_listing_does_not_follow_links_to_folders(folder: Path) -> None:
    (folder / "circle").symlink_to(folder)
    listing = Listing([folder])
    assert len(list(listing)) == 37
    assert len(list(Listing([folder], all_files=True))) == 38


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
