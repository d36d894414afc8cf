"""Searching embedded folders: exact with every layout and example, and only with the embedding space of the vectors."""

import html
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.commands import assert_error, run
from support.examples import EXAMPLES, run_example
from support.images import make_image
from support.jobs import unit_vectors, write_job

import siglip_onnx
from siglip_onnx.bulk.duplicates import find_duplicates
from siglip_onnx.bulk.gallery import Group, Tile, render_gallery
from siglip_onnx.bulk.job import open_job
from siglip_onnx.bulk.search import Collection, Query, Term, encode_query, make_scorer, open_collection
from siglip_onnx.bulk.shard import Task, find_pending
from siglip_onnx.cli.output import format_percent
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import JobError, ModelNotFoundError, OptionError, SiglipOnnxError
from siglip_onnx.head import compute_logits, l2_normalize, sigmoid


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "out"
    command = [sys.executable, "-m", "siglip_onnx", "embed", IMAGES_PATH, "--out", out, "--shard-size", "5"]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.parametrize("layout", ["npy", "clip-retrieval", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_search_is_exact_with_every_layout(layout: str, dtype: str, tmp_path: Path) -> None:
    if layout != "npy":
        pytest.importorskip("pyarrow")
    vectors, (query,) = unit_vectors(1234), unit_vectors(1, seed=9)
    write_job(tmp_path / "job", vectors, dtype=dtype, layout=layout)
    stored = vectors.astype(dtype).astype(np.float64)
    order = np.argsort(-(stored @ query.astype(np.float64)), kind="stable")
    for count in (1, 10, 300):
        hits = open_collection(tmp_path / "job").search(query, count)
        assert [hit.path for hit in hits] == [f"/p/{number}.png" for number in order[:count]]
    logits = compute_logits(stored.astype(np.float32)[order[:300]], query[np.newaxis], logit_scale=4.7, logit_bias=-12)
    assert_array_equal(np.array([hit.logit for hit in hits], np.float32), logits[:, 0])
    assert_allclose([hit.probability for hit in hits], sigmoid(logits[:, 0]))


def test_search_with_one_thread_equals_search_with_many(tmp_path: Path) -> None:
    vectors, (query,) = unit_vectors(1000), unit_vectors(1, seed=9)
    write_job(tmp_path / "job", np.repeat(vectors, 2, axis=0), shard_size=37)  # every score twice
    collection = open_collection(tmp_path / "job")
    assert collection.search(query, 25, threads=1) == collection.search(query, 25, threads=4)
    assert len(collection.search(query, 100_000)) == 2000


def test_a_probability_alone_finds_all_that_reach_it(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siglip_onnx.cli.search._AT_FIRST", 4)
    every = run("search", embedded, "a star", "--jsonl", "-k", 1000).stdout.splitlines()
    probabilities = [json.loads(line)["probability"] for line in every]
    assert len(every) > 12
    for least, expected in ((0, len(every)), (probabilities[11], 12), (probabilities[1], 2)):
        result = run("search", embedded, "a star", "--jsonl", "--min-probability", least)
        assert result.stdout.splitlines() == every[:expected]
        assert "there may be more" not in result.stderr
    limited = run("search", embedded, "a star", "--jsonl", "--min-probability", 0, "-k", 3)
    assert limited.stdout.splitlines() == every[:3]
    assert "The last of 3 images reaches 0, too; there may be more, see --top." in limited.stderr


def test_every_float16_counts_exactly() -> None:
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = values[np.isfinite(values)]
    pairs = np.zeros((2 * len(finite), 2), np.float16)
    pairs[: len(finite), 0] = pairs[len(finite) :, 1] = finite
    query = np.array([1.0, -0.5], np.float32)
    scores = make_scorer(pairs.dtype, query)(pairs)
    assert_array_equal(scores, np.concatenate([finite.astype(np.float32), finite.astype(np.float32) * -0.5]))


@pytest.mark.parametrize("dim", [2, 7, 192, 768])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scores_are_dot_products(dim: int, dtype: Any) -> None:
    vectors, (query,) = unit_vectors(3000, dim).astype(dtype), unit_vectors(1, dim, seed=3)
    expected = vectors.astype(np.float64) @ query.astype(np.float64)
    assert_allclose(make_scorer(np.dtype(dtype), query)(vectors), expected, atol=1e-6)


def test_search_by_text_in_both_languages(embedded: Path) -> None:
    result = run("search", embedded, "six eggs", "-k", "3", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["embedding_space"] == siglip_onnx.load("demo").embedding_space
    assert document["query"] == [{"weight": 1, "text": "six eggs"}]
    assert len(document["results"]) == 3
    first = document["results"][0]
    assert first["path"] == str(IMAGES_PATH / "six_eggs.png")
    (match,) = siglip_onnx.load("demo", threads=1).classify(first["path"], ["six eggs"])
    assert first["logit"] == pytest.approx(match.logit, abs=1e-4)
    assert first["probability"] == pytest.approx(match.probability, abs=1e-4)
    assert "blue_star_on_dark.png" in run("search", embedded, "暗い背景に青い星", "-k", "1").stdout


def test_search_by_images_and_weights(embedded: Path) -> None:
    model = siglip_onnx.load("demo")
    star = str(IMAGES_PATH / "red_star.png")
    result = run("search", embedded, "--image", star, "-k", "2", "--json")
    like, other = json.loads(result.stdout)["results"]
    assert like["path"] == star
    assert like["similarity"] == pytest.approx(1, abs=1e-3)
    arguments = ("a star", "--minus", "red", "--term", "-0.5", "a circle", "--image-term", "0.25", star)
    hits = json.loads(run("search", embedded, *arguments, "--json").stdout)["results"]
    terms = [Term(1, "a star"), Term(-1, "red"), Term(-0.5, "a circle"), Term(0.25, image=star)]
    query = encode_query(model, terms)
    text = model.encode_texts(["a star", "red", "a circle"])
    image = model.encode_images(star)
    expected = l2_normalize(text[:1] - text[1:2] - np.float32(0.5) * text[2:] + np.float32(0.25) * image)
    assert_allclose(query.vector, expected[0], atol=1e-6)
    fields = ("path", "similarity", "logit", "probability")
    found = open_collection(embedded).search(query, 10)
    assert hits == [{name: getattr(hit, name) for name in fields} for hit in found]
    assert {hit["logit"] for hit in hits} == {hit["probability"] for hit in hits} == {None}
    assert other["path"] != star


STAR = str(IMAGES_PATH / "red_star.png")
IMAGES_PATH_NAMES = sorted(map(str, IMAGES_PATH.iterdir()))


@pytest.mark.parametrize(
    ("query", "title", "one_text"),
    [
        (["a star"], "a star", True),
        (["--text", "a star"], "a star", True),
        (["--term", "2", "a star"], "2 × a star", True),
        (["a star", "--template", "a {}", "--template", "the {}"], "a star", True),
        (["a star", "--text", "a circle"], "a star + a circle", False),
        (["--text", "a", "--text", "b"], "a + b", False),
        (["a star", "--minus", "red"], "a star − red", False),
        (["--minus", "red"], "− red", False),
        (["--term", "-1", "red"], "− red", False),
        (["--image", STAR], "red_star.png", False),
        (["--image-term", "0.5", STAR], "0.5 × red_star.png", False),
        (["a star", "--minus-image", STAR], "a star − red_star.png", False),
    ],
)
def test_only_one_text_has_probabilities(
    query: list[str], title: str, one_text: bool, embedded: Path, tmp_path: Path
) -> None:
    """Tables and pages leave the columns out, JSON has null; the first line and the title name the query."""
    page = tmp_path / "page.html"
    result = run("search", embedded, *query, "-k", "3", "--html", page)
    assert result.exit_code == 0, result.stderr
    first, header, *rows = result.stdout.splitlines()
    assert first == f"query: {title}"
    assert header.split() == [*(["probability"] if one_text else []), "similarity", "path"]
    assert [len(re.split(r" {2,}", row.strip())) for row in rows] == [3 if one_text else 2] * 3
    text = page.read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in text
    assert f"<h1>{title}</h1><p>{embedded} · demo, int8</p>" in text
    hits = json.loads(run("search", embedded, *query, "-k", "3", "--json").stdout)["results"]
    shown = [format_percent(hit["probability"]) if one_text else f"{hit['similarity']:.3f}" for hit in hits]
    assert re.findall(r"<b>(.*?)</b>", text) == [html.escape(score) for score in shown]
    assert text.count("%</b>") == (3 if one_text else 0)
    for hit in hits:
        assert list(hit) == ["path", "similarity", "logit", "probability"]
        assert (hit["logit"] is None, hit["probability"] is None) == (not one_text, not one_text)


def test_query_that_cancels_out_is_refused(embedded: Path) -> None:
    assert_error(run("search", embedded, "a star", "--minus", "a star"), 1, "cancel out")
    with pytest.raises(SiglipOnnxError, match="The query is zero"):
        encode_query(siglip_onnx.load("demo"), [])
    with pytest.raises(SiglipOnnxError, match="weights are too large"):
        encode_query(siglip_onnx.load("demo"), [Term(1e308, "a"), Term(-1e308, "a")])


def test_a_collection_outlives_a_change_of_the_current_folder(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_collection(embedded).search("a red star", 3)
    monkeypatch.chdir(embedded.parent)
    shutil.copytree(BUNDLE_PATH, "model", dirs_exist_ok=True)
    for model in (None, "model"):
        monkeypatch.chdir(embedded.parent)
        collection = open_collection(embedded.name, model)
        monkeypatch.chdir(Path(embedded.anchor))
        assert collection.search("a red star", 3) == expected


def test_gallery_of_paths_that_are_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "a.png").as_uri() in render_gallery("", "", [Group("", [Tile("a.png", "1")])])


def test_gallery_shows_thumbnails_and_escapes_names(small_bundle: Path, tmp_path: Path) -> None:
    folder, page = tmp_path / "images", tmp_path / "page.html"
    folder.mkdir()
    make_image(np.random.default_rng(1), (900, 600)).save(folder / "<b>&'\".jpg")
    make_image(np.random.default_rng(2)).save(folder / "missing.png")
    assert run("embed", folder, "--out", tmp_path / "out", "--model", small_bundle).exit_code == 0
    (folder / "missing.png").unlink()
    arguments = ("a <script> 夕焼け", "--html", page, "--model", small_bundle)
    result = run("search", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert text.count("<li>") == 2
    assert text.count('src="data:image/jpeg;base64,') == 1
    assert "cannot be read" in text
    assert "<title>a &lt;script&gt; 夕焼け</title>" in text
    assert "<script" not in text
    assert "<b>&'" not in text
    assert "http" not in text.replace("http-equiv", "")
    refused = run("search", tmp_path / "out", "a", "--html", folder, "--model", small_bundle)
    assert "cannot be written" in refused.stderr


def test_a_file_that_was_replaced_is_marked(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(IMAGES_PATH, tmp_path / "photos"))
    assert run("embed", folder, "--out", tmp_path / "out").exit_code == 0
    shutil.copy(folder / "six_eggs.png", folder / "red_star.png")
    for options in ((), ("--show-duplicates",)):
        result = run("search", tmp_path / "out", "a red star", "-k", 2, "--json", *options)
        first, second = json.loads(result.stdout)["results"]
        assert (Path(first["path"]).name, first.get("changed")) == ("red_star.png", True)
        assert "changed" not in second
    table = run("search", tmp_path / "out", "a red star", "-k", 2).stdout.splitlines()
    assert table[1].split()[:3] == ["probability", "similarity", "note"]
    assert " changed " in table[2]


def test_rows_of_absurd_size_are_not_read(embedded: Path, tmp_path: Path) -> None:
    """A sparse file of gigabytes has some kilobytes in an archive."""
    copy = Path(shutil.copytree(embedded, tmp_path / "copy"))
    os.truncate(copy / "rows" / "000000.jsonl", 5_000_000_000)
    receipt = copy / "receipts" / "000000.json"
    document = json.loads(receipt.read_text())
    document["files"]["rows/000000.jsonl"]["size_bytes"] = 5_000_000_000
    receipt.write_text(json.dumps(document))
    assert_error(run("search", copy, "a star"), 1, "has more than 65,536,000 bytes")


def edit_count(folder: Path, shard: int, difference: int) -> None:
    """Change the number of vectors that a receipt states."""
    path = folder / "receipts" / f"{shard:06}.json"
    document = json.loads(path.read_text())
    document["counts"]["ok"] += difference
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("differences", [(1, 0), (-1, 0), (1, -1)])
def test_folder_whose_receipts_count_other_vectors_is_damaged(differences: tuple[int, int], tmp_path: Path) -> None:
    """Also if the numbers of two shards are wrong, but their sum is right."""
    vectors = unit_vectors(20)
    write_job(tmp_path / "job", vectors, shard_size=10)
    for shard, difference in enumerate(differences):
        edit_count(tmp_path / "job", shard, difference)
    message = rf"holds 10 (vectors|rows of images) in shard [01], expected {10 + differences[0]}"
    calls: list[Callable[[Collection], object]] = [
        lambda collection: collection.search(vectors[0], 5),
        lambda collection: collection.search(vectors[0], 30, fold_duplicates=True),
        find_duplicates,
    ]
    for call in calls:
        with pytest.raises(JobError, match=message):
            call(open_collection(tmp_path / "job"))
    with pytest.raises(JobError, match=r"holds 10 rows of images in shard 0, expected"):
        _ = open_collection(tmp_path / "job").rows
    with pytest.raises(JobError, match=r"holds shard 0, whose files differ from its receipt"):
        _ = open_collection(tmp_path / "job").vectors


def test_search_that_folds_duplicates_ends_without_the_right_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It asks for more results until there are no more, whatever the number of vectors is said to be."""
    vectors = unit_vectors(20)
    write_job(tmp_path / "job", vectors)
    collection = open_collection(tmp_path / "job")
    asked: list[int] = []
    nearest = collection._nearest

    def count_calls(query: Query, count: int, threads: int) -> Any:
        asked.append(count)
        assert len(asked) < 10
        return nearest(query, count, threads)

    monkeypatch.setattr(collection, "_nearest", count_calls)
    collection.num_vectors = 21
    assert len(collection.search(vectors[0], 25, fold_duplicates=True)) == 20
    assert len(asked) == 1


def test_images_without_their_vectors_are_embedded_again(tmp_path: Path) -> None:
    """The files of a shard match its receipt, but the vectors are fewer than the rows."""
    job = write_job(tmp_path / "job", unit_vectors(20))
    inputs, rows = job.read_plan(0), job.read_rows(0)
    job.commit(0, inputs, rows, unit_vectors(19))
    assert find_pending(job, Task(0)) == list(range(20))


def test_vectors_of_more_rows_than_a_shard_has_are_not_read(embedded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(embedded, tmp_path / "copy"))
    path, receipt = copy / "vectors" / "000000.npy", copy / "receipts" / "000000.json"
    content = path.read_bytes()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10_000_000, 128)})
        assert file.tell() == 128 < len(content)
        file.truncate(128 + 4 * 128 * 10_000_000)
    document = json.loads(receipt.read_text())
    document["files"]["vectors/000000.npy"]["size_bytes"] = path.stat().st_size
    receipt.write_text(json.dumps(document))
    assert_error(run("search", copy, "a star"), 1, "expected at most 1,000 rows of a shard")


def copy_with_suffix(embedded: Path, copy: Path, suffix: str) -> Path:
    """Copy a folder of vectors, and give its embedding space a suffix."""
    shutil.copytree(embedded, copy)
    facts = open_job(copy).facts
    changed = replace(facts, embedding_space=f"{facts.embedding_space}-{suffix}")
    (copy / "job.json").write_bytes(changed.to_bytes())
    for receipt in (copy / "receipts").iterdir():
        receipt.write_text(receipt.read_text().replace(facts.fingerprint, changed.fingerprint))
    return copy


@pytest.mark.parametrize("suffix", ["9" * 5_000 + "patches", "٣patches", "64patches\n"])
def test_vectors_of_an_odd_embedding_space_are_refused(suffix: str, embedded: Path, tmp_path: Path) -> None:
    copy = copy_with_suffix(embedded, tmp_path / "copy", suffix)
    assert_error(run("search", copy, "a star"), 1, "holds vectors of the embedding space int8-")


def test_collection_takes_the_number_of_patches_of_its_vectors(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def load(name: str, **options: object) -> object:
        asked.update(options)
        return siglip_onnx.load(name)

    copy = copy_with_suffix(embedded, tmp_path / "copy", "64patches")
    monkeypatch.setattr("siglip_onnx.bulk.search.load", load)
    with pytest.raises(JobError, match="64patches"):  # the demo model has no patches
        open_collection(copy).search("a star")
    assert asked["max_num_patches"] == 64
    assert open_job(embedded).facts.max_num_patches is None


def test_more_shards_than_open_files_are_read(tmp_path: Path) -> None:
    vectors, (query,) = unit_vectors(300), unit_vectors(1, seed=9)
    write_job(tmp_path / "job", vectors, shard_size=1)
    collection = open_collection(tmp_path / "job")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 50, limits[1]))
    try:
        assert len(collection.search(query, 300, threads=2)) == 300
        assert_array_equal(collection.vectors, vectors)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_vectors_of_another_space_are_refused(embedded: Path, small_bundle: Path, tmp_path: Path) -> None:
    result = run("search", embedded, "a star", "--model", small_bundle)
    assert_error(result, 1, "holds vectors of the embedding space int8-")
    assert "(demo, variant int8), but the model has the embedding space int8-" in result.stderr
    assert result.stdout == ""
    folder = tmp_path / "images"
    folder.mkdir()
    make_image(np.random.default_rng(1)).save(folder / "a.png")
    arguments = ("--model", small_bundle, "--variant", "fp32")
    assert run("embed", folder, "--out", tmp_path / "out", *arguments).exit_code == 0
    assert run("search", tmp_path / "out", "a", "--model", small_bundle).exit_code == 0  # takes the job's variant
    assert run("search", tmp_path / "out", "a", "--model", small_bundle, "--variant", "int8").exit_code == 1


def test_model_that_only_a_folder_names_is_not_downloaded(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    copy = Path(shutil.copytree(embedded, tmp_path / "copy"))
    facts = json.loads((copy / "job.json").read_text())
    (copy / "job.json").write_text(json.dumps(facts | {"model": "somebody/model"}))
    message = "was embedded with somebody/model, which is not in the cache. It is not downloaded, because only that"
    assert_error(run("search", copy, "a star"), 4, message)
    assert_error(run("search", copy, "a star", "--offline"), 4, "offline mode is on (--offline or HF_HUB_OFFLINE)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_error(run("search", copy, "a star"), 4, "offline mode is on (--offline or HF_HUB_OFFLINE)")


def test_search_reports_unfinished_shards(embedded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(embedded, tmp_path / "copy"))
    (copy / "receipts" / "000001.json").unlink()
    (copy / "vectors" / "000002.npy").write_bytes(b"short")
    result = run("search", copy, "a star", "-k", "50", "--json")
    assert "2 shards are not embedded yet" in result.stderr
    assert len(json.loads(result.stdout)["results"]) == 16 - 10


def test_folder_without_any_vector_names_the_errors(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not an image")
    assert run("embed", tmp_path, "--out", tmp_path / "out", "--model", "demo").exit_code == 3
    assert_error(run("search", tmp_path / "out", "a"), 1, "holds no vectors; run siglip-onnx embed again if it did not")
    assert "not a readable image" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_wrong_use_is_one_message(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        ([embedded], 2, "There is nothing to search for"),
        (
            [embedded, "a", "red", "hat"],
            2,
            "3 texts where one is expected. To search for one text, put it in quotes: "
            '"a red hat"; to add up several texts, give each with --text.',
        ),
        ([embedded, "a", "hat", "--image", STAR], 2, '"a hat"'),
        ([tmp_path / "empty", "a"], 1, "holds neither images nor vectors; give a folder of images, or one that"),
        ([tmp_path / "nowhere", "a", "--model", "/nowhere"], 1, "nowhere does not exist; give a folder of images, or"),
        ([STAR, "a"], 1, "red_star.png is a file; give a folder of images"),
        ([embedded, "--image", STAR, "--min-probability", "0.5"], 2, "--min-probability is for a search for one text"),
        ([embedded, "--image", "-", "--minus-image", "-"], 2, "- is given twice"),
        ([embedded, "a", "--index", tmp_path / "index"], 2, "holds vectors; --index is for a folder of images"),
        ([embedded, "--image", tmp_path / "none.png"], 1, "does not exist"),
    ):
        assert_error(run("search", *arguments), code, message)


def test_collection_takes_texts_images_and_vectors(embedded: Path) -> None:
    collection, model = siglip_onnx.open_collection(str(embedded)), siglip_onnx.load("demo")
    star = Path(STAR)
    text, image = model.encode_texts(["six eggs"])[0], model.encode_images(star)[0]
    by_text = collection.search("six eggs", 3)
    assert by_text == collection.search(text, 3) == collection.search(Query(text, one_text=True), 3)
    assert by_text[0].path == str(IMAGES_PATH / "six_eggs.png")
    (match,) = model.classify(by_text[0].path, ["six eggs"])
    assert by_text[0].probability == pytest.approx(match.probability, abs=1e-4)
    without = [hit._replace(logit=None, probability=None) for hit in by_text]
    assert collection.search(Query(text, one_text=False), 3) == without
    likeness = Query(image, one_text=False)
    for query in (star, star.read_bytes(), {"bytes": star.read_bytes()}, Image.open(star)):
        hits = collection.search(query, 2)
        assert hits == collection.search(likeness, 2), query
        assert (hits[0].path, hits[0].logit, hits[0].probability) == (STAR, None, None)
    longer = collection.search(5 * image, 2)
    assert [hit.path for hit in longer] == [hit.path for hit in hits]
    assert longer[0].similarity == pytest.approx(1, abs=1e-6)
    assert longer[0].probability is None
    assert collection.search(["six eggs", star, text], 3) == [by_text, collection.search(likeness, 3), by_text]
    assert collection.search(np.array([text, text]), 3) == [by_text, by_text]
    assert collection.search(text.astype(np.float64), np.int64(3)) == by_text
    assert collection.search([], 3) == []
    assert len(collection.search("six eggs")) == 10


def test_vectors_rows_and_paths_of_a_collection_belong_together(embedded: Path) -> None:
    collection = siglip_onnx.open_collection(embedded)
    assert collection.vectors.shape == (len(collection), 128) == (len(IMAGES_PATH_NAMES), 128)
    assert sorted(collection.paths) == IMAGES_PATH_NAMES
    assert [row.path for row in collection.rows] == collection.paths
    assert_array_equal(collection.vectors, collection.model.encode_images(collection.paths))
    assert repr(collection).endswith(f"{len(collection)} vectors of {collection.model.embedding_space})")


def test_collection_refuses_queries_and_models_that_do_not_fit(
    embedded: Path, small_bundle: Path, tmp_path: Path
) -> None:
    collection = siglip_onnx.open_collection(embedded)
    nan = np.full(128, np.nan, np.float32)
    for query in (np.zeros(128, np.float32), nan, np.ones(3, np.float32), np.ones((2, 3)), np.ones((2, 2, 128))):
        with pytest.raises(OptionError, match="A query vector has shape"):
            collection.search(query, 3)
    for k in (0, -1, 1.5, True, "3", None):
        with pytest.raises(OptionError, match="expected a whole number above 0"):
            collection.search("a", k)  # type: ignore[call-overload]
    for threads in (0, -1, 1.5, "2"):
        with pytest.raises(OptionError, match="expected a number from 1"):
            collection.search("a", threads=threads)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="A query cannot be a list"):
        collection.search([[]])
    with pytest.raises(JobError, match="they cannot be compared"):
        siglip_onnx.open_collection(embedded, small_bundle).search("a")
    with pytest.raises(JobError, match="they cannot be compared"):
        siglip_onnx.open_collection(embedded, siglip_onnx.load(small_bundle)).search("a")
    write_job(tmp_path / "job", unit_vectors(3))
    with pytest.raises(ModelNotFoundError, match=r"open_collection\(path, model=...\)"):
        siglip_onnx.open_collection(tmp_path / "job").search("a")
    with pytest.raises(FileNotFoundError):
        siglip_onnx.open_collection(tmp_path / "nowhere")


TEXT = "a red star"


def run_store(store: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_example(EXAMPLES / f"search_{store}.py", out, TEXT, *arguments, folder=out.parent)


@pytest.fixture(scope="module", params=["float32", "float16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample images in Parquet files of four rows, and one without any vector."""
    pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    folder = tmp_path_factory.mktemp("stores")
    (folder / "images").mkdir()
    for path in IMAGES_PATH.iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    (folder / "images" / "~broken.png").write_text("not an image")  # the last one
    options = ("--layout", "parquet", "--dtype", request.param, "--shard-size", "4", "--model", "demo")
    assert run("embed", folder / "images", "--out", folder / "out", *options).exit_code == 3
    return folder / "out"


@pytest.mark.parametrize("store", ["duckdb", "lancedb", "faiss"])
def test_store_returns_the_exact_top_ten(store: str, stored: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    query = siglip_onnx.load("demo").encode_texts([TEXT])[0]
    expected = open_collection(stored).search(query, 10)
    result = run_store(store, stored)
    assert result.returncode == 0, result.stderr
    scores, paths = zip(*(line.split("  ") for line in result.stdout.splitlines()), strict=True)
    assert list(paths) == [hit.path for hit in expected]
    assert [float(score) for score in scores] == pytest.approx([hit.similarity for hit in expected], abs=0.0015)
    assert len(paths) == 10


@pytest.mark.parametrize("stored", ["float32"], indirect=True)
@pytest.mark.parametrize("store", ["duckdb", "lancedb", "faiss"])
def test_store_refuses_another_model(store: str, stored: Path, small_bundle: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    result = run_store(store, stored, str(small_bundle))
    assert result.returncode == 1
    assert "was embedded with demo, variant int8; give that model" in result.stderr


@pytest.mark.parametrize("stored", ["float16"], indirect=True)
def test_lancedb_imports_a_folder_again_after_it_changed(stored: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is part of the extra [dev]")
    first = run_store("lancedb", stored)
    assert run_store("lancedb", stored).stdout == first.stdout != ""
    best = first.stdout.splitlines()[0].partition("  ")[2]
    Path(best).unlink()
    options = ("--layout", "parquet", "--shard-size", "4", "--model", "demo", "--prune")
    facts = open_collection(stored).job.facts
    assert run("embed", stored.parent / "images", "--out", stored, *options, "--dtype", facts.dtype).exit_code == 3
    remaining = run_store("lancedb", stored)
    assert best not in remaining.stdout
    assert os.fspath(stored.parent / "images") in remaining.stdout


def test_rows_and_vectors_are_of_one_state(tmp_path: Path) -> None:
    """Another process may embed into the folder while it is open."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("red_star", "six_eggs"):
        shutil.copy(IMAGES_PATH / f"{name}.png", images / f"{name}.png")
    assert run("embed", images, "--out", out).exit_code == 0
    for first, second in (("vectors", "paths"), ("paths", "vectors")):
        collection = siglip_onnx.open_collection(out)
        assert len(getattr(collection, first)) == 2
        one = Image.open(images / "six_eggs.png").rotate(90 if first == "vectors" else 180)
        one.save(images / "six_eggs.png")
        assert run("embed", images, "--out", out).exit_code == 0
        for call in (lambda: getattr(collection, second), lambda: collection.search("a red star")):  # noqa: B023
            with pytest.raises(JobError, match=r"was changed after it was opened\. Open it again"):
                call()
