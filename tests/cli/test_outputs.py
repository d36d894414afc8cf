"""Commands replace only files that they wrote themselves, and never their inputs."""

import os
import pkgutil
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.commands import assert_error, run

from siglip_onnx.bulk.gallery import MARK
from siglip_onnx.cli import embed
from siglip_onnx.cli.bench import MEASUREMENT
from siglip_onnx.cli.calibrate import CALIBRATION
from siglip_onnx.cli.compile import CLASSIFIER
from siglip_onnx.cli.explain import DRAWING
from siglip_onnx.cli.folders import PAGE
from siglip_onnx.cli.outputs import Kind, check_output
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import SiglipOnnxError

STAR = IMAGES_PATH / "red_star.png"
TEXTS = ("--text", "a red star")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("red_star", "six_eggs"):
        (folder / name).mkdir(parents=True)
        shutil.copy(IMAGES_PATH / f"{name}.png", folder / name / "x.png")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("a red star\nsix eggs\n")
    return path


def commands(photos: Path, texts: Path) -> dict[str, tuple[Sequence[object], str]]:
    """Return the arguments of each command up to the name of its output, and that file's suffix."""
    return {
        "search": (("search", photos, *TEXTS, "--html"), "html"),
        "duplicates": (("duplicates", photos, "--html"), "html"),
        "explain": (("explain", STAR, "--texts-file", texts, "-o"), "png"),
        "compile": (("compile", "demo", "--texts-file", texts, "-o"), "onnx"),
        "fit": (("fit", "demo", photos, "-o"), "onnx"),
        "embed": (("embed", "--texts-file", texts, "--out"), "npy"),
    }


@pytest.mark.parametrize("name", ["search", "duplicates", "explain", "compile", "fit", "embed"])
def test_own_files_are_replaced_and_others_are_not(name: str, photos: Path, texts: Path, tmp_path: Path) -> None:
    if name in ("compile", "fit"):
        pytest.importorskip("onnx_ir")
    arguments, suffix = commands(photos, texts)[name]
    out = tmp_path / f"out.{suffix}"
    shutil.copy(STAR, out)
    option = "--html" if suffix == "html" else "--out"
    assert_error(run(*arguments, out), 1, f"exists already and is not {'a' if name != 'embed' else 'vectors'}")
    assert_error(run(*arguments, out), 1, f"choose another name for {option}, or replace it: --overwrite")
    assert out.read_bytes() == STAR.read_bytes()
    for options in (("--overwrite",), ()):
        result = run(*arguments, out, *options)
        assert result.exit_code == 0, result.stderr
        assert out.read_bytes() != STAR.read_bytes()


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("explain", "explain", "draw_explanation"),
        ("fit", "fit", "fit_few_shot"),
        ("embed", "embed", "to_json"),
        ("compile", "compile", "load"),
    ],
)
def test_a_file_that_appears_meanwhile_is_not_replaced(
    name: str, module: str, function: str, photos: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("compile", "fit"):
        pytest.importorskip("onnx_ir")
    arguments, suffix = commands(photos, texts)[name]
    out = tmp_path / f"out.{suffix}"
    target = f"siglip_onnx.cli.{module}.{function}"
    original = pkgutil.resolve_name(target)

    def appear(*arguments: object, **options: object) -> object:
        out.write_bytes(b"of the user")
        return original(*arguments, **options)

    monkeypatch.setattr(target, appear)
    assert_error(run(*arguments, out), 1, "exists already and is not")
    assert out.read_bytes() == b"of the user"
    assert run(*arguments, out, "--overwrite").exit_code == 0
    assert out.read_bytes() != b"of the user"


@pytest.mark.parametrize("name", ["search", "explain", "compile", "fit", "embed"])
def test_inputs_are_never_replaced(name: str, photos: Path, texts: Path) -> None:
    if name in ("compile", "fit"):
        pytest.importorskip("onnx_ir")
    arguments, suffix = commands(photos, texts)[name]
    out = photos / "red_star" / "x.png" if name in ("search", "fit") else texts
    if name == "embed":
        os.link(texts, out := texts.with_suffix(f".{suffix}"))
    before = out.read_bytes()
    assert_error(run(*arguments, out, "--overwrite"), 1, "is one of the files that are read; choose another name for")
    assert out.read_bytes() == before


def test_calibration_replaces_only_a_calibration(photos: Path, tmp_path: Path) -> None:
    for folder in photos.iterdir():
        for number in range(3):
            shutil.copy(folder / "x.png", folder / f"{number}.png")
    out = tmp_path / "x.json"
    for _ in range(2):
        assert run("calibrate", "demo", photos, "-o", out).exit_code == 0
    out.write_text('{"precious": true}')
    assert_error(run("calibrate", "demo", photos, "-o", out), 1, "is not a calibration, so it is not replaced")
    assert out.read_text() == '{"precious": true}'


def test_measurements_are_refused_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert_error(run("bench", "demo", "-o", tmp_path / "x.json"), 1, "is not results of siglip-onnx bench, so it is")
    (tmp_path / "x.json").write_text('{"format": "siglip_onnx.benchmark", "schema_version": 1}')
    check_output(tmp_path / "x.json", MEASUREMENT, [], overwrite=False)


def test_rows_beside_the_vectors_are_not_replaced(tmp_path: Path) -> None:
    out, rows = tmp_path / "captions.npy", tmp_path / "captions.jsonl"
    rows.write_text('{"path": "a.png", "caption": "x"}\n')
    assert_error(run("embed", *TEXTS, "--out", out), 1, "captions.jsonl exists already and is not rows that")
    assert rows.read_text() == '{"path": "a.png", "caption": "x"}\n'
    assert not out.exists()
    rows.unlink()
    assert run("embed", *TEXTS, "--out", out).exit_code == 0
    rows.unlink()
    assert_error(run("embed", *TEXTS, "--out", out), 1, "exists already, without captions.jsonl")


@pytest.mark.parametrize("kind", [PAGE, CALIBRATION, CLASSIFIER, DRAWING, MEASUREMENT])
def test_files_that_only_resemble_are_not_replaced(kind: object, tmp_path: Path) -> None:
    path = tmp_path / "x"
    tower = BUNDLE_PATH / "onnx" / "vision_model_quantized.onnx"
    for content in (b"", b"{", b"<!doctype html>\n<html>", STAR.read_bytes(), tower.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(SiglipOnnxError, match="is not replaced"):
            check_output(path, kind, [], overwrite=False)  # type: ignore[arg-type]
        check_output(path, kind, ["no/such file", "https://x/y", "-", None], overwrite=True)  # type: ignore[arg-type]
    path.unlink()
    os.mkfifo(path)
    check_output(path, kind, [], overwrite=False)  # type: ignore[arg-type] # a pipe is written to


CALIBRATIONS = (
    '{"app": "mine", "calibration": {"format": "siglip_onnx.calibration/1"}}',
    '{"out": "x.json", "labels": [], "format": "siglip_onnx.calibration/1"}',  # what --json prints
    '[{"format": "siglip_onnx.calibration/1"}]',
)
MEASUREMENTS = (
    '{"before": {"format": "siglip_onnx.benchmark"}, "after": {"format": "siglip_onnx.benchmark"}}',
    '{"note": "\\"format\\": \\"siglip_onnx.benchmark\\""}',
)
PAGES = (f"<!doctype html>\n<html>\n<h1>mine</h1>\n<iframe srcdoc='{MARK}'></iframe></html>\n",)
DRAWINGS = (b"\x89PNG\r\n\x1a\n....tEXtComment\0cut from siglip_onnx explain".decode("latin-1"),)
ROWS = ('{"row": 1, "mine": true}\n{"row": 0, "text": "a", "embedding_space": "x"}\n',)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (kind, content)
        for kind, contents in ((CALIBRATION, CALIBRATIONS), (MEASUREMENT, MEASUREMENTS), (PAGE, PAGES),
                               (DRAWING, DRAWINGS), (embed.ROWS, ROWS))
        for content in contents
    ],
)  # fmt: skip
def test_files_that_contain_an_output_are_not_replaced(kind: Kind, content: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content.encode("latin-1"))
    with pytest.raises(SiglipOnnxError, match="is not replaced"):
        check_output(tmp_path / "x", kind, [], overwrite=False)


@pytest.mark.parametrize("command", ["fit", "calibrate"])
def test_images_that_a_list_names_are_never_replaced(command: str, tmp_path: Path) -> None:
    names = ("red_star.png", "six_eggs.png")
    for name in names:
        shutil.copy(IMAGES_PATH / name, tmp_path / name)
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[:-4]}\n" for name in names))
    result = run(command, "demo", tmp_path / "list.csv", "-o", tmp_path / names[0], "--overwrite")
    assert_error(result, 1, "red_star.png is one of the files that are read")
    assert (tmp_path / names[0]).read_bytes() == (IMAGES_PATH / names[0]).read_bytes()


def test_images_of_a_test_set_and_of_a_page_are_never_replaced(tmp_path: Path) -> None:
    names, photos, train = ("red_star.png", "six_eggs.png"), tmp_path / "photos", tmp_path / "train"
    photos.mkdir()
    for name in names:
        (train / name[:-4]).mkdir(parents=True)
        for folder in (photos, train / name[:-4]):
            shutil.copy(IMAGES_PATH / name, folder / name)
    rows = [f"photos/{name},{name[:-4].replace('_', ' ')}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    assert run("embed", photos, "--out", tmp_path / "vectors").exit_code == 0
    photo = photos / names[0]
    for arguments in (
        ("fit", "demo", train, "--test", tmp_path / "list.csv", "-o", photo),
        ("search", tmp_path / "vectors", "a red star", "--html", photo),
        ("duplicates", tmp_path / "vectors", "--threshold", "0", "--html", photo),
    ):
        assert_error(run(*arguments, "--overwrite"), 1, "red_star.png is one of the files that are read")
        assert photo.read_bytes() == (IMAGES_PATH / names[0]).read_bytes()


@pytest.mark.parametrize("name", ["search", "duplicates", "explain", "compile", "fit", "embed"])
def test_a_folder_that_does_not_exist_is_noticed_before_the_work(
    name: str, photos: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("compile", "fit"):
        pytest.importorskip("onnx_ir")
    arguments, suffix = commands(photos, texts)[name]
    monkeypatch.setattr("siglip_onnx.session.LazySession.load", None)  # nothing is computed
    missing = tmp_path / "missing"
    assert_error(run(*arguments, missing / f"x.{suffix}"), 1, f"{missing} is not a folder; create it first, or choose")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    assert_error(run(*arguments, tmp_path / f"x.{suffix}"), 1, f"files cannot be made in {tmp_path}; choose another n")
