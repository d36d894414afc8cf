"""``search`` of a folder of images: indexed once, brought up to date, with the model that made the vectors; formats."""

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.commands import assert_error, run

import siglip_onnx
from siglip_onnx.bulk.index import _can_be_read_now
from siglip_onnx.bulk.job import open_job
from siglip_onnx.bulk.records import JobFacts
from siglip_onnx.bulk.run import read_errors
from siglip_onnx.bulk.search import Query, Term, encode_query, open_collection
from siglip_onnx.cli import main
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import DownloadError
from siglip_onnx.head import l2_normalize
from siglip_onnx.hub import loading
from siglip_onnx.options import DEFAULTS

NAMES = ("red_star.png", "six_eggs.png", "word_open.png")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``photos`` of three sample images, in the current folder, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes((IMAGES_PATH / name).read_bytes())
    return folder


def jobs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("job.json"))


def test_a_folder_is_indexed_once_and_then_brought_up_to_date(photos: Path, tmp_path: Path) -> None:
    first = run("search", "photos", "six eggs", "-k", "1")
    assert first.exit_code == 0, first.stderr
    assert first.stderr.splitlines()[-1] == "Indexing photos: 3 images; later, only new and changed ones."
    query, header, row = first.stdout.splitlines()
    assert (query, header) == ("query: six eggs", "probability  similarity  path")
    assert row.endswith("  photos/six_eggs.png")
    (job,) = jobs(tmp_path / "cache")
    assert json.loads((job / "summary.json").read_text())["vectors"] == 3

    again = run("search", photos, "six eggs", "-k", "1")
    assert again.stdout == first.stdout
    assert "Indexing" not in again.stderr

    (photos / "one.png").write_bytes((IMAGES_PATH / "one_egg.png").read_bytes())
    (photos / "broken.png").write_text("not an image")
    (photos / "six_eggs.png").unlink()
    later = run("search", "photos", "six eggs", "-k", "3", "--json")
    assert "Indexing photos: 2 new or changed images of 5." in later.stderr
    assert f"1 image cannot be read; see {job / 'errors.jsonl'}." in later.stderr
    assert later.exit_code == 3
    names = [Path(hit["path"]).name for hit in json.loads(later.stdout)["results"]]
    assert sorted(names) == ["one.png", "red_star.png", "word_open.png"]  # not the file that was removed
    assert jobs(tmp_path / "cache") == [job]
    for path in photos.iterdir():
        path.unlink()
    assert_error(run("search", "photos", "a"), 1, "photos holds neither images nor vectors")


def test_images_that_cannot_be_read_are_told_by_every_search(photos: Path) -> None:
    (photos / "junk.png").write_text("not an image")
    for command in (["search", photos, "a star"], ["search", photos, "a star"], ["duplicates", photos]):
        done = run(*command)
        assert done.exit_code == 3
        assert "1 image cannot be read; see" in done.stderr
    (photos / "junk.png").unlink()
    assert run("search", photos, "a star").exit_code == 0


@pytest.mark.parametrize("is_index", [True, False])
def test_truncated_images_are_noted_in_results(is_index: bool, photos: Path, tmp_path: Path) -> None:
    Image.open(IMAGES_PATH / "red_star.png").convert("RGB").save(photos / "cut.jpg")
    content = (photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(content[: 2 * len(content) // 3])
    for name in ("copy.jpg", "longer.jpg"):
        shutil.copy(photos / "cut.jpg", photos / name)
    with (photos / "longer.jpg").open("ab") as file:
        file.write(b"\0" * 10)
    folder = photos
    if not is_index:
        folder = tmp_path / "out"
        embedded = run("embed", photos, "--out", folder, "--allow-truncated", "--json")
        assert json.loads(embedded.stdout)["truncated_vectors"] == 3
    options = ["--allow-truncated"] if is_index else []
    hits = json.loads(run("search", folder, "a star", "--json", *options).stdout)["results"]
    assert {Path(hit["path"]).name: hit.get("truncated") for hit in hits} == {
        "copy.jpg": True, "longer.jpg": True, **dict.fromkeys(NAMES)
    }  # fmt: skip
    result = run("search", folder, "a star", "--html", tmp_path / "page.html", *options)
    notes = {line.split()[-1]: line for line in result.stdout.splitlines()[2:]}
    assert "  truncated, 2 identical  " in notes["photos/copy.jpg"]
    assert "truncated" not in notes["photos/red_star.png"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count(", truncated") == 2
    groups = json.loads(run("duplicates", folder, "--json", *options).stdout)["groups"]
    assert [[copy.get("truncated") for copy in group] for group in groups] == [[True, True, True]]
    table = run("duplicates", folder, "--html", tmp_path / "duplicates.html", *options).stdout.splitlines()
    assert table[0].split() == ["similarity", "pixels", "size", "note", "path"]
    assert "truncated" in table[1]
    assert (tmp_path / "duplicates.html").read_text(encoding="utf-8").count(", truncated") == 3


def indexed(photos: Path, *options: object) -> str:
    """Search, and return what was indexed."""
    result = run("search", photos, "a star", *options)
    assert result.exit_code in (0, 3), result.stderr
    return "".join(re.findall(r"Indexing \S*photos: (\d+ \w+)", result.stderr))


@pytest.mark.parametrize("model", [(), ("--model", "demo"), ("environment",)], ids=["", "named", "environment"])
@pytest.mark.parametrize("has_index", [False, True])
def test_an_index_is_used_without_the_options_it_was_made_with(
    has_index: bool, model: tuple[str, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == ("environment",):
        monkeypatch.setenv("SIGLIP_ONNX_MODEL", "demo")
        model = ()
    index = ("--index", tmp_path / "index") if has_index else ()
    made = ("--fast-decode", "--background", "black", "--max-megapixels", "0.07", "--allow-truncated")
    assert indexed(photos, *made, *index, *model) == "3 images"
    large = Image.open(IMAGES_PATH / "red_star.png").convert("RGB").resize((400, 400))
    large.save(photos / "large.png")
    small = large.resize((200, 200))
    small.save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:-500])
    assert indexed(photos, *index, *model) == "2 new"
    assert indexed(photos, *index, *model) == ""
    (job,) = jobs(tmp_path)
    (error,) = read_errors(job)
    assert (Path(error["path"]).name, error["status"]) == ("large.png", "too_large")
    assert indexed(photos, "--max-megapixels", "1", *index, *model) == ""  # the one image is tried again
    assert list(read_errors(job)) == []
    assert indexed(photos, *index, *model) == ""
    assert jobs(tmp_path) == [job]
    assert "large.png" in run("search", photos, "a star", "--paths", *index, *model).stdout
    other = run("search", photos, "a star", "--background", "red", *index, *model)
    if has_index:
        assert_error(other, 1, "was made with --background #000000, not #ff0000; choose another --index, or leave out")
    else:
        assert "photos: 5 images; later" in other.stderr


def test_index_with_other_pixels_is_another_one(photos: Path, tmp_path: Path) -> None:
    assert indexed(photos) == "3 images"
    assert indexed(photos, "--fast-decode") == "3 images"
    assert len(jobs(tmp_path)) == 2
    assert indexed(photos, "--index", tmp_path / "index") == "3 images"
    refused = run("search", photos, "a", "--index", tmp_path / "index", "--fast-decode")
    assert_error(refused, 1, "was made without --fast-decode, not with it; choose another --index, or leave out these")


def test_truncated_images_are_tried_again_when_they_are_allowed(photos: Path, tmp_path: Path) -> None:
    Image.open(IMAGES_PATH / "one_egg.png").convert("RGB").save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:-500])
    assert indexed(photos) == "4 images"
    (job,) = jobs(tmp_path)
    assert [error["status"] for error in read_errors(job)] == ["truncated"]
    hits = json.loads(run("search", photos, "a", "--allow-truncated", "--json").stdout)["results"]
    assert [Path(hit["path"]).name for hit in hits if hit.get("truncated")] == ["cut.jpg"]
    assert jobs(tmp_path) == [job]


def test_limits_may_change_from_run_to_run_of_a_job(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("embed", photos, "--out", out, "--max-megapixels", "0.01").exit_code == 3
    again = run("embed", photos, "--out", out)
    assert again.exit_code == 3
    assert "retry" not in again.stderr
    raised = run("embed", photos, "--out", out, "--max-megapixels", "1")
    assert raised.exit_code == 3
    assert (
        "to try the images again that were refused by the limits of earlier runs, add --retry-errors." in raised.stderr
    )
    done = run("embed", photos, "--out", out, "--max-megapixels", "1", "--retry-errors")
    assert done.exit_code == 0, done.stderr
    assert run("embed", photos, "--out", out).stdout.endswith("3 inputs (ok 3)\n")
    assert_error(run("embed", photos, "--out", out, "--fast-decode"), 1, "out was made without --fast-decode, not with")


def test_images_that_an_extra_or_a_disk_makes_readable_are_tried_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "new.heic").write_bytes((IMAGES_PATH / "one_egg.png").read_bytes())
    assert run("search", photos, "one egg", "-k", "9").exit_code == 0
    (job,) = jobs(tmp_path / "cache")
    for status, installed, again in (
        ("unsupported", True, True),
        ("unsupported", False, False),
        ("io_error", False, True),
    ):
        line = {"path": str(photos / "new.heic"), "status": status, "message": ""}
        (job / "errors.jsonl").write_text(json.dumps(line) + "\n")
        monkeypatch.setattr("siglip_onnx.bulk.index.is_installed", lambda _, installed=installed: installed)
        assert _can_be_read_now(job, DEFAULTS) == again
    (job / "errors.jsonl").unlink()
    assert not _can_be_read_now(job, DEFAULTS)


@pytest.mark.parametrize(
    "content", [b'{"path": 5', b"[1]\n", b"{}\n", b'{"path": 5, "status": "ok", "message": ""}\n', b"["]
)
def test_damaged_list_of_errors_is_written_again(content: bytes, photos: Path, tmp_path: Path) -> None:
    (photos / "junk.png").write_text("not an image")
    assert run("search", photos, "a star").exit_code == 3
    (job,) = jobs(tmp_path / "cache")
    expected = (job / "errors.jsonl").read_bytes()
    (job / "errors.jsonl").write_bytes(content * (1 if content != b"[" else 100_000))
    for command in ("duplicates", "search"):
        done = run(command, photos, *(["a star"] if command == "search" else []))
        assert (done.exit_code, "1 image cannot be read" in done.stderr) == (3, True), done.output
        assert (job / "errors.jsonl").read_bytes() == expected


def test_sparse_list_of_errors_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "errors.jsonl").open("wb") as file:
        file.truncate(1_000_000_000)
    tracemalloc.start()
    try:
        assert _can_be_read_now(tmp_path, DEFAULTS)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_index_on_a_full_or_read_only_disk_is_searched_if_it_is_up_to_date(
    code: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    (photos / "broken.png").write_bytes(b"not an image")
    expected = run("search", photos, "six eggs", "--json")
    assert expected.exit_code == 3, expected.stderr
    (index,) = jobs(tmp_path / "cache")
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    for name in ("storage.acquire", "storage.write_atomic", "storage.remove_own_files", "job.remove_own_files",
                 "run._open_own"):  # fmt: skip
        monkeypatch.setattr(f"siglip_onnx.bulk.{name}", fail)
    again = run("search", photos, "six eggs", "--json")
    assert (again.exit_code, again.stdout) == (3, expected.stdout)
    assert again.stderr.count(" cannot be written; it is up to date, and is used as it is.") == 1
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
    (photos / "new.png").write_bytes((IMAGES_PATH / "word_cat.png").read_bytes())
    assert_error(run("search", photos, "six eggs"), 1, f"cannot be written: {os.strerror(code)}. Free space")


def test_job_on_a_full_disk_says_so_even_if_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert run("embed", IMAGES_PATH, "--out", tmp_path / "out").exit_code == 0
    monkeypatch.setattr("siglip_onnx.bulk.run._open_own", fail)
    assert_error(run("embed", IMAGES_PATH, "--out", tmp_path / "out"), 1, "cannot be written: No space left on device")


def test_searches_at_the_same_time_wait_for_each_other(photos: Path) -> None:
    command = [sys.executable, "-m", "siglip_onnx", "search", str(photos), "six eggs", "-k", "1"]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [(*process.communicate(timeout=120), process.returncode) for process in together]
    assert [code for _, _, code in answers] == [0] * 4, answers
    assert {out for out, _, _ in answers} == {answers[0][0]}
    assert sum("Indexing" in err for _, err, _ in answers) == 1


def test_an_index_in_a_folder_of_its_own(photos: Path, tmp_path: Path) -> None:
    assert run("search", photos, "a star", "--index", tmp_path / "index").exit_code == 0
    assert not (tmp_path / "cache" / "indexes").exists()
    assert open_job(tmp_path / "index").facts.model == "demo"
    other = run("search", photos, "a star", "--index", tmp_path / "index", "--variant", "fp32")
    assert_error(
        other, 1, "holds vectors of demo, variant int8, but the model is demo, variant fp32; choose another --index"
    )
    assert run("search", tmp_path / "index", "a star", "-k", "1", "--paths").stdout == "photos/red_star.png\n"


def test_a_folder_is_searched_with_the_model_that_indexed_it(
    photos: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_of(*arguments: object) -> str:
        result = run("search", photos, "a", "--json", *arguments)
        assert result.exit_code == 0, result.stderr
        return str(json.loads(result.stdout)["model"])

    assert model_of("--model", os.path.relpath(small_bundle)) == "small"
    assert model_of() == "small"  # the index that was used last
    assert model_of("--model", "demo") == "demo"
    assert len(jobs(tmp_path / "cache")) == 2
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", str(small_bundle))
    assert model_of() == "small"
    assert len(jobs(tmp_path / "cache")) == 2


def test_vectors_know_their_model(photos: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    embedded = run("embed", photos, "--out", out, "--model", copy, "--variant", "fp32")
    assert embedded.exit_code == 0, embedded.stderr
    document = json.loads(run("search", out, "a", "--json").stdout)
    assert (document["model"], document["variant"]) == ("small", "fp32")
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", "demo")  # is for folders that have no vectors yet
    assert json.loads(run("search", out, "a", "--json").stdout)["model"] == "small"
    moved = Path(shutil.move(copy, tmp_path / "moved"))
    assert_error(run("search", out, "a"), 1, "they cannot be compared")
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", str(moved))
    assert run("search", out, "a").exit_code == 0
    monkeypatch.delenv("SIGLIP_ONNX_MODEL")
    message = f"{out} was embedded with small, variant fp32, which is not found as {str(copy)!r}; give its folder"
    assert_error(run("search", out, "a"), 4, message)
    assert run("search", out, "a", "--model", moved).exit_code == 0


@pytest.mark.parametrize("environment", [None, "demo", "other/model"])
@pytest.mark.parametrize("is_index", [False, True])
def test_a_model_that_only_a_folder_names_is_not_downloaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None, is_index: bool
) -> None:
    """A folder of vectors may come from elsewhere; the environment names a model, but not that one."""
    out = tmp_path / "out"
    options = ("--index", out) if is_index else ()
    folder = photos if is_index else out
    made = run("search", photos, "a", *options) if is_index else run("embed", photos, "--out", out)
    assert made.exit_code == 0, made.stderr
    job = out / "job.json"
    job.write_text(job.read_text().replace('"model": "demo"', '"model": "owner/name"'))

    downloads: list[str] = []

    def download(name: str, *_: object) -> None:
        downloads.append(name)
        raise DownloadError("the network is used")

    monkeypatch.setattr(loading, "pull", download)
    if environment is not None:
        monkeypatch.setenv("SIGLIP_ONNX_MODEL", environment)
    result = run("search", folder, "a", *options)
    if environment == "demo" and not is_index:  # the vectors are its own
        assert result.exit_code == 0, result.stderr
    elif environment == "other/model" and not is_index:
        assert downloads == ["other/model"]  # the user's own choice
        downloads.clear()
    else:
        assert_error(result, 4, "owner/name, which is not in the cache")
        assert "only that folder names it" in result.stderr
    assert downloads == []


def test_the_name_of_the_model_does_not_change_the_fingerprint(photos: Path, tmp_path: Path) -> None:
    """Jobs of earlier versions have no name and stay valid."""
    out = tmp_path / "out"
    assert run("embed", photos, "--out", out).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*/*") if path.is_file()}
    document = json.loads((out / "job.json").read_text())
    assert document.pop("model") == "demo"
    (out / "job.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    assert run("search", out, "a star").exit_code == 0
    assert run("embed", photos, "--out", out).exit_code == 0
    assert {path: path.read_bytes() for path in out.rglob("*/*") if path.is_file()} == before
    facts = JobFacts("m", "int8", "int8-1", 8, 1.0, -1.0, {}, "npy", "float32", 10)
    assert facts.fingerprint == "7975724c45a1dfee264ef4de852657f4667cc0a53f177d47fc13b208c6eb3130"


def test_only_one_text_has_probabilities_in_python(photos: Path, tmp_path: Path) -> None:
    assert run("embed", photos, "--out", tmp_path / "out").exit_code == 0
    model, collection = siglip_onnx.load("demo"), open_collection(tmp_path / "out")
    star, red = model.encode_texts(["a star", "red"])
    for query, has_probability in (
        (encode_query(model, [Term(1, "a star")]), True),
        (star, True),
        (encode_query(model, [Term(1, "a star"), Term(-1, "red")]), False),
        (encode_query(model, [Term(-1, "red")]), False),
        (encode_query(model, [Term(1, image=photos / "red_star.png")]), False),
        (star + red, False),
        (star - red, False),
        (Query(l2_normalize((star - red)[np.newaxis])[0], one_text=False), False),
    ):
        for hit in collection.search(query, 3):
            assert (hit.logit is not None, hit.probability is not None) == (has_probability, has_probability)


def test_formats_for_programs(photos: Path) -> None:
    (photos / "with\nline.png").write_bytes((IMAGES_PATH / "six_eggs.png").read_bytes())
    document = json.loads(run("search", "photos", "six eggs", "--json").stdout)
    lines = run("search", "photos", "six eggs", "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == document["results"]
    rows = list(csv.DictReader(io.StringIO(run("search", "photos", "six eggs", "--csv").stdout)))
    assert [(row["path"], float(row["probability"])) for row in rows] == [
        (hit["path"], hit["probability"]) for hit in document["results"]
    ]
    sums = list(
        csv.DictReader(io.StringIO(run("search", "photos", "a", "--minus", "b", "--csv", "--show-duplicates").stdout))
    )
    assert [(row["logit"], row["probability"]) for row in sums] == [("", "")] * 4
    best = run("search", "photos", "six eggs", "--min-probability", "0.5", "-0", "--show-duplicates").stdout
    assert sorted(best.split("\0")) == ["", "photos/six_eggs.png", "photos/with\nline.png"]
    none = run("search", "photos", "six eggs", "--min-probability", "0.99", "--paths")
    assert (none.stdout, none.exit_code) == ("", 0)
    assert none.stderr.endswith("No image reaches 0.99.\n")


@pytest.mark.usefixtures("photos")
def test_query_image_from_stdin() -> None:
    arguments = ["search", "photos", "--image", "-", "-k", "1"]
    result = CliRunner().invoke(main, arguments, input=(IMAGES_PATH / "six_eggs.png").read_bytes())
    assert result.stdout.splitlines() == [
        "query: image from stdin", "similarity  path", "     1.000  photos/six_eggs.png"
    ]  # fmt: skip
    broken = CliRunner().invoke(main, arguments, input=b"not an image")
    assert_error(broken, 1, "not a readable image")


def test_index_of_another_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    assert run("embed", photos, "--out", tmp_path / "index").exit_code == 0
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(next(photos.glob("*.png")), other / "x.png")
    result = run("search", other, "a star", "--index", tmp_path / "index")
    assert_error(result, 1, "holds images of another folder, such as")
    assert run("search", photos, "a star", "--index", tmp_path / "index").exit_code == 0
    min(photos.iterdir()).unlink()  # the first image of the shard
    assert_error(run("search", other, "a star", "--index", tmp_path / "index"), 1, "holds images of another folder")


def test_a_page_of_results_has_a_bounded_number_of_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siglip_onnx.cli.search.MAX_TILES", 2)
    result = run("search", photos, "a star", "-k", "3", "--html", tmp_path / "page.html", "--json")
    assert "page.html shows the first 2 of 3 images" in result.stderr
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<li>") == 2
    assert len(json.loads(result.stdout)["results"]) == 3
