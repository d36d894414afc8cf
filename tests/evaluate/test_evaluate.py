"""Evaluation of drawn images: numbers equal an independent computation, one pass, resumed, bad images named."""

import csv
import errno
import io
import json
import os
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_error, run
from support.drawn import NAMES_EN, NAMES_JA, draw_folders, write_csv, write_json_lines

import siglip_onnx
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import DataError
from siglip_onnx.evaluate import run as evaluation
from siglip_onnx.evaluate import store
from siglip_onnx.evaluate.datasets import LabeledImages, open_data
from siglip_onnx.evaluate.protocols import PROTOCOLS
from siglip_onnx.evaluate.run import evaluate
from siglip_onnx.image.decode import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.options import RuntimeOptions

VARIANTS = ("fp32", "int8")
Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw_folders(folder, 12)
    return folder


@pytest.fixture(scope="module")
def paths(drawn: Path) -> list[Path]:
    return sorted(drawn.rglob("*.png"))


@pytest.fixture(scope="module")
def embeddings(paths: list[Path]) -> Arrays:
    return {name: siglip_onnx.load("demo", variant=name).encode_images(paths) for name in VARIANTS}


def evaluated(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = run("evaluate", "demo", *arguments, "--json")
    assert result.exit_code == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def close(value: float) -> Any:
    return pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_classification_equals_an_independent_computation(
    language: str, drawn: Path, paths: list[Path], embeddings: Arrays, tmp_path: Path
) -> None:
    names = sorted(NAMES_EN)
    words = names if language == "en" else [NAMES_JA[NAMES_EN.index(name)] for name in names]
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"{name}\t{word}\n" for name, word in zip(names, words, strict=True)), encoding="utf-8")
    document = evaluated(drawn, "--labels", labels)
    right = [names.index(path.parent.name) for path in paths]
    best = {}
    for variant in VARIANTS:
        model = siglip_onnx.load("demo", variant=variant)
        logits = model.logits(embeddings[variant], model.encode_texts(words)).astype(np.float64)
        scores = document["variants"][variant]["scores"]
        order = [sorted(range(8), key=lambda column, row=row: -row[column]) for row in logits]
        best[variant] = [row[0] for row in order]
        assert scores["top1"]["value"] == close(np.mean([row[0] == own for row, own in zip(order, right, strict=True)]))
        assert scores["top5"]["value"] == close(
            np.mean([own in row[:5] for row, own in zip(order, right, strict=True)])
        )
        recalls = [
            np.mean([best[variant][row] == number for row in range(len(paths)) if right[row] == number])
            for number in range(8)
        ]
        assert scores["mean_per_class"]["value"] == close(np.mean(recalls))
        assert [row[variant]["recall"] for row in document["per_class"]] == pytest.approx(recalls, abs=1e-6)
        probabilities = 1 / (1 + np.exp(-logits))
        truth = np.arange(8) == np.array(right)[:, np.newaxis]
        assert scores["calibration_error"]["value"] == pytest.approx(binned_error(probabilities, truth), abs=1e-6)
        confidence = np.array([max(row) for row in probabilities])
        hits = np.array(best[variant]) == np.array(right)
        assert scores["calibration_error_top1"]["value"] == pytest.approx(binned_error(confidence, hits), abs=1e-6)
    int8 = document["variants"]["int8"]
    hits = {name: np.array(best[name]) == np.array(right) for name in VARIANTS}
    assert 0.4 < hits["fp32"].mean() < 1  # the noise makes some images hard, so that the numbers are of interest
    assert int8["agreement"] == close(np.mean(np.array(best["int8"]) == np.array(best["fp32"])))
    difference = int8["difference"]["top1"]
    assert difference["value"] == close(hits["int8"].mean() - hits["fp32"].mean())
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert document["task"] == "classification"
    assert (document["num_images"], document["num_classes"], document["reference"]) == (96, 8, "fp32")


def binned_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    total, values, events = 0.0, probabilities.ravel(), truth.ravel()
    for number in range(15):
        inside = [index for index, value in enumerate(values) if min(int(value * 15), 14) == number]
        if inside:
            total += abs(sum(values[index] for index in inside) - sum(events[index] for index in inside))
    return total / len(values)


def test_templates_are_averaged(drawn: Path, paths: list[Path], embeddings: Arrays, tmp_path: Path) -> None:
    templates = ["a picture of {}", "This is a photo of {}."]
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    document = evaluated(drawn, "--templates-file", tmp_path / "templates.txt", "--variant", "fp32")
    assert document["templates"] == templates
    assert document["reference"] == "fp32"
    model, names = siglip_onnx.load("demo", variant="fp32"), sorted(NAMES_EN)
    mean = sum(model.encode_texts([template.format(name) for name in names]) for template in templates)
    best = (embeddings["fp32"] @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T).argmax(axis=1)
    right = [names.index(path.parent.name) for path in paths]
    assert document["variants"]["fp32"]["scores"]["top1"]["value"] == close(np.mean(best == right))
    paper = evaluated(drawn, "--protocol", "paper", "--template", "A photo of {}.", "--variant", "fp32")
    assert paper["templates"] == ["a photo of {}", "{}"]
    assert paper["protocol"]["crop"] is True


def test_retrieval_equals_an_independent_computation(paths: list[Path], embeddings: Arrays, tmp_path: Path) -> None:
    chosen = list(range(0, 96, 3))
    rows = []
    for row in chosen:
        number = NAMES_EN.index(paths[row].parent.name)
        rows.append({"path": str(paths[row]), "language": "en", "caption": f"image {row}: {NAMES_EN[number]}"})
        rows.append({"path": str(paths[row]), "language": "en", "caption": f"a photo of {NAMES_EN[number]} {row}"})
        if row % 2:
            rows.append({"path": str(paths[row]), "language": "ja", "caption": f"{NAMES_JA[number]} {row}"})
    document = evaluated(write_json_lines(tmp_path / "captions.jsonl", rows))
    assert document["task"] == "retrieval"
    place = {str(paths[row]): number for number, row in enumerate(chosen)}
    means: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for variant in VARIANTS:
        model = siglip_onnx.load("demo", variant=variant)
        for language in ("en", "ja"):
            captions = [(row["caption"], place[row["path"]]) for row in rows if row["language"] == language]
            texts = model.encode_texts([text for text, _ in captions])
            similar = embeddings[variant][chosen] @ texts.T
            for k in (1, 5, 10):
                found = [image in np.argsort(-similar[:, text])[:k] for text, (_, image) in enumerate(captions)]
                own = {image for _, image in captions}
                backward = [
                    any(captions[text][1] == image for text in np.argsort(-similar[image])[:k]) for image in sorted(own)
                ]
                for way, hits in (("text_to_image", found), ("image_to_text", backward)):
                    scores = document["variants"][variant]["scores"]
                    assert scores[f"{language}:{way}@{k}"]["value"] == close(np.mean(hits))
                    means[variant].setdefault(f"{way}@{k}", []).append(float(np.mean(hits)))
        for key, values in means[variant].items():
            assert document["variants"][variant]["scores"][key]["value"] == close(np.mean(values))
    assert 0.1 < means["fp32"]["text_to_image@5"][0] < 1
    for score in document["variants"]["fp32"]["scores"].values():
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    only = evaluated(tmp_path / "captions.jsonl", "--language", "ja", "--variant", "fp32")["variants"]["fp32"]["scores"]
    assert only["ja:text_to_image@1"]["value"] == close(means["fp32"]["text_to_image@1"][1])


def test_first_caption_of_each_language(paths: list[Path], tmp_path: Path) -> None:
    rows = [
        (str(path), language, f"{text} {number}")
        for number, path in enumerate(paths[::12])
        for language, text in (("en", path.parent.name), ("en", "something else"), ("ja", "丸"))
    ]
    path = write_csv(tmp_path / "x.csv", ("path", "language", "caption"), rows)
    first = [row for row in rows if "something else" not in row[2]]
    only_first = write_csv(tmp_path / "y.csv", ("path", "language", "caption"), first)
    one, all_ = (
        evaluated(path, "--protocol", "open_clip", "--variant", "fp32", *chosen)["variants"]["fp32"]["scores"]
        for chosen in (("--language", "en"), ())
    )
    assert {key: value for key, value in one.items() if key.startswith("en:")} == {
        key: value for key, value in all_.items() if key.startswith("en:")
    }
    scores = [
        evaluated(file, "--protocol", protocol, "--variant", "fp32")["variants"]["fp32"]["scores"]
        for file, protocol in ((path, "open_clip"), (only_first, "model"), (path, "model"))
    ]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("labels_at_once", [2, 100])
def test_multi_label_equals_an_independent_computation(
    labels_at_once: int, paths: list[Path], embeddings: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_LOGITS", labels_at_once * 96)
    words = ["something red", "something blue", "a circle", "a star"]
    labels = [[word for word in words if word.split()[-1] in path.parent.name.split()] for path in paths]
    rows = [{"path": str(path), "labels": own} for path, own in zip(paths, labels, strict=True)]
    (tmp_path / "words.txt").write_text("\n".join([*words, "a cat"]))
    document = evaluated(write_json_lines(tmp_path / "set.jsonl", rows), "--labels", tmp_path / "words.txt")
    assert document["task"] == "multi-label classification"
    models = {name: siglip_onnx.load("demo", variant=name) for name in VARIANTS}
    of_variants = {
        name: model.logits(embeddings[name], model.encode_texts([*words, "a cat"])) for name, model in models.items()
    }
    logits = of_variants["fp32"]
    agreement = ((of_variants["int8"] >= 0) == (logits >= 0)).mean()
    assert 0.9 < agreement < 1
    assert document["variants"]["int8"]["agreement"] == close(agreement)
    precisions = []
    for number, word in enumerate(words):
        truth = [word in own for own in labels]
        order = sorted(range(96), key=lambda row, number=number: -logits[row, number])
        hits, terms = 0, []
        for place, row in enumerate(order, 1):
            hits += truth[row]
            terms += [hits / place] if truth[row] else []
        precisions.append(np.mean(terms))
        assert document["per_class"][number]["fp32"]["average_precision"] == pytest.approx(precisions[-1], abs=1e-6)
    scores = document["variants"]["fp32"]["scores"]
    assert scores["mean_average_precision"]["value"] == close(np.mean(precisions))
    said = logits > 0
    truth = np.array([[word in own for word in [*words, "a cat"]] for own in labels])
    assert scores["f1"]["value"] == close(2 * (said & truth).sum() / (said.sum() + truth.sum()))
    assert document["per_class"][4] == {
        "class": "a cat", "images": 0,
        **{name: {"average_precision": None, "best_threshold": None, "f1": None} for name in VARIANTS},
    }  # fmt: skip


def test_images_that_are_left_out_of_a_folder_per_class_are_counted(tmp_path: Path) -> None:
    paths = draw_folders(tmp_path / "set", 1, seed=3)
    shutil.copy(paths[0], tmp_path / "set" / "loose.png")
    (paths[0].parent / "more").symlink_to(paths[1].parent)
    result = run("evaluate", "demo", tmp_path / "set", "--variant", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == len(paths)
    assert f"{tmp_path / 'set'}: images beside the folders of classes were left out: 1." in result.stderr
    assert f"{tmp_path / 'set'}: links to folders in them were left out: 1." in result.stderr


def decode_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command decode images in its own process, where a test can watch or change it."""

    def options(**given: Any) -> RuntimeOptions:
        return RuntimeOptions(**{**given, "isolate_decoding": False})

    monkeypatch.setattr("siglip_onnx.cli.evaluate.RuntimeOptions", options)


def test_each_image_is_decoded_once(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[bytes] = Counter()
    read = ImageReader.read

    def counted(self: ImageReader, source: Any) -> Any:
        counts[source] += 1
        return read(self, source)

    monkeypatch.setattr(ImageReader, "read", counted)
    decode_here(monkeypatch)
    evaluated(drawn)
    assert len(counts) == 96
    assert set(counts.values()) == {1}


def test_files_of_a_report(drawn: Path, tmp_path: Path) -> None:
    document = evaluated(drawn, "-o", tmp_path / "out", "--limit", 40)
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == document
    assert (document["num_images"], document["limit"]) == (40, 40)
    with (tmp_path / "out" / "confusion_int8.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == sorted(NAMES_EN)
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum() == 40
    assert counts.trace() / 40 == close(document["variants"]["int8"]["scores"]["top1"]["value"])
    with (tmp_path / "out" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == sorted(NAMES_EN)
    assert sum(int(line["images"]) for line in lines) == 40
    assert float(lines[0]["fp32 recall"]) == pytest.approx(document["per_class"][0]["fp32"]["recall"])
    with Image.open(tmp_path / "out" / "confusion_fp32.png") as image:
        assert image.width > 300


class Interrupted(Progress):
    """Raises as Ctrl-C does, after some images."""

    def __init__(self, after: int) -> None:
        self.left = after

    def image_done(self, status: str) -> None:
        assert status == "ok"
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_evaluation_is_resumed(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(store, "_BLOCK", 10)
    data = open_data(drawn)
    models = {name: siglip_onnx.load("demo", variant=name) for name in VARIANTS}
    protocol = PROTOCOLS["model"]
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, data, protocol, folder=tmp_path / "out", progress=Interrupted(35))
    rest = Interrupted(96 - 30)  # three blocks of ten were stored
    resumed = evaluate(models, data, protocol, folder=tmp_path / "out", progress=rest)
    assert rest.left == 0
    assert resumed.to_document() == evaluate(models, data, protocol).to_document()
    (tmp_path / "out" / "embeddings" / "images-000004.npz").write_bytes(b"damaged")
    rest = Interrupted(10)
    assert evaluate(models, data, protocol, folder=tmp_path / "out", progress=rest).scores["fp32"].answers.size == 96
    assert rest.left == 0


def test_a_folder_of_another_evaluation_is_refused(drawn: Path, tmp_path: Path) -> None:
    evaluated(drawn, "-o", tmp_path, "--limit", 8)
    evaluated(drawn, "-o", tmp_path, "--limit", 8, "--template", "a photo of {}")  # the same embeddings
    result = run("evaluate", "demo", drawn, "-o", tmp_path, "--limit", 9)
    assert_error(result, 1, "holds another evaluation; different are: limit, image_paths_sha256, images_sha256")
    (tmp_path / "evaluation.json").write_text("{")
    assert_error(run("evaluate", "demo", drawn, "-o", tmp_path, "--limit", 8), 1, "is damaged")


def test_images_of_another_folder_are_not_those_of_before(tmp_path: Path) -> None:
    """Archives unpack files of the same names, sizes and times."""
    for number, names in enumerate((("red_star", "six_eggs"), ("six_eggs", "red_star"))):
        (tmp_path / str(number)).mkdir()
        for place, name in zip("ab", names, strict=True):
            path = tmp_path / str(number) / f"{place}.bmp"
            Image.open(IMAGES_PATH / f"{name}.png").convert("RGB").resize((96, 96)).save(path)
            os.utime(path, (0, 0))
    data = tmp_path / "x.csv"
    data.write_text("path,label\na.bmp,a red star\nb.bmp,six eggs\n")
    out = tmp_path / "out"
    evaluated(data, "--images", tmp_path / "0", "-o", out)
    again = run("evaluate", "demo", data, "--images", tmp_path / "1", "-o", out)
    assert_error(again, 1, "holds another evaluation; different are: image_paths_sha256")
    copy = tmp_path / "copy" / "x.csv"
    copy.parent.mkdir()
    shutil.copy(data, copy)
    again = run("evaluate", "demo", copy, "--images", tmp_path / "0", "-o", out)
    assert_error(again, 1, "holds another evaluation; different are: data")


def test_a_run_that_a_full_disk_ended_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = small_set(tmp_path / "set"), tmp_path / "out"

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomic", fail)
        assert_error(run("evaluate", "demo", data, "-o", out), 1, "cannot be written: No space left on device")
    (out / f".siglip_onnx-{'a' * 32}.part").write_text("{")  # of a killed run
    (out / "embeddings").mkdir(exist_ok=True)
    evaluated(data, "-o", out)
    assert (out / "result.json").exists()


def test_many_classes_have_no_confusion_matrix(tmp_path: Path) -> None:
    """Its size is the square of their number."""
    shutil.copy(IMAGES_PATH / "red_star.png", tmp_path / "a.png")
    rows = [f"x{number}.png,label {number}" for number in range(3000)]
    (tmp_path / "x.csv").write_text("\n".join(["path,label", "a.png,a red star", *rows]))
    result = run("evaluate", "demo", tmp_path / "x.csv", "-o", tmp_path / "out", "--variant", "int8")
    assert result.exit_code == 3, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.*")} == {"result.json", "per_class.csv", "evaluation.json"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("path,caption\na.png,a red star, not a blue one\n", "line 2 has 3 values for 2 columns; a text with commas"),
        ("path,label,label\na.png,a,b\n", "several columns 'label'"),
        ('path,label\na.png,"a\nb.png,b\n', "unexpected end of data"),
    ],
)
def test_csv_of_which_a_part_would_be_dropped_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DataError, match=rf"x.csv cannot be read as CSV: .*{problem}"):
        open_data(tmp_path / "x.csv")


def test_columns_without_names_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path,label,,\na.png,a,\nb.png,b,,\n")
    assert [sample.name for sample in open_data(tmp_path / "x.csv").samples] == ["a.png", "b.png"]


def test_folders_of_programs_are_no_classes(tmp_path: Path) -> None:
    data = small_set(tmp_path / "set")
    for name in (".git", "@eaDir", ".ipynb_checkpoints", "red_star/@eaDir", "red_star/.thumbnails", "#recycle"):
        (data / name).mkdir()
        shutil.copy(IMAGES_PATH / "red_star.png", data / name / "y.png")
    opened = open_data(data)
    assert isinstance(opened, LabeledImages)
    assert opened.texts == ["red star", "six eggs"]
    assert [sample.name for sample in opened.samples] == ["red_star/x.png", "six_eggs/x.png"]


def small_set(folder: Path) -> Path:
    for name in ("red_star", "six_eggs"):
        (folder / name).mkdir(parents=True)
        shutil.copy(IMAGES_PATH / f"{name}.png", folder / name / "x.png")
    return folder


def test_a_carriage_return_in_a_label_ends_no_row(tmp_path: Path) -> None:
    rows = [{"path": str(IMAGES_PATH / f"{name}.png"), "label": name.replace("_", "\r")}
            for name in ("red_star", "six_eggs")]  # fmt: skip
    evaluated(write_json_lines(tmp_path / "x.jsonl", rows), "-o", tmp_path / "out", "--variant", "int8")
    for name, width in (("per_class.csv", 3), ("confusion_int8.csv", 3)):
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as file:
            table = list(csv.reader(file))
        assert [len(row) for row in table] == [width] * 3
        assert [row[0] for row in table[1:]] == ["red\rstar", "six\reggs"]


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    data, out = small_set(tmp_path / "set"), tmp_path / "project"
    out.mkdir()
    (out / "result.json").write_text("precious")
    assert_error(run("evaluate", "demo", data, "-o", out), 1, "is not empty and holds no evaluation")
    assert [path.read_text() for path in out.iterdir()] == ["precious"]
    for place in (data, data / "red_star", data / "new"):
        assert_error(run("evaluate", "demo", data, "-o", place), 1, "the data set; choose another folder for --out")
    assert sorted(path.name for path in data.rglob("*")) == ["red_star", "six_eggs", "x.png", "x.png"]
    rows = [(f"{name}/x.png", name) for name in ("red_star", "six_eggs")]
    table = write_csv(out / "per_class.csv", ("path", "label"), rows)
    (out / "evaluation.json").write_text("{}")
    result = run("evaluate", "demo", table, "--images", data, "-o", out)
    assert_error(result, 1, "where results are written; choose another folder for --out")


def test_errors_are_tried_again_and_other_options_refused(tmp_path: Path) -> None:
    data, out = small_set(tmp_path / "set"), tmp_path / "out"
    cut = data / "red_star" / "cut.png"
    cut.write_bytes((data / "red_star" / "x.png").read_bytes()[:1288])
    options = (data, "--variant", "int8", "-o", out)
    assert evaluated(*options, code=3)["num_images"] == 2
    result = run("evaluate", "demo", *options, "--allow-truncated")
    assert_error(result, 1, "holds another evaluation; different are: preprocessing")
    if find_spec("openvino") is not None:
        other = run("evaluate", "demo", *options, "--provider", "OpenVINO")
        assert_error(other, 1, "holds another evaluation; different are: providers")
    stored = np.lib.npyio.NpzFile(io.BytesIO((out / "embeddings" / "images-000000.npz").read_bytes()[:-32]))
    assert list(stored["errors"] != "") == [True, False, False]
    read = ImageReader.read_file
    with pytest.MonkeyPatch.context() as patch:  # as after the installation of a decoder
        decode_here(patch)
        patch.setattr(ImageReader, "read_file",
                      lambda self, *arguments: read(replace(self, allow_truncated=True), *arguments))  # fmt: skip
        assert evaluated(*options)["num_images"] == 3


@pytest.mark.parametrize("damage", [lambda data: data[:300], lambda data: data[:-40] + data[-32:], lambda _: b""])
def test_damaged_blocks_are_computed_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    options = (small_set(tmp_path / "set"), "--variant", "int8", "-o", tmp_path / "out")
    expected = evaluated(*options)
    path = tmp_path / "out" / "embeddings" / "images-000000.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert evaluated(*options) == expected


def test_blocks_of_an_evaluation_that_began_at_the_same_time_are_not_read(tmp_path: Path) -> None:
    first = store.Store(tmp_path / "out", {"data": "a"})
    (tmp_path / "out" / store.FACTS).unlink()  # the second one had looked before the first wrote it
    second = store.Store(tmp_path / "out", {"data": "b"})
    second.write("images", 0, {"rows": np.arange(3)})
    assert first.read("images", 0) is None
    stored = second.read("images", 0)
    assert stored is not None
    assert stored["rows"].tolist() == [0, 1, 2]


def test_blocks_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    blocks = store.Store(tmp_path / "out", {"data": "a"})
    with (tmp_path / "out" / "embeddings" / "images-000000.npz").open("wb") as file:
        file.truncate(3_000_000_000)
    tracemalloc.start()
    try:
        assert blocks.read("images", 0) is None
        assert tracemalloc.get_traced_memory()[1] < 500_000_000
    finally:
        tracemalloc.stop()


def test_images_that_cannot_be_read_are_named_and_left_out(paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:300])
    Image.new("L", (3, 400)).save(tmp_path / "thin.png")  # of another size and mode
    rows = [(str(path), path.parent.name) for path in paths[:90]]
    bad = [("missing.png", "a red star"), ("broken.png", "a red star"), ("thin.png", "a red star")]
    result = run(
        "evaluate", "demo", write_csv(tmp_path / "x.csv", ("path", "label"), rows + bad), "-o", tmp_path / "out"
    )
    assert_error(result, 3, "missing.png cannot be read")
    assert "broken.png" in result.stderr
    document = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert document["num_images"] == 91
    assert [error["image"] for error in document["errors"]] == ["missing.png", "broken.png"]
    again = run("evaluate", "demo", tmp_path / "x.csv", "-o", tmp_path / "out")  # from what is stored
    assert_error(again, 3, "missing.png cannot be read")
    write_csv(tmp_path / "x.csv", ("path", "label"), [("missing.png", "a"), ("also.png", "b")])
    assert_error(run("evaluate", "demo", tmp_path / "x.csv"), 1, "None of the 2 images can be read. The first: ")


def test_captions_of_missing_images_do_not_count(paths: list[Path], tmp_path: Path) -> None:
    good = [(str(path), f"{path.parent.name} {number}") for number, path in enumerate(paths[::16])]
    path = write_csv(tmp_path / "x.csv", ("path", "caption"), [*good, ("missing.png", "a red star")])
    document = evaluated(path, "--variant", "fp32", code=3)
    without = evaluated(write_csv(tmp_path / "y.csv", ("path", "caption"), good), "--variant", "fp32")
    assert document["errors"][0]["image"] == "missing.png"
    assert document["variants"] == without["variants"]
    write_csv(path, ("path", "caption"), [("missing.png", "a"), (str(paths[0]), "")])
    assert_error(run("evaluate", "demo", path), 1, "No image that has a caption can be read; give the folder")


def test_classes_without_images_and_one_image_per_class(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join([*NAMES_EN, "a cat"]))
    result = run("evaluate", "demo", drawn, "--labels", tmp_path / "labels.txt", "--limit", 8)
    assert result.exit_code == 0
    assert "1 of 9 classes have no images; they stay possible answers." in result.stderr
    assert "classification: 8 images, 9 classes, protocol model" in result.stdout
    assert "int8 - fp32" in result.stdout
    assert "agreement with fp32" in result.stdout


def test_published_scores_stand_beside(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(drawn)
    models = {name: siglip_onnx.load("demo", variant=name) for name in VARIANTS}
    name = "google/siglip-base-patch16-256-multilingual"
    for model in models.values():
        renamed = replace(model.bundle.manifest, model_name=name)
        monkeypatch.setattr(model, "bundle", replace(model.bundle, manifest=renamed))
    result = evaluate(models, data, PROTOCOLS["open_clip"], benchmark="imagenet")
    published = result.to_document()["published"]["top1"]
    assert published["percent"] == 75.13
    assert published["measured"]["int8"] == close(100 * result.scores["int8"].units["top1"].mean())
    assert (
        evaluate(models, data, PROTOCOLS["open_clip"], benchmark="imagenet", limit=8).to_document()["published"] == {}
    )
    assert evaluate(models, data, PROTOCOLS["model"], benchmark="imagenet").to_document()["published"] == {}


def test_published_mean_of_all_languages_does_not_stand_beside_that_of_some(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(str(path), language, f"{language} {path.parent.name}") for path in paths[:8] for language in ("en", "ja")]
    data = open_data(write_csv(tmp_path / "x.csv", ("path", "language", "caption"), rows))
    model = siglip_onnx.load("demo")
    renamed = replace(model.bundle.manifest, model_name="google/siglip-base-patch16-256-multilingual")
    monkeypatch.setattr(model, "bundle", replace(model.bundle, manifest=renamed))
    published = [
        evaluate({"int8": model}, each, PROTOCOLS["open_clip"], benchmark="xm3600").to_document()["published"].keys()
        for each in (data, data.only(["ja"]))
    ]
    assert {"text_to_image", "ja:text_to_image", "en:text_to_image"} <= published[0]
    assert published[1] == {key for key in published[0] if key.startswith("ja:")} != set()


def test_captions_of_which_some_have_a_language_are_refused(paths: list[Path], tmp_path: Path) -> None:
    header, image = ("path", "language", "caption"), str(paths[0])
    path = write_csv(tmp_path / "x.csv", header, [(image, "en", "a star"), (image, "", "a heart")])
    assert_error(run("evaluate", "demo", path), 1, "has captions in en and captions without a language; state")
    assert evaluated(path, "--language", "en")["num_images"] == 1
    rows = [{"path": image, "language": "en", "caption": "a"}, {"path": image, "language": "fr", "caption": ["", ""]}]
    path = write_json_lines(tmp_path / "y.jsonl", rows)
    result = run("evaluate", "demo", path, "--language", "fr")
    assert_error(result, 1, "has no caption for the images and languages that were chosen")


def test_languages_are_for_captions(drawn: Path) -> None:
    assert_error(run("evaluate", "demo", drawn, "--language", "ja"), 1, "has labels, not captions in ja")
    assert_error(run("evaluate", "demo", drawn, "--variant", "q5"), 4, "q5")


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "fit"])
def test_data_that_no_command_can_use(command: str, drawn: Path, paths: list[Path], tmp_path: Path) -> None:
    if command == "fit":
        pytest.importorskip("onnx_ir")
    out = () if command == "evaluate" else ("-o", tmp_path / "out")
    rows = [(str(path), path.parent.name) for path in paths[::6]]

    def refused(data: Path, message: str, *options: object) -> None:
        assert_error(run(command, "demo", data, *options, *out), 1, message)
        assert not (tmp_path / "out").exists()

    def table(rows: list[tuple[str, str]]) -> Path:
        return write_csv(tmp_path / "x.csv", ("path", "label"), rows)

    refused(table([(path, "a red star") for path, _ in rows]), "has one class, 'a red star'; expected at least two")
    refused(table([(path, "") for path, _ in rows]), "has 16 images without any label")
    (tmp_path / "labels.txt").write_text("a red star\na cat")
    unlabelled = table([(path, "") for path, _ in rows])
    refused(unlabelled, "has 16 images without any label", "--labels", tmp_path / "labels.txt")
    refused(table(rows), "among the 2 known classes (a red star, a cat). Add it", "--labels", tmp_path / "labels.txt")
    refused(
        drawn,
        "'a blue circle', which " + f"{tmp_path / 'labels.txt'} does not name, although it names others",
        "--labels",
        tmp_path / "labels.txt",
    )
    refused(drawn, "nothing.txt cannot be read", "--labels", tmp_path / "nothing.txt")
    refused(paths[0].parent, "has images, but no folder per class")
    (tmp_path / "broken").write_bytes(b"no image")
    unreadable = [("broken", "a"), *((f"missing{number}", "b") for number in range(5))]
    refused(table(unreadable), "None of the 6 images can be read. The first: broken: ")
    if command != "evaluate":
        refused(write_csv(tmp_path / "y.csv", ("path", "caption"), rows), "has captions; expected images with labels")


def test_classes_with_the_same_words_are_named(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("".join(f"{name}\ta star\n" for name in NAMES_EN))
    result = run("evaluate", "demo", drawn, "--labels", tmp_path / "labels.txt", "--limit", 8, "--variant", "int8")
    assert result.exit_code == 0
    assert "several classes have the words 'a star', so that none of them is ever right" in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "fit"])
def test_images_of_data_sets_are_decoded_in_processes(
    command: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    start = DecoderPool._start
    monkeypatch.setattr(DecoderPool, "_start", lambda pool: started.append(pool) or start(pool))
    out = {"evaluate": "folder", "calibrate": "x.json", "fit": "x.onnx"}[command]
    result = run(command, "demo", drawn, "-o", tmp_path / out)
    assert result.exit_code == 0, result.stderr
    assert started
