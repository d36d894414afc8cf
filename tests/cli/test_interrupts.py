"""Ctrl-C at any moment: one message, the documented exit code, no traceback of any process, and nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.commands import command
from support.waiting import interrupt, wait_until

from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.image.decode import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.system.interrupts import children_uninterrupted, interrupts_deferred
from siglip_onnx.system.steps import run_steps

STAR = IMAGES_PATH / "red_star.png"
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
INTERRUPTED = "siglip-onnx: interrupted\n"


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start a process in a group of its own, with Ctrl-C as in a terminal: a background job ignores it."""
    return subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip


def press_ctrl_c(process: subprocess.Popen[str]) -> str:
    """Interrupt the group as a terminal does; check how it ends, and return what it printed on stderr."""
    with process:
        error = interrupt(process, group=True)
    assert process.returncode == 130, error
    assert error.endswith(INTERRUPTED), error
    assert not [word for word in ("Traceback", "Error", "ignored", "Aborted") if word in error], error
    wait_until(lambda: not members_of(process.pid))
    return error


def members_of(group: int) -> list[int]:
    """Return the processes of a group."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(path.parent.name))
    return members


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        shutil.copy(STAR, folder / f"{number}.png")
    return folder


@ON_LINUX
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_job_while_its_workers_start(delay: float, images: Path, tmp_path: Path) -> None:
    words = command("embed", images, "--out", "vectors", "--model", "demo", "--workers", "2")
    process = start(words, tmp_path)
    wait_until(lambda: len(members_of(process.pid)) > 2 or process.poll() is not None)  # it, a tracker, a worker
    time.sleep(delay)
    error = press_ctrl_c(process)
    assert error == f"\nsiglip-onnx: vectors can be resumed with the same command\n{INTERRUPTED}"
    assert not (tmp_path / "vectors" / ".tmp").exists()
    assert not (tmp_path / "vectors" / "summary.json").exists()


@ON_LINUX
@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("delay", [0.002, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_command_while_it_starts_and_decodes(delay: float, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/0.png\n" * 5000)
    code = "from siglip_onnx.__main__ import main; print('begins', flush=True); main()"
    words = ("classify", "@list.txt", "--text", "a", "--model", "demo", "--isolate-decoding", "--workers", "2", "--csv")
    process = start([sys.executable, "-c", code, *words], tmp_path)
    assert process.stdout
    assert process.stdout.readline() == "begins\n"
    time.sleep(delay)
    assert press_ctrl_c(process) == INTERRUPTED


def test_interrupt_before_and_after_the_command(tmp_path: Path) -> None:
    code = """
import signal, sys
from importlib import import_module
from siglip_onnx import __main__
def interrupt(*_): signal.raise_signal(signal.SIGINT)
if sys.argv[1] == "before":
    __main__.import_module = interrupt
    __main__.main()
try:
    __main__.main()
finally:
    interrupt()
"""
    for words in (["before"], ["--help"]):
        with start([sys.executable, "-c", code, *words], tmp_path) as process:
            assert process.communicate(timeout=30)[1] == INTERRUPTED
        assert process.returncode == 130


def test_interrupt_in_a_destructor_is_repeated(tmp_path: Path) -> None:
    """Python only prints an exception there, so that the command would go on."""
    code = """
import signal, time
from siglip_onnx import __main__, cli
class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
@cli.main.command("wait")
def wait():
    Interrupted()
    time.sleep(60)
cli.load_command = lambda name: wait
__main__.main()
"""
    with start([sys.executable, "-c", code, "wait"], tmp_path) as process:
        assert process.communicate(timeout=30)[1] == INTERRUPTED
    assert process.returncode == 130


@pytest.fixture
def _default_handler() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_handler")
def test_interrupts_are_deferred_to_the_end_of_the_block() -> None:
    steps = []

    def interrupt() -> None:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            steps.append("inside")
        steps.append("after")

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert steps == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_deferred():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal masks")
def test_children_are_uninterrupted() -> None:
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with children_uninterrupted():
        assert subprocess.check_output([sys.executable, "-c", code]) == b"True\n"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"


@pytest.mark.usefixtures("_default_handler")
def test_decoder_that_starts_at_an_interrupt_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    pool = DecoderPool(ImageReader())
    with monkeypatch.context() as patch:
        patch.setattr("siglip_onnx.image.decoder_pool.subprocess.Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.read(STAR)
    (process,) = started
    assert process.returncode == -signal.SIGKILL
    assert process.stdin.closed
    assert process.stdout.closed
    assert pool._running == set()


@pytest.mark.usefixtures("_default_handler")
def test_interrupted_export_of_another_process_leaves_nothing(small_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("Writing int8"):
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps("siglip_onnx.export", [str(small_checkpoint), str(tmp_path / "out"), "int8"], interrupt)
    assert list(tmp_path.iterdir()) == []


def test_process_is_ended_when_its_report_fails(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\nprint('began', flush=True)\ntime.sleep(600)")

    def fail(_line: str) -> None:
        raise SiglipOnnxError("stop")

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with pytest.raises(SiglipOnnxError, match="stop"):
            run_steps("endless", [], fail)
    assert time.monotonic() - began < 60
