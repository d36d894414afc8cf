"""``duplicates``: groups of identical and near-identical images, as table, JSON and page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_error, run
from support.images import make_image

from siglip_onnx.bulk import duplicates
from siglip_onnx.bulk.duplicates import find_duplicates
from siglip_onnx.bulk.job import begin_job
from siglip_onnx.bulk.records import Input, JobFacts, Row
from siglip_onnx.bulk.search import Collection, open_collection
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.head import l2_normalize


def open_vectors(
    path: Path, vectors: Any, sizes: Any, hashes: Any, *, shard_size: int = 5, dtype: str = "float32"
) -> Collection:
    """Open a job in which image ``n`` has ``sizes[n]`` pixels and bytes; every third input has no vector."""
    facts = JobFacts("m", "int8", "int8-1", vectors.shape[1], 1.0, -1.0, {}, "npy", dtype, shard_size)
    path.mkdir()
    job = begin_job(path, facts, overwrite=False)
    for shard, start in enumerate(range(0, len(vectors), shard_size)):
        rows = []
        numbers = range(start, min(start + shard_size, len(vectors)))
        for row, number in enumerate(numbers):
            size, name = int(sizes[number]), f"/p/{number}.png"
            rows.append(Row(name, size, 1, status="ok", row=row, width=size, height=1, sha256=hashes[number]))
            if number % 3 == 0:
                rows.append(Row(f"/p/{number}_broken.png", 1, 1, status="decode_error"))
        inputs = [Input(row.path, row.size_bytes, row.mtime_ns) for row in rows]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, rows, vectors[start : start + shard_size])
    return open_collection(path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_identical_files_are_found_with_a_threshold_of_one(dtype: str, tmp_path: Path) -> None:
    """Computed cosines of different images may be 1 or more."""
    rng = np.random.default_rng(6)
    vectors = l2_normalize(rng.standard_normal((40, 16)).astype(np.float32))
    vectors[20:] = vectors[:20]
    hashes = [str(number) for number in range(40)]
    hashes[7] = hashes[27]
    collection = open_vectors(tmp_path / "job", vectors, np.ones(40), hashes, dtype=dtype)
    (group,) = find_duplicates(collection, 1.0).groups
    assert {copy.path for copy in group} == {"/p/7.png", "/p/27.png"}
    assert len(find_duplicates(collection, 0.999).groups) == 20


def test_cosines_of_rounded_vectors_do_not_depend_on_their_lengths(tmp_path: Path) -> None:
    vectors = np.array([[1.0, 0], [1.0005, 0.0448], [0, 1]], np.float32)
    collection = open_vectors(tmp_path / "job", vectors, [3, 2, 1], ["a", "b", "c"], dtype="float16")
    assert find_duplicates(collection, 0.9995).groups == []
    ((_, copy),) = find_duplicates(collection, 0.998).groups
    assert copy.similarity == pytest.approx(1 / np.hypot(1, 0.0448 / 1.0005), abs=1e-5)


@pytest.mark.parametrize("cells", [1, 50, 1_000_000])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_groups_are_those_of_a_plain_loop(
    cells: int, threshold: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    centers = rng.standard_normal((9, 16))[rng.integers(0, 9, 43)]
    vectors = l2_normalize((centers + 0.35 * rng.standard_normal((43, 16))).astype(np.float32))
    sizes = rng.permutation(43) + 1
    monkeypatch.setattr(duplicates, "_CELLS", cells)
    collection = open_vectors(tmp_path / "job", vectors, sizes, [str(n) for n in range(43)])
    found = find_duplicates(collection, threshold).groups

    free, expected = sorted(range(43), key=lambda number: -sizes[number]), []
    while free:
        first = free[0]
        group = [number for number in free if number == first or vectors[number] @ vectors[first] >= threshold]
        free = [number for number in free if number not in group]
        expected.append(group)
    expected = [group for group in expected if len(group) > 1]
    expected.sort(key=lambda group: -sum(sizes[number] for number in group[1:]))
    assert len(expected) >= 3
    assert [[copy.path for copy in group] for group in found] == [[f"/p/{n}.png" for n in group] for group in expected]
    for group, numbers in zip(found, expected, strict=True):
        cosines = [float(vectors[number] @ vectors[numbers[0]]) for number in numbers]
        assert [copy.similarity for copy in group[1:]] == pytest.approx(cosines[1:], abs=1e-6)
        assert [copy.identical for copy in group] == [True, *(False for _ in group[1:])]


def test_identical_files_are_a_group_with_any_threshold(tmp_path: Path) -> None:
    vectors = l2_normalize(np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32))
    collection = open_vectors(tmp_path / "job", vectors, [3, 9, 4, 1, 7, 2], ["a", "b", "a", "c", "b", "d"])
    groups = find_duplicates(collection, 1.0).groups
    assert [[copy.path for copy in group] for group in groups] == [["/p/1.png", "/p/4.png"], ["/p/2.png", "/p/0.png"]]
    assert all(copy.identical and copy.similarity == 1 for group in groups for copy in group)
    assert find_duplicates(collection, 1.0, only_existing=True) == ([], 0)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A star, its copy, its copy at half the size as JPEG, and two other images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    star = Image.open(IMAGES_PATH / "red_star.png").convert("RGB")
    star.save(folder / "star.png")
    (folder / "コピー.png").write_bytes((folder / "star.png").read_bytes())
    star.resize((star.width // 2, star.height // 2)).save(folder / "small.jpg", quality=95)
    (folder / "eggs.png").write_bytes((IMAGES_PATH / "six_eggs.png").read_bytes())
    make_image(np.random.default_rng(1)).save(folder / "other.png")
    return folder


@pytest.mark.usefixtures("photos")
def test_command_prints_groups(tmp_path: Path) -> None:
    table = run("duplicates", "photos")
    assert table.exit_code == 0, table.stderr
    header, *rows, empty, summary = table.stdout.splitlines()
    assert header.split() == ["similarity", "pixels", "size", "path"]
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    with Image.open("photos/star.png") as star:
        width, height = star.size
    assert [row[-1] for row in cells] == ["photos/star.png", "photos/コピー.png", "photos/small.jpg"]
    assert cells[0][0] == f"{width} x {height}"
    assert cells[1][:2] == ["identical", f"{width} x {height}"]
    assert float(cells[2][0]) >= 0.98
    assert empty == ""
    assert re.fullmatch(r"2 copies of 1 image take \d+ kB", summary)
    document = json.loads(run("duplicates", "photos", "--json").stdout)
    assert (document["model"], document["threshold"]) == ("demo", 0.98)
    (group,) = document["groups"]
    assert [Path(copy["path"]).name for copy in group] == ["star.png", "コピー.png", "small.jpg"]
    assert [copy["identical"] for copy in group] == [True, True, False]
    (identical,) = json.loads(run("duplicates", "photos", "--threshold", "1", "--json").stdout)["groups"]
    assert [Path(copy["path"]).name for copy in identical] == ["star.png", "コピー.png"]
    (tmp_path / "photos" / "コピー.png").unlink()
    assert run("duplicates", "photos", "--threshold", "1").stdout == "no duplicates\n"


@pytest.mark.usefixtures("photos")
def test_vectors_of_embed_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("embed", "photos", "--out", "vectors").exit_code == 0
    result = run("duplicates", "vectors", "--html", "page.html")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""  # needs no model
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Group 1: 3 images</h2>" in page
    assert re.findall(r"<b>(.*?)</b>", page)[:2] == ["first", "identical"]
    assert "cosine at least 0.98 · demo, int8</p>" in page
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert_error(run("duplicates", "nowhere"), 1, "nowhere does not exist; give a folder of images")
    assert_error(run("duplicates", "vectors", "--html", "photos"), 1, "photos cannot be written")
    monkeypatch.setattr("siglip_onnx.cli.duplicates.MAX_TILES", 1)
    result = run("duplicates", "vectors", "--html", "page.html")
    assert "page.html shows the first 1 of 3 images" in result.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<li>") == 1


def group_names(*arguments: object) -> list[list[str]]:
    groups = json.loads(run("duplicates", *arguments, "--json").stdout)["groups"]
    return [[Path(copy["path"]).name for copy in group] for group in groups]


def test_links_are_not_copies(photos: Path) -> None:
    """Only one name of a file is listed, the file's own where others are links: removing the others loses nothing."""
    (photos / "small.jpg").unlink()
    (photos / "コピー.png").unlink()
    for name in ("a.png", "z.png"):
        (photos / name).symlink_to("star.png")
    (photos / "hard.png").hardlink_to(photos / "star.png")
    assert run("duplicates", "photos").stdout == "no duplicates\n"
    shutil.copy(photos / "star.png", photos / "copy.png")
    assert group_names("photos") == [["copy.png", "hard.png"]]
    (photos / "hard.png").unlink()
    assert group_names("photos") == [["copy.png", "star.png"]]
    outside = photos.parent / "outside.png"
    (photos / "copy.png").rename(outside)
    (photos / "a.png").unlink()
    (photos / "a.png").symlink_to(outside)
    assert group_names("photos") == [["star.png", "a.png"]]


def test_vectors_of_files_that_are_gone_or_changed(photos: Path) -> None:
    """They are never a reason to remove the file that is left."""
    star = photos / "star.png"
    shutil.copy2(star, photos / "a.png")
    assert run("embed", "photos", "--out", "vectors").exit_code == 0
    assert group_names("vectors") == [["a.png", "star.png", "コピー.png", "small.jpg"]]
    (photos / "a.png").unlink()
    assert group_names("vectors") == [["star.png", "コピー.png", "small.jpg"]]
    content = star.read_bytes()
    star.write_bytes(content[:-1] + b"x")
    result = run("duplicates", "vectors")
    assert [line.split()[-1] for line in result.stdout.splitlines()[1:3]] == ["photos/コピー.png", "photos/small.jpg"]
    assert "are left out: 1. Run the embed command again." in result.stderr
    shutil.copy2(photos / "eggs.png", star)
    assert "a.png" not in result.stdout
    (photos / "small.jpg").unlink()
    assert group_names("vectors") == []


def test_whole_images_come_before_truncated_ones(tmp_path: Path) -> None:
    rows = [
        Row(f"/p/{name}.png", size, 1, status="ok", row=row, width=width, height=1, sha256=name, truncated=truncated)
        for row, (name, size, width, truncated) in enumerate(
            [("cut", 9, 7, True), ("whole", 5, 7, False), ("small", 6, 6, False)]
        )
    ]
    facts = JobFacts("m", "int8", "int8-1", 2, 1.0, -1.0, {}, "npy", "float32", 5)
    (tmp_path / "job").mkdir()
    job = begin_job(tmp_path / "job", facts, overwrite=False)
    job.write_plan(0, [row.input for row in rows])
    assert job.commit(0, [row.input for row in rows], rows, np.array([[1, 0]] * 3, np.float32)).truncated == 1
    (group,) = find_duplicates(open_collection(tmp_path / "job"), 0.9).groups
    assert [(copy.path, copy.truncated) for copy in group] == [
        ("/p/whole.png", False), ("/p/cut.png", True), ("/p/small.png", False)
    ]  # fmt: skip


def test_groups_of_which_no_file_is_there_are_marked(photos: Path) -> None:
    assert run("embed", "photos", "--out", "vectors").exit_code == 0
    photos.rename("elsewhere")
    header, first, copy, *_ = run("duplicates", "vectors", "--html", "page.html").stdout.splitlines()
    assert header.split() == ["similarity", "pixels", "size", "note", "path"]
    assert first.split()[-2] == copy.split()[-2] == "missing"
    assert "kB, missing" in Path("page.html").read_text(encoding="utf-8")
    (group,) = json.loads(run("duplicates", "vectors", "--json").stdout)["groups"]
    assert [copy["missing"] for copy in group] == [True, True, True]
