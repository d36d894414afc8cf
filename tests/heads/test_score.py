"""Score heads: scores of images and stored vectors are the product; chains fold; what does not suit is refused."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import assert_error, run

import siglip_onnx
from siglip_onnx.bulk.job import begin_job
from siglip_onnx.bulk.records import Input, JobFacts, Row
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import DataError
from siglip_onnx.head import l2_normalize
from siglip_onnx.heads import score
from siglip_onnx.heads.score import ScoreHead, fold_linear, read_head, write_head
from siglip_onnx.heads.stored import search_by_head

STAR, EGGS = IMAGES_PATH / "red_star.png", IMAGES_PATH / "six_eggs.png"


def random_head(labels: list[str], dim: int = 128, activation: str = "none", space: str = "") -> ScoreHead:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(len(labels), dim)).astype(np.float32)
    return ScoreHead(labels, weights, rng.normal(size=len(labels)).astype(np.float32), activation, True, space)


def write_vectors(path: Path, vectors: np.ndarray, dtype: str) -> Path:
    facts = JobFacts("random", "int8", "int8-random", vectors.shape[1], 4.7, -12.0, {}, "npy", dtype, 1000)
    path.mkdir()
    job = begin_job(path, facts, overwrite=False)
    for shard, start in enumerate(range(0, len(vectors), 1000)):
        stored = vectors[start : start + 1000]
        inputs = [Input(f"/p/{start + row}.png", 1, 1) for row in range(len(stored))]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, [Row(*item, status="ok", row=row) for row, item in enumerate(inputs)], stored)
    return path


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stored_vectors_are_sorted_by_their_scores(activation: str, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = l2_normalize(rng.normal(size=(2345, 64)).astype(np.float32)).astype(dtype)
    folder = write_vectors(tmp_path / "out", vectors, dtype)
    head = random_head(["good", "sharp"], 64, activation)
    expected = vectors.astype(np.float64) @ head.weights[1].astype(np.float64) + head.biases[1]
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    order = np.argsort(-expected)[:20]
    scored = search_by_head(open_collection(folder), head, "sharp", 20)
    assert [item.path for item in scored] == [f"/p/{row}.png" for row in order]
    assert [item.score for item in scored] == pytest.approx(expected[order].tolist(), rel=1e-5)
    write_head(tmp_path / "head.npz", head)
    command = run("search", folder, "--sort", tmp_path / "head.npz", "--sort-label", "sharp", "--top", 3, "--json")
    assert [row["path"] for row in json.loads(command.stdout)["results"]] == [f"/p/{row}.png" for row in order[:3]]


def test_missing_images_are_left_out_of_an_index_and_marked_in_a_folder_of_vectors(tmp_path: Path) -> None:
    shutil.copytree(IMAGES_PATH, tmp_path / "photos")
    assert run("embed", tmp_path / "photos", "--out", tmp_path / "vectors").exit_code == 0
    write_head(tmp_path / "head.npz", random_head(["good"]))

    def sort(folder: str, *options: object) -> list[dict[str, Any]]:
        result = run("search", tmp_path / folder, "--sort", tmp_path / "head.npz", "-k", 3, "--json", *options)
        rows: list[dict[str, Any]] = json.loads(result.stdout)["results"]
        return rows

    index = ("--index", tmp_path / "index")
    before = sort("photos", *index)
    Path(before[0]["path"]).unlink()
    assert sort("photos", *index)[:2] == before[1:]
    assert len(sort("photos", *index)) == 3
    assert [row.get("missing") for row in sort("vectors")] == [True, None, None]
    table = run("search", tmp_path / "vectors", "--sort", tmp_path / "head.npz").stdout.splitlines()
    assert table[0].split() == ["path", "score", "note"]
    assert table[1].split()[-1] == "missing"
    assert not any(line.endswith(" missing") for line in table[2:])
    replaced = Path(sort("vectors")[1]["path"])
    replaced.write_bytes(STAR.read_bytes() + b"x")
    assert [(row.get("missing"), row.get("changed")) for row in sort("vectors")] == [
        (True, None),
        (None, True),
        (None, None),
    ]
    table = run("search", tmp_path / "vectors", "--sort", tmp_path / "head.npz").stdout.splitlines()
    assert [line.split()[-1] for line in table[1:3]] == ["missing", "changed"]


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_scores_of_images(activation: str, tmp_path: Path) -> None:
    model = siglip_onnx.load("demo")
    head = random_head(["good", "sharp"], activation=activation, space=model.embedding_space)
    write_head(tmp_path / "head.npz", head)
    assert read_head(tmp_path / "head.npz").labels == head.labels
    logits = model.encode_images([STAR, EGGS]).astype(np.float64) @ head.weights.T + head.biases
    expected = {
        "none": logits,
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "softmax": np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
    }[activation]
    result = run("classify", STAR, EGGS, "missing.png", "--head", tmp_path / "head.npz", "--json")
    assert result.exit_code == 3
    rows = json.loads(result.stdout)["results"]
    assert [list(row["scores"].values()) for row in rows[:2]] == [
        pytest.approx(row, rel=1e-4) for row in expected.tolist()
    ]
    assert rows[2]["status"] == "io_error"
    parts = run("classify", STAR, EGGS, "missing.png", "--head", tmp_path / "head.npz", "--jsonl")
    assert [json.loads(line) for line in parts.stdout.splitlines()] == json.loads(result.stdout)["results"]
    table = run("classify", STAR, "--head", tmp_path / "head.npz").stdout.splitlines()
    assert table[0].split() == ["image", "label", "score"]
    lines = run("classify", STAR, "--head", tmp_path / "head.npz", "--csv").stdout.splitlines()
    assert lines[0] == "image,label,score,error"
    assert len(table) == len(lines) == 3
    lines = run("classify", "missing.png", STAR, "--head", tmp_path / "head.npz", "--csv").stdout.splitlines()
    assert lines[1].startswith("missing.png,,,missing.png does not exist")
    assert len(lines) == 4


def test_five_linear_layers_become_one(tmp_path: Path) -> None:
    """The layers of the aesthetic predictor v2.5, with the demo model's width in place of 1152."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    torch.manual_seed(0)
    sizes = [128, 1024, 128, 64, 16, 1]
    layers = [torch.nn.Linear(*pair) for pair in pairwise(sizes)]
    modules = [module for layer in layers for module in (layer, torch.nn.Dropout(0.5))][:-1]
    net = torch.nn.Module()
    net.scoring_head = torch.nn.Sequential(*modules)
    net.eval()
    path = tmp_path / "aesthetic_predictor_v2_5.pth"
    torch.save(net.state_dict(), path)
    head = read_head(path)
    assert head.weights.shape == (1, 128)
    assert head.labels == ["aesthetic_predictor_v2_5"]
    vectors = siglip_onnx.load("demo").encode_images([STAR, EGGS])
    with torch.no_grad():
        expected = net.scoring_head(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(head.scores(vectors), expected, atol=1e-5)
    torch.save(torch.nn.Linear(128, 3).state_dict(), tmp_path / "probe.pth")
    assert read_head(tmp_path / "probe.pth").weights.shape == (3, 128)
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).state_dict(), tmp_path / "unknown.pth")
    with pytest.raises(DataError, match="expected one linear layer"):
        read_head(tmp_path / "unknown.pth")


@pytest.mark.parametrize(
    ("weight", "bias"), [((1, 5), (1,)), ((1, 3), (2,)), ((1, 3), ()), ((3,), (1,)), ((1, 1, 3), (1,)), ((1, 3), None)]
)
def test_layers_that_do_not_follow_each_other(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    tensors = {"0.weight": np.ones((3, 4)), "0.bias": np.ones(3), "2.weight": np.ones(weight)}
    tensors |= {} if bias is None else {"2.bias": np.ones(bias)}
    with pytest.raises(DataError, match="do not fit together"):
        fold_linear(tensors, ["0.", "2."])


def test_pytorch_files_that_would_take_much_memory(tmp_path: Path) -> None:
    """They are refused before anything is allocated: a number for each weight, types, and the product of two layers."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    path, wide = tmp_path / "head.pth", torch.ones(1, 100_000)
    chain = {"scoring_head.0.weight": wide, "scoring_head.0.bias": torch.ones(1)}
    chain |= {"scoring_head.2.weight": wide.T, "scoring_head.2.bias": wide[0]}
    for tensors, message in (
        ({"weight": torch.ones(1).expand(50_000_000, 128), "bias": torch.ones(1)}, "whose storage holds only 1"),
        ({"weight": torch.ones(2, 128, dtype=torch.int64), "bias": torch.ones(2)}, "weight of type I64"),
        ({"weight": torch.ones(1, 1, 128), "bias": torch.ones(1)}, "with 3 dimensions; expected floats in one or two"),
        (chain, "become a matrix of more than 200,000,000 bytes"),
    ):
        torch.save(tensors, path)
        assert_error(run("classify", STAR, "--head", path, "--csv"), 1, message)


def test_large_pytorch_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(score, "_MAX_FILE_BYTES", 1_000)
    torch.save({"weight": torch.ones(2, 128, dtype=torch.float16), "bias": torch.ones(2)}, tmp_path / "head.pth")
    with pytest.raises(DataError, match="has weights of 1,032 bytes in f32; expected at most 1,000"):
        read_head(tmp_path / "head.pth")


def broken(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        facts = {"format": "siglip_onnx.head/1", "labels": ["a"], "activation": "none", "normalize": True} | changes
        np.savez(path, weights=np.ones((1, 4)), biases=np.ones(1), head=np.array(json.dumps(facts)))

    return write


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("head.npy", "w") as file:
        file.write(bytes(1_000_001))


def packed(**changed: np.ndarray) -> Callable[[Path], None]:
    """Write a compressed head with other arrays."""

    def write(path: Path) -> None:
        broken()(path)
        with np.load(path) as arrays:
            np.savez_compressed(path, **(dict(arrays) | changed))

    return write


def claim(path: Path) -> None:
    """Write weights of a petabyte, of which nothing is there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 47, 1)})
    broken()(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (contents | {"weights.npy": header.getvalue()}).items():
            archive.writestr(name, content)


def huge_weights(path: Path) -> None:
    broken()(path)
    with np.load(path) as arrays:
        values = dict(arrays)
    np.savez(path, **(values | {"weights": np.full((1, 4), 1e38, np.float32)}))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bomb, "head has more than 800,000 bytes"),
        (packed(weights=np.zeros((1, 990_000), np.int8)), "weights has 990,000 numbers, too many for a file of this"),
        (packed(weights=np.zeros((1, 2_000_000), np.int8)), "weights has more than 1,000,000 bytes, too many for a"),
        (packed(head=np.array(f"[{'{},' * 80_000}")), "head has more than 800,000 bytes, too many for a file"),
        (claim, "cannot be read as a head: it is not a .npy file of numbers"),
        (huge_weights, r"of at most 1e\+30"),
        (lambda path: path.write_bytes(b"x"), "cannot be read as a head"),
        (Path.mkdir, "cannot be read as a head"),
        (lambda path: np.savez(path, x=np.array([object()])), "cannot be read as a head"),
        (broken(format="other"), "format 'other'"),
        (broken(labels=["a", "b"]), r"2 labels, weights of shape \(1, 4\)"),
        (broken(activation="relu"), "activation 'relu'; expected none, sigmoid or softmax"),
        (broken(normalize=False), "takes raw outputs of the vision tower"),
    ],
)
def test_files_that_are_not_heads(
    write: Callable[[Path], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(score, "_MAX_FILE_BYTES", 10_000_000)
    monkeypatch.setattr(score, "_MAX_FACTS_BYTES", 800_000)
    write(tmp_path / "head.npz")
    with pytest.raises(DataError, match=message):
        read_head(tmp_path / "head.npz")


def test_labels_of_a_head_are_distinct() -> None:
    with pytest.raises(DataError, match="has a label twice"):
        random_head(["a", "b", "a"])


def test_heads_that_do_not_suit_the_vectors(tmp_path: Path) -> None:
    vectors = l2_normalize(np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32))
    collection = open_collection(write_vectors(tmp_path / "out", vectors, "float32"))
    with pytest.raises(DataError, match="takes vectors of width 128, but these have 64"):
        search_by_head(collection, random_head(["a"]), None, 3)
    with pytest.raises(DataError, match=r"embedding space fp32-other, but the vectors have int8-random"):
        search_by_head(collection, random_head(["a"], 64, space="fp32-other"), None, 3)
    with pytest.raises(DataError, match="has several labels; choose one of a, b"):
        search_by_head(collection, random_head(["a", "b"], 64), None, 3)
    with pytest.raises(DataError, match="has no label 'c'; choose one of a, b"):
        search_by_head(collection, random_head(["a", "b"], 64), "c", 3)
    zero = ScoreHead(["a"], np.zeros((1, 64), np.float32), np.zeros(1, np.float32))
    with pytest.raises(DataError, match="The weights of 'a' are zero"):
        search_by_head(collection, zero, None, 3)
    with pytest.raises(DataError, match="ends in a softmax"):
        search_by_head(collection, random_head(["a", "b"], 64, "softmax"), "a", 3)
    write_head(tmp_path / "head.npz", random_head(["a"], 64))
    both = run("classify", STAR, "--text", "x", "--head", tmp_path / "head.npz")
    assert_error(both, 2, "A head has its own labels")
    with_text = run("search", tmp_path / "out", "a star", "--sort", tmp_path / "head.npz")
    assert_error(with_text, 2, "--sort shows the highest scores of all images")
    assert_error(run("classify", STAR, "--head", tmp_path / "head.npz"), 1, "takes vectors of width 64")
