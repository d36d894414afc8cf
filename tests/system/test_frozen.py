"""Programs frozen by PyInstaller, isolated Python, a read-only system without a home, and users other than root."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.examples import EXAMPLES, run_example

import siglip_onnx
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bulk.worker_pool import WorkerPool
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.image import decoder_pool
from siglip_onnx.system import frozen

ROOT = str(EXAMPLES.parent)
STAR = IMAGES_PATH / "red_star.png"
CLASSIFY = ("classify", str(STAR), "--text", "a red star", "--model", "demo", "--isolate-decoding")


@pytest.fixture
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(frozen, "_supported", [])


@pytest.mark.usefixtures("_frozen")
def test_frozen_program_without_freeze_support_starts_no_copy_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    model = siglip_onnx.load("demo", isolate_decoding=True)
    with pytest.raises(SiglipOnnxError, match=r"Call siglip_onnx\.freeze_support\(\) first"):
        model.encode_images(STAR)
    with pytest.raises(SiglipOnnxError, match="A frozen program cannot do this"):
        frozen._interpreter()
    monkeypatch.setattr(sys, "argv", ["program"])
    siglip_onnx.freeze_support()
    assert decoder_pool._command() == [sys.executable, "--siglip-onnx-decoder"]


@pytest.mark.usefixtures("_frozen")
def test_frozen_job_without_freeze_support_starts_no_copy_of_itself(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path, ModelSpec("demo"), 1, None)  # type: ignore[arg-type]
    with pytest.raises(SiglipOnnxError, match=r"Call siglip_onnx\.freeze_support\(\) first"):
        pool._workers[0]._start()


@pytest.mark.usefixtures("_frozen")
def test_decoder_process_of_a_frozen_program_decodes_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(sys, "argv", ["program", "--siglip-onnx-decoder"])
    monkeypatch.setattr(decoder_pool, "main", lambda: ran.append(True))
    with pytest.raises(SystemExit):
        siglip_onnx.freeze_support()
    assert ran == [True]


def test_freeze_support_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--siglip-onnx-decoder"])
    siglip_onnx.freeze_support()


def test_script_of_the_frozen_program_runs_unfrozen() -> None:
    done = run_example(EXAMPLES / "deploy" / "app.py", *CLASSIFY)
    assert done.returncode == 0, done.stderr
    assert "a red star" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("PyInstaller") is None, reason="PyInstaller is not installed")
def test_one_file_classifies_and_embeds(tmp_path: Path) -> None:
    command = next(line for line in (EXAMPLES / "deploy" / "app.py").read_text().splitlines() if "--onefile" in line)
    _, *options, _ = command.split()
    subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", *options, EXAMPLES / "deploy" / "app.py"],
        check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT},
    )  # fmt: skip
    program = tmp_path / "dist" / "siglip-onnx"
    environment = {"HOME": str(tmp_path / "home")}
    answer = subprocess.check_output([program, *CLASSIFY], text=True, env=environment)
    assert "a red star" in answer
    embed = [program, "embed", IMAGES_PATH, "-o", tmp_path / "vectors", "--workers", "2", "--model", "demo"]
    subprocess.run(embed, check=True, env=environment)
    assert len(siglip_onnx.open_collection(tmp_path / "vectors").paths) == len(list(IMAGES_PATH.iterdir()))


def test_isolated_python_ignores_the_working_folder_and_the_environment(tmp_path: Path) -> None:
    """``python -I`` where the working folder and PYTHONPATH hold modules that break everything that imports them."""
    for name in ("json", "struct", "numpy", "siglip_onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the working folder was imported')\n")
    code = f"import sys; sys.path.insert(0, {ROOT!r})\nfrom siglip_onnx.cli import main\nmain({CLASSIFY!r})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "a red star" in done.stdout


def test_no_home_and_no_writable_folder() -> None:
    """A container with a read-only root, an unknown user and no HOME: everything but the cache of models works."""
    if sys.platform != "linux" or os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can make the file system read-only")
    python = Path(sys.executable).resolve()
    user = "--reuid 12345 --regid 12345 --clear-groups"
    if not all(folder.stat().st_mode & 0o001 for folder in python.parents):
        user = "--bounding-set=-all --inh-caps=-all"  # root without its rights: other users cannot run this Python
    script = (
        "mount --make-rprivate / && mount --bind /tmp /tmp && "
        "for folder in / /tmp; do mount -o remount,bind,ro $folder || exit; done; "
        f'exec setpriv {user} {sys.executable} -B -m siglip_onnx "$@"'
    )
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    for command, expected in ((CLASSIFY, "a red star"), (("doctor",), "self-test   cosine")):
        done = subprocess.run(
            ["/usr/bin/unshare", "--mount", "sh", "-c", script, "sh", *command],
            capture_output=True, text=True, check=False, cwd="/", env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert "Traceback" not in done.stderr
