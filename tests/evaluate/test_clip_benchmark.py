"""The published code of CLIP_benchmark gives the scores of ``siglip-onnx evaluate`` on the same vectors."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.commands import run
from support.drawn import NAMES_EN, NAMES_JA, draw_folders, write_csv

import siglip_onnx

torch = pytest.importorskip("torch")
classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")


class Vectors:
    """A model of CLIP's interface that looks embeddings up; images and texts are their numbers."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self._images, self._texts = torch.from_numpy(images), torch.from_numpy(texts)

    def encode_image(self, images: Any) -> Any:
        return self._images[images]

    def encode_text(self, texts: Any) -> Any:
        return self._texts[texts]


class Loader(list[Any]):
    """Batches, with the names of the classes where a data loader has them."""

    dataset = SimpleNamespace(classes=NAMES_EN)


def classify(images: np.ndarray, texts: np.ndarray, right: Sequence[int]) -> dict[str, float]:
    """Return the scores of CLIP_benchmark; ``texts`` are embeddings of the class names."""
    batches = Loader([(torch.arange(len(images)), torch.tensor(right))])
    numbers = [str(number) for number in range(len(texts))]
    scores: dict[str, float] = classification.evaluate(
        Vectors(images, texts), batches, lambda texts: torch.tensor([int(text) for text in texts]), numbers, ["{c}"],
        "cpu", amp=False,
    )  # fmt: skip
    return scores


def search(images: np.ndarray, texts: np.ndarray, owners: Sequence[int]) -> dict[str, float]:
    """Return the recalls of CLIP_benchmark; ``owners`` are the numbers of the texts' images."""
    captions = [[str(text) for text, owner in enumerate(owners) if owner == row] for row in range(len(images))]
    numbers = [int(text) for own in captions for text in own]
    scores: dict[str, float] = retrieval.evaluate(
        Vectors(images, texts), [(torch.arange(len(images)), captions)], lambda _: torch.tensor(numbers), "cpu",
        amp=False, recall_k_list=[1, 5, 10],
    )  # fmt: skip
    return scores


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw_folders(tmp_path_factory.mktemp("drawn") / "set", 6)


def evaluated(*arguments: object) -> dict[str, float]:
    result = run("evaluate", "demo", *arguments, "--variant", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)["variants"]["int8"]["scores"]
    return {key: score["value"] for key, score in scores.items()}


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="CLIP_benchmark 1.6.2 needs numpy below 2.4")
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
@pytest.mark.parametrize("words", [NAMES_EN, NAMES_JA], ids=["en", "ja"])
def test_classification(drawn: list[Path], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(
        "".join(f"{name}\t{word}\n" for name, word in zip(NAMES_EN, words, strict=True)), encoding="utf-8"
    )
    model = siglip_onnx.load("demo", variant="int8")
    right = [NAMES_EN.index(path.parent.name) for path in drawn]
    theirs = classify(model.encode_images(drawn), model.encode_texts(words), right)
    ours = evaluated(drawn[0].parents[1], "--labels", tmp_path / "labels.txt")
    assert 0.4 < theirs["acc1"] < 1
    for key, name in (("acc1", "top1"), ("acc5", "top5"), ("mean_per_class_recall", "mean_per_class")):
        assert ours[name] == pytest.approx(theirs[key], abs=1e-9)


def test_retrieval_with_several_captions_per_image(drawn: list[Path], tmp_path: Path) -> None:
    rows = [
        (path, f"{prefix}{path.parent.name} {number}")
        for number, path in enumerate(drawn)
        for prefix in ("", "a photo of ")[: 1 + number % 2]
    ]
    model = siglip_onnx.load("demo", variant="int8")
    theirs = search(
        model.encode_images(drawn),
        model.encode_texts([text for _, text in rows]),
        [drawn.index(path) for path, _ in rows],
    )
    ours = evaluated(write_csv(tmp_path / "captions.csv", ("path", "caption"), rows))
    assert 0 < theirs["image_retrieval_recall@1"] < theirs["image_retrieval_recall@10"] < 1
    for k in (1, 5, 10):  # their recalls are means of f32
        assert ours[f"text_to_image@{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours[f"image_to_text@{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
