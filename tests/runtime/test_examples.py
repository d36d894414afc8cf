"""Run the examples that use a model with joblib, process pools, pandas, datasets and FastAPI."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.examples import EXAMPLES, run_example

from siglip_onnx.demo import IMAGES_PATH

IMAGES = sorted(map(str, IMAGES_PATH.iterdir()))


def run(*arguments: str, folder: Path | None = None, **environment: str) -> str:
    """Run Python where the examples can be imported, in a fresh home; return what it prints."""
    done = run_example(*arguments, folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str) -> str:
    return str(EXAMPLES / f"{name}.py")


@pytest.mark.parametrize(("name", "library"), [("parallel_joblib", "joblib"), ("parallel_processes", "")])
def test_processes_embed_all_images(name: str, library: str) -> None:
    if library and find_spec(library) is None:
        pytest.skip(f"{library} is not installed; it is part of the extra [dev]")
    assert run(example(name), *IMAGES) == f"({len(IMAGES)}, 128)\n"


def test_a_file_in_the_home_is_noticed() -> None:
    """onnxruntime writes a device id there when a program imports it and has not switched its telemetry off."""
    with pytest.raises(AssertionError, match=r"left files in the user's home: \['\.cache/"):
        run_example("-c", "import onnxruntime")


def test_pandas_table_gets_labels() -> None:
    if find_spec("pandas") is None:
        pytest.skip("pandas is not installed; it is part of the extra [dev]")
    rows = {Path(row["path"]).stem: row for row in csv.DictReader(run(example("pandas_labels"), *IMAGES).splitlines())}
    assert len(rows) == len(IMAGES)
    assert (rows["red_star"]["label"], rows["six_eggs"]["label"]) == ("a red star", "six eggs")
    assert float(rows["red_star"]["probability"]) > 0.5


def test_dataset_map_is_cached(tmp_path: Path) -> None:
    """The pickled model is the same in each process, so that the function has the same hash."""
    if find_spec("datasets") is None:
        pytest.skip("datasets is not installed; it is part of the extra [dev]")
    first, second = (
        run(example("datasets_map"), str(IMAGES_PATH), HF_DATASETS_CACHE=str(tmp_path), folder=tmp_path)
        for _ in range(2)
    )
    assert first == f"embedding {len(IMAGES)} images\n{len(IMAGES)} 128\n"
    assert second == f"{len(IMAGES)} 128\n"


def test_fastapi_upload_is_classified() -> None:
    if not all(map(find_spec, ("fastapi", "python_multipart", "httpx2"))):
        pytest.skip("the extras [web] and [dev] are not installed")
    code = f"""
from fastapi.testclient import TestClient
from fastapi_uploads import app

client = TestClient(app)
with open({str(IMAGES_PATH / "red_star.png")!r}, "rb") as file:
    answer = client.post("/classify", files={{"image": file}})
print(answer.status_code, max(answer.json(), key=answer.json().get))
answer = client.post("/classify", files={{"image": ("x.png", b"text")}})
print(answer.status_code, "is not a readable image" in answer.json()["detail"])
"""
    assert run("-c", code).splitlines() == ["200 a red star", "422 True"]
