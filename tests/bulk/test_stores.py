"""The scripts in ``examples/`` return the results of the package's own exact search."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run

import siglip_onnx
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.demo import IMAGES_PATH

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "a red star"


def search(script: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / script, out, TEXT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)


@pytest.fixture(scope="module", params=["float32", "float16"])
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def test_store_returns_the_exact_top_ten(store: str, embedded: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    query = siglip_onnx.load("demo").encode_texts([TEXT])[0]
    expected = [f"{hit.similarity:.3f}  {hit.path}" for hit in open_collection(embedded).search(query, 10)]
    result = search(f"search_{store}.py", embedded)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == expected
    assert len(expected) == 10


@pytest.mark.parametrize("embedded", ["float32"], indirect=True)
@pytest.mark.parametrize("store", ["duckdb", "lancedb", "faiss"])
def test_store_refuses_another_model(store: str, embedded: Path, small_bundle: Path) -> None:
    pytest.importorskip(store, reason=f"{store} is not installed; it is part of the extra [dev]")
    result = search(f"search_{store}.py", embedded, str(small_bundle))
    assert result.returncode == 1
    assert "was embedded with demo, variant int8; give that model" in result.stderr


@pytest.mark.parametrize("embedded", ["float16"], indirect=True)
def test_lancedb_imports_a_folder_again_after_it_changed(embedded: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed; it is part of the extra [dev]")
    first = search("search_lancedb.py", embedded)
    assert search("search_lancedb.py", embedded).stdout == first.stdout != ""
    best = first.stdout.splitlines()[0].partition("  ")[2]
    Path(best).unlink()
    options = ("--layout", "parquet", "--shard-size", "4", "--model", "demo", "--prune")
    facts = open_collection(embedded).job.facts
    assert run("embed", embedded.parent / "images", "--out", embedded, *options, "--dtype", facts.dtype).exit_code == 3
    remaining = search("search_lancedb.py", embedded)
    assert best not in remaining.stdout
    assert os.fspath(embedded.parent / "images") in remaining.stdout
