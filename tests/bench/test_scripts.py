"""Run every file of scripts/, benchmarks/ and examples/: help, import, and one real run on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.examples import run_example

from siglip_onnx.config import SENTENCEPIECE, TOKENIZER
from siglip_onnx.demo import IMAGES_PATH

SLOW = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FOLDERS = ("scripts", "benchmarks", "examples")
FILES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
COMMANDS = [name for name in FILES if "@click.command" in (ROOT / name).read_text(encoding="utf-8")]
LIBRARIES = [name for name in FILES if name not in COMMANDS and not name.startswith("examples/")]
# Files that run in the test of what they make: the test, and the word by which it names the file.
TESTED_ELSEWHERE = {
    "benchmarks/models.py": ("bench/test_models.py", "models.main"),
    "benchmarks/plots.py": ("bench/test_bench_cli.py", "from plots import"),
    "scripts/draw_samples.py": ("runtime/test_demo.py", "draw_samples"),
    "scripts/train_demo.py": ("runtime/test_demo.py", "train_demo"),
    "scripts/make_golden.py": ("runtime/test_doctor.py", "make_golden"),
    "examples/browser/prepare.py": ("web/test_example_browser.py", "prepare.py"),
    "examples/compiled_classifier.py": ("export/test_compile.py", "compiled_classifier"),
    "examples/datasets_map.py": ("runtime/test_examples.py", "datasets_map"),
    "examples/deploy/app.py": ("system/test_frozen.py", "app.py"),
    "examples/fastapi_uploads.py": ("runtime/test_examples.py", "fastapi_uploads"),
    "examples/pandas_labels.py": ("runtime/test_examples.py", "pandas_labels"),
    "examples/mteb_model.py": ("evaluate/test_mteb.py", "mteb_model"),
    "examples/parallel_joblib.py": ("runtime/test_examples.py", "parallel_joblib"),
    "examples/parallel_processes.py": ("runtime/test_examples.py", "parallel_processes"),
    "examples/search_duckdb.py": ("bulk/test_search.py", "duckdb"),
    "examples/search_faiss.py": ("bulk/test_search.py", "faiss"),
    "examples/search_lancedb.py": ("bulk/test_search.py", "lancedb"),
}


@dataclass(frozen=True)
class Tiny:
    """Small inputs of the runs, and a folder for what they write."""

    checkpoint: Path
    bundle: Path
    folder: Path

    @property
    def labeled(self) -> Path:
        for name in ("red_star", "six_eggs"):
            (self.folder / "set" / name).mkdir(parents=True)
            shutil.copy(IMAGES_PATH / f"{name}.png", self.folder / "set" / name)
        return self.folder / "set"

    @property
    def trained(self) -> Path:
        """A checkpoint with the facts of its training, as ``train_demo.py`` writes it."""
        out = self.folder / "trained"
        shutil.copytree(self.checkpoint, out)
        (out / "training.json").write_text(json.dumps({"steps": 1, "runs": [{"seed": 0}], "torch": "2"}))
        return out

    @property
    def checkout(self) -> Path:
        """A copy of what ``report.py`` reads and writes."""
        out = self.folder / "checkout"
        for name in ("docs", "benchmarks"):
            shutil.copytree(ROOT / name, out / name)
        shutil.copy(ROOT / "README.md", out)
        (out / "siglip_onnx" / "hub").mkdir(parents=True)
        return out


@dataclass(frozen=True)
class Run:
    """One run of a file: its arguments, a file that it writes or words that it prints, and what it needs."""

    script: str
    arguments: Callable[[Tiny], list[object]]
    writes: str = ""
    prints: str = ""
    needs: str = "torch"
    slow: bool = False


def bulk(part: str, *options: object) -> Run:
    return Run("benchmarks/bulk.py", lambda tiny: [part, *options, "--scale", "0.002", "--work", tiny.folder / "work",
                                                   "--out", tiny.folder / "bulk.json"], writes="bulk.json")  # fmt: skip


RUNS = [
    Run("scripts/evaluate_demo.py", lambda tiny: [
        tiny.trained, tiny.bundle, "--num-images", 12, "--card", tiny.folder / "card.md"], writes="card.md"),
    Run("scripts/make_int8_probe.py", lambda tiny: [tiny.folder / "probe.onnx"], writes="probe.onnx", needs="onnx_ir"),
    Run("scripts/recover_demo.py", lambda tiny: [tiny.folder / "demo"], writes="demo/model.safetensors",
        needs="onnx_ir"),
    Run("examples/experiments.py", lambda tiny: ["demo", tiny.folder / "where"],
        writes="where/reading_japanese.png", prints="== Reading, Japanese: probability of each word"),
    Run("benchmarks/accuracy.py", lambda tiny: [
        tiny.labeled, "--model", "demo", "--out", tiny.folder / "accuracy.json"], writes="accuracy.json"),
    Run("benchmarks/classifier.py", lambda tiny: [
        tiny.checkpoint, tiny.folder / "classifier.json", "--images", 128, "--epochs", 1, "--test-images", 8],
        writes="classifier.json", slow=True),
    Run("benchmarks/explain.py", lambda tiny: [
        tiny.folder / "explain.json", "--model", tiny.bundle, "--cases", 1, "--repeats", 1],
        writes="explain.json", needs="onnxruntime"),
    bulk("kills"), bulk("faults"), bulk("memory"), bulk("search"), bulk("throughput", "--images", 20),
    Run("benchmarks/draw_demo_set.py", lambda tiny: [tiny.folder / "set", "--per-class", 1],
        writes="set/a red star/000.png"),
    Run("benchmarks/few_shot.py", lambda tiny: [
        tiny.folder / "few_shot.json", "--draws", 1, "--pool", 2, "--test-images", 1, "--shots", 2],
        writes="few_shot.json", prints='"fit_minus_scikit_learn"', needs="sklearn", slow=True),
    Run("benchmarks/quantization.py", lambda tiny: [
        "--checkpoint", tiny.checkpoint, "--images", IMAGES_PATH, "--work", tiny.folder,
        "--out", tiny.folder / "quantization.json"], writes="quantization.json", slow=True),
    Run("benchmarks/report.py", lambda _: [], writes="checkout/docs/plots/throughput.svg", needs="matplotlib"),
    Run("benchmarks/suite.py", lambda tiny: [
        "--checkpoint", tiny.checkpoint, "--images", IMAGES_PATH, "--work", tiny.folder, "--quick", "--threads", 1,
        "--wait", 0, "--only", "siglip_onnx", "--out", tiny.folder / "suite.json"], writes="suite.json", slow=True),
    Run("benchmarks/start.py", lambda tiny: [
        "--bundle", tiny.bundle, "--image", IMAGES_PATH / "six_eggs.png", "--before", ROOT, "--pairs", 1,
        "--only", "text tower", "--out", tiny.folder / "start.json"], writes="start.json"),
    Run("benchmarks/texts_in_bulk.py", lambda tiny: [
        "--bundle", tiny.bundle, "--before", ROOT, "--texts", 16, "--pairs", 1, "--wait", 0,
        "--out", tiny.folder / "texts.json"],
        writes="texts.json"),
    Run("benchmarks/web.py", lambda tiny: ["--seconds", 1, "--out", tiny.folder / "web.json"], writes="web.json",
        needs="fastapi", slow=True),
    Run("benchmarks/parity.py", lambda tiny: [
        "--spiece", tiny.checkpoint / SENTENCEPIECE, "--gemma", tiny.bundle / TOKENIZER, "--images", IMAGES_PATH,
        "--only", "siglip-so400m-patch14-224"], prints="siglip-so400m-patch14-224: {", slow=True),
]  # fmt: skip


@pytest.fixture
def tiny(small_checkpoint: Path, small_bundle: Path, tmp_path: Path) -> Tiny:
    return Tiny(small_checkpoint, small_bundle, tmp_path)


def execute(path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_help_of_every_command() -> None:
    """All in one process, because many of them import PyTorch."""
    code = f"""
import runpy, sys
path = list(sys.path)
for name in {COMMANDS!r}:
    sys.path[:] = [{str(ROOT)!r} + "/" + name.rpartition("/")[0], *path]
    sys.argv = [name, "--help"]
    try:
        runpy.run_path({str(ROOT)!r} + "/" + name, run_name="__main__")
    except SystemExit as end:
        print(end.code, name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"Usage: {Path(name).name} " in done.stdout
        assert f"\n0 {name}\n" in done.stdout


def test_every_library_can_be_imported() -> None:
    """All in one process, because many of them import PyTorch."""
    modules = [".".join(Path(name).with_suffix("").parts[1:]).removesuffix(".__init__") for name in LIBRARIES]
    code = f"""
import importlib, sys
sys.path[:0] = {[str(ROOT / folder) for folder in FOLDERS]!r}
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(error.name)
"""
    missing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(missing) <= {"openvino", "playwright"}  # optional; not installed in every environment


@pytest.mark.parametrize("run", [pytest.param(run, id=run.script, marks=SLOW if run.slow else ()) for run in RUNS])
def test_a_run_on_a_tiny_model(run: Run, tiny: Tiny) -> None:
    pytest.importorskip(run.needs)
    root = tiny.checkout if run.script == "benchmarks/report.py" else ROOT
    runner = run_example if run.script.startswith("examples/") else execute
    done = runner(root / run.script, *run.arguments(tiny))
    assert done.returncode == 0, done.stderr
    assert not run.writes or (tiny.folder / run.writes).stat().st_size > 0
    assert run.prints in done.stdout


def test_every_file_is_run_somewhere() -> None:
    runnable = {*COMMANDS, *(name for name in FILES if name.startswith("examples/"))}
    assert runnable == {run.script for run in RUNS} | TESTED_ELSEWHERE.keys()
    for name, (test, word) in TESTED_ELSEWHERE.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert word in text, test
        assert "run_example(" in text or not name.startswith("examples/"), f"{test} runs {name} outside of a fresh home"
