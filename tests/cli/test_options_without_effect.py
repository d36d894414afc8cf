"""Options that would have no effect in a mode, or on an input, are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.commands import assert_error, run
from support.jobs import unit_vectors, write_job

from siglip_onnx.demo import IMAGES_PATH

STAR = IMAGES_PATH / "red_star.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images by class, data sets that name them, a list, a compiled classifier and vectors."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("red_star", "six_eggs"):
        (folder / "photos" / name).mkdir(parents=True)
        shutil.copy(IMAGES_PATH / f"{name}.png", folder / "photos" / name / "x.png")
    paths = [f"photos/{name}/x.png" for name in ("red_star", "six_eggs")]
    (folder / "captions.csv").write_text("path,caption\n" + "".join(f"{path},x\n" for path in paths))
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{path},{path[7:15]}\n" for path in paths))
    (folder / "list.txt").write_text("\n".join(paths))
    (folder / "labels.txt").write_text("a red star\nsix eggs")
    (folder / "compiled.onnx").write_bytes(b"refused before it is read")
    write_job(folder / "vectors", unit_vectors(3))
    np.savez(folder / "head.npz")
    return folder


@pytest.mark.parametrize(
    ("words", "removed"),
    [
        (f"classify {STAR} --head head.npz --threshold 0.5", "--threshold"),
        (f"classify {STAR} --head head.npz --top 1 --bars", "--top, --bars"),
        (f"classify {STAR} --head head.npz --text a --template {{}}", "--text, --template"),
        (f"classify {STAR} --head head.npz --logit-bias 0", "--logit-bias"),
        (f"classify {STAR} --head head.npz --label-cache x", "--label-cache"),
        (f"classify {STAR} --text a --json --bars", "--bars"),
        (f"classify {STAR} --model compiled.onnx --logit-bias 0", "--logit-bias"),
        ("embed --text a --out x.npy --fast-decode", "--fast-decode"),
        ("embed --text a --out x.npy --isolate-decoding", "--isolate-decoding"),
        ("embed list.txt --out x --hidden --exclude *.jpg", "--exclude, --hidden"),
        ("search photos a --overwrite", "--overwrite"),
        ("search photos a --sort-label x", "--sort-label"),
        (f"search photos --image {STAR} --template a", "--template"),
        ("search photos --sort head.npz --template a", "--template"),
        ("search photos --sort head.npz --min-probability 0.5", "--min-probability"),
        ("search vectors --sort head.npz --model demo --workers 2", "--model, --workers"),
        ("search vectors a --allow-truncated", "--allow-truncated"),
        ("duplicates photos --overwrite", "--overwrite"),
        ("duplicates vectors --variant int8 --offline", "--variant, --offline"),
        (f"explain {STAR} --text a --overwrite", "--overwrite"),
        (f"explain {STAR} --model compiled.onnx --variant int8 --fast-decode", "--variant, --fast-decode"),
        ("evaluate demo photos --images photos", "--images"),
        ("evaluate demo photos --split test", "--split"),
        ("evaluate demo photos --benchmark imagenet --limit 1", "--benchmark"),
        ("evaluate demo captions.csv --labels labels.txt --multi-label", "--labels, --multi-label"),
        ("evaluate demo captions.csv --template a", "--template"),
        ("evaluate demo captions.csv --calibration x.json", "--calibration"),
        ("calibrate demo photos --images photos -o x.json", "--images"),
        ("calibrate demo photos --per language -o x.json", "--per"),
        ("bench run demo --overwrite", "--overwrite"),
        ("bench run demo --quick --rounds 5", "--rounds"),
    ],
)
def test_options_without_effect_are_refused(
    words: str, removed: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert_error(run(*words.split()), 2, f"; remove {removed}.")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "removed"),
    [
        ("export photos x --variant fp32,fp16 --calibration photos", "--calibration"),
        ("export photos x --variant fp32,q4 --reduce-range", "--reduce-range"),
        ("fit demo photos --images photos -o x.onnx", "--images"),
        ("fit demo photos --test photos --images photos -o x.onnx", "--images"),
    ],
)
def test_options_without_effect_are_refused_with_the_exporter(
    words: str, removed: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_ir")
    test_options_without_effect_are_refused(words, removed, place, monkeypatch)


def test_defaults_and_variables_are_not_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", "demo")
    assert run("duplicates", "vectors").exit_code == 0
    assert run("evaluate", "labels.csv", "--images", place, "--variant", "int8", "--progress", "off").exit_code == 0


@pytest.mark.parametrize("words", [("embed", "photos", "--out", "x"), ("search", "photos", "a")])
def test_jobs_do_not_download_a_model_when_offline(
    words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("siglip_onnx.hub.loading.pull", lambda *_: pytest.fail("it was downloaded"))
    message = "owner/name is not in the cache, and is not downloaded: offline mode is on"
    assert_error(run(*words, "--model", "owner/name", "--offline"), 4, message)
