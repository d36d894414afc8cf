"""Searching embedded folders: exact with every layout and example, and only with the embedding space of the vectors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.commands import assert_error, run
from support.images import make_image

import siglip_onnx
from siglip_onnx.bulk.job import Job, begin_job
from siglip_onnx.bulk.records import Input, JobFacts, Row
from siglip_onnx.bulk.search import Term, encode_query, make_scorer, open_collection
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.head import compute_logits, l2_normalize, sigmoid

DIM = 48


def write_job(path: Path, vectors: Any, *, dtype: str = "float32", layout: str = "npy", shard_size: int = 100) -> Job:
    """Write a job of these vectors; the image of vector 7 is ``/p/7.png``."""
    facts = JobFacts("random", "int8", "int8-random", vectors.shape[1], 4.7, -12.0, {}, layout, dtype, shard_size)
    path.mkdir()
    job = begin_job(path, facts, overwrite=False)
    for shard, start in enumerate(range(0, len(vectors), shard_size)):
        stored = vectors[start : start + shard_size]
        inputs = [Input(f"/p/{start + row}.png", 1, 1) for row in range(len(stored))]
        rows = [Row(*item, status="ok", row=row) for row, item in enumerate(inputs)]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, rows, stored)
    return job


def unit_vectors(count: int, dim: int = DIM, seed: int = 0) -> Any:
    return l2_normalize(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


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
    assert_allclose(query, expected[0], atol=1e-6)
    unknown = {"logit": None, "probability": None}
    assert hits == [hit._asdict() | unknown for hit in open_collection(embedded).search(query, 10)]
    assert other["path"] != star


STAR = str(IMAGES_PATH / "red_star.png")


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
    assert header.split() == ["path", "similarity", *(["logit", "probability"] if one_text else [])]
    assert [len(row.split()) for row in rows] == [4 if one_text else 2] * 3
    text = page.read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in text
    assert text.count("logit") == (3 if one_text else 0)
    hits = json.loads(run("search", embedded, *query, "-k", "3", "--json").stdout)["results"]
    shown = [f"{hit['probability' if one_text else 'similarity']:.3g}" for hit in hits]
    assert re.findall(r"<b>(.*?)</b>", text) == shown
    for hit in hits:
        assert list(hit) == ["path", "similarity", "logit", "probability"]
        assert (hit["logit"] is None, hit["probability"] is None) == (not one_text, not one_text)


def test_query_that_cancels_out_is_refused(embedded: Path) -> None:
    assert_error(run("search", embedded, "a star", "--minus", "a star"), 1, "cancel out")
    with pytest.raises(SiglipOnnxError, match="The query is zero"):
        encode_query(siglip_onnx.load("demo"), [])


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


def test_search_reports_unfinished_shards(embedded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(embedded, tmp_path / "copy"))
    (copy / "receipts" / "000001.json").unlink()
    (copy / "vectors" / "000002.npy").write_bytes(b"short")
    result = run("search", copy, "a star", "-k", "50", "--json")
    assert "2 shards are not embedded yet" in result.stderr
    assert len(json.loads(result.stdout)["results"]) == 16 - 10


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
        ([tmp_path / "empty", "a"], 1, "holds no vectors; create them with: siglip-onnx embed"),
        ([tmp_path / "nowhere", "a"], 1, "holds no vectors"),
        ([embedded, "--image", tmp_path / "none.png"], 1, "does not exist"),
    ):
        assert_error(run("search", *arguments), code, message)


EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "a red star"


def run_example(script: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / script, out, TEXT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)


@pytest.fixture(scope="module", params=["float32", "float16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample images in Parquet files of four rows, among them one without a vector."""
    pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    folder = tmp_path_factory.mktemp("stores")
    (folder / "images").mkdir()
    for path in IMAGES_PATH.iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    (folder / "images" / "broken.png").write_text("not an image")
    options = ("--layout", "parquet", "--dtype", request.param, "--shard-size", "4", "--model", "demo")
    assert run("embed", folder / "images", "--out", folder / "out", *options).exit_code == 3
    return folder / "out"


@pytest.mark.parametrize("store", ["duckdb", "lancedb", "faiss"])
def test_store_returns_the_exact_top_ten(store: str, stored: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    query = siglip_onnx.load("demo").encode_texts([TEXT])[0]
    expected = open_collection(stored).search(query, 10)
    result = run_example(f"search_{store}.py", stored)
    assert result.returncode == 0, result.stderr
    scores, paths = zip(*(line.split("  ") for line in result.stdout.splitlines()), strict=True)
    assert list(paths) == [hit.path for hit in expected]
    assert [float(score) for score in scores] == pytest.approx([hit.similarity for hit in expected], abs=0.0015)
    assert len(paths) == 10


@pytest.mark.parametrize("stored", ["float32"], indirect=True)
@pytest.mark.parametrize("store", ["duckdb", "lancedb", "faiss"])
def test_store_refuses_another_model(store: str, stored: Path, small_bundle: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    result = run_example(f"search_{store}.py", stored, str(small_bundle))
    assert result.returncode == 1
    assert "was embedded with demo, variant int8; give that model" in result.stderr


@pytest.mark.parametrize("stored", ["float16"], indirect=True)
def test_lancedb_imports_a_folder_again_after_it_changed(stored: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is part of the extra [dev]")
    first = run_example("search_lancedb.py", stored)
    assert run_example("search_lancedb.py", stored).stdout == first.stdout != ""
    best = first.stdout.splitlines()[0].partition("  ")[2]
    Path(best).unlink()
    options = ("--layout", "parquet", "--shard-size", "4", "--model", "demo", "--prune")
    facts = open_collection(stored).job.facts
    assert run("embed", stored.parent / "images", "--out", stored, *options, "--dtype", facts.dtype).exit_code == 3
    remaining = run_example("search_lancedb.py", stored)
    assert best not in remaining.stdout
    assert os.fspath(stored.parent / "images") in remaining.stdout
