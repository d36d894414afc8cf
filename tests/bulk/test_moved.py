"""Moved and renamed files keep their vectors; dead and identical results of a search are marked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.commands import run
from support.images import make_image
from support.jobs import InProcess, embed, rows_of, sha256_of, tree

from siglip_onnx.bulk.job import Job, open_job
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.bulk.spec import ModelSpec


def vectors_by_content(out: Path) -> dict[str, bytes]:
    job, vectors = open_job(out), {}
    for shard in job.shards():
        stored = job.read_vectors(shard)
        vectors |= {row.sha256: stored[row.row].tobytes() for row in job.read_rows(shard) if row.row is not None}
    return {str(sha256): vector for sha256, vector in vectors.items()}


def test_moved_and_renamed_files_keep_their_vectors_and_places(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    before, vectors = [row["sha256"] for row in rows_of(out)], vectors_by_content(out)
    shutil.move(folder / "sub", folder / "archive")
    (folder / "03.png").rename(folder / "renamed.png")
    os.utime(folder / "renamed.png")
    new = folder / "new.png"
    make_image(np.random.default_rng(50)).save(new)
    assert embed(out, folder, spec, engine)["inputs"] == 38
    assert engine.embedded == [sha256_of(new)]
    assert [row["sha256"] for row in rows_of(out)] == [*before, sha256_of(new)]
    assert {row["path"] for row in rows_of(out)} == {str(path) for path in folder.rglob("*.png")}
    assert {key: value for key, value in vectors_by_content(out).items() if key in vectors} == vectors
    assert len(open_job(out).shards()) == 4
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    changes = [entry["inputs"] for entry in log if entry["event"] == "run"][-1]
    assert changes == {"new": 1, "changed": 0, "missing": 0, "listed": 38, "moved": 25, "unlisted": 0}
    done = tree(out)
    assert embed(out, folder, spec, engine)["inputs"] == 38
    assert tree(out) == done


def test_only_a_file_that_is_gone_was_moved(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    """A copy is a second input, and another file of the same size does not take the place of a missing one."""
    out, engine = tmp_path / "out", InProcess()
    embed(out, folder, spec)
    shutil.copy2(folder / "00.png", folder / "copy.png")
    lost, other = folder / "03.png", folder / "other.png"
    size, status = lost.stat().st_size, lost.stat()
    lost.unlink()
    other.write_bytes(bytes(size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert embed(out, folder, spec, engine)["inputs"] == 39
    assert str(lost) in {row["path"] for row in rows_of(out)}
    outside = tmp_path / "outside"  # a folder that is not listed this time, but is still there
    shutil.copytree(folder, outside)
    embed(tmp_path / "two", folder, spec)
    assert embed(tmp_path / "two", outside, spec)["inputs"] == 2 * 38


@pytest.mark.parametrize("num_writes", range(1, 8))
def test_interrupted_move_plans_no_input_twice(
    num_writes: int, folder: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, left, engine = tmp_path / "out", [num_writes], InProcess()
    embed(out, folder, spec)
    shutil.move(folder / "sub", folder / "archive")

    def interrupt_after(call: Callable[..., None]) -> Callable[..., None]:
        def limited(*arguments: object) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            call(*arguments)

        return limited

    with monkeypatch.context() as context:
        context.setattr(Job, "write_plan", interrupt_after(Job.write_plan))
        context.setattr(Job, "remove_shard", interrupt_after(Job.remove_shard))
        with pytest.raises(KeyboardInterrupt):
            embed(out, folder, spec)
    assert embed(out, folder, spec, engine)["inputs"] == 37
    assert sorted(row["path"] for row in rows_of(out)) == sorted(map(str, folder.rglob("*.png")))
    assert engine.embedded == []


def test_search_marks_dead_paths_and_folds_identical_images(
    folder: Path, spec: ModelSpec, small_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in range(30):
        shutil.copy(folder / "00.png", folder / f"00_copy{number:02}.png")
    embed(out, folder, spec)
    collection = open_collection(out)
    (query,) = spec.open().encode_images([folder / "00.png"])
    best, second = collection.search(query, 2, fold_duplicates=True)
    assert (best.path, best.missing) == (str(folder / "00.png"), False)
    assert best.duplicates == tuple(str(folder / f"00_copy{number:02}.png") for number in range(30))
    assert second.duplicates == ()
    assert len(collection.search(query, 100, fold_duplicates=True)) == 37
    assert [hit.path for hit in collection.search(query, 31)] == [best.path, *best.duplicates]
    (folder / "00.png").unlink()
    Path(second.path).unlink()
    best, gone = collection.search(query, 2, fold_duplicates=True)
    assert best.path == str(folder / "00_copy00.png")
    assert len(best.duplicates) == 29
    assert (gone.path, gone.missing) == (second.path, True)
    arguments = ("search", out, "--image", folder / "00_copy00.png", "-k", 2, "--model", small_bundle)
    lines = run(*arguments).stdout.splitlines()
    assert lines[1].split() == ["similarity", "note", "path"]
    assert lines[2].split()[:3] == ["1.000", "30", "identical"]
    assert lines[3].split()[1] == "missing"
    results = json.loads(run(*arguments, "--json").stdout)["results"]
    assert results[0]["duplicates"] == list(best.duplicates)
    assert results[1]["missing"] is True
    shown = json.loads(run(*arguments, "--show-duplicates", "-k", 5, "--json").stdout)["results"]
    assert [hit["path"] for hit in shown] == [
        str(folder / f"00{name}.png") for name in ("", "_copy00", "_copy01", "_copy02", "_copy03")
    ]
    assert [hit.get("missing") for hit in shown] == [True, None, None, None, None]
    assert_array_equal(np.load(out / "vectors" / "000000.npy")[0], query)
