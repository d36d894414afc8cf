"""Python files of the folder that a command is called in are data: no process of a command imports them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.commands import run_process
from support.images import make_image

from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.system.frozen import module_command, python_command
from siglip_onnx.system.steps import run_steps

MODULES = ("multiprocessing", "numpy", "json", "runpy", "onnx", "onnxruntime", "PIL", "click", "pickle")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of images that is the current one, with modules and packages that leave a mark if imported."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    code = f"open({str(tmp_path / 'marks')!r}, 'a').write(__name__ + '\\n'); raise SystemExit('executed')"
    for name in MODULES:
        (folder / f"{name}.py").write_text(code)
    (folder / "siglip_onnx").mkdir()
    (folder / "siglip_onnx" / "__init__.py").write_text(code)
    for number in range(3):
        make_image(np.random.default_rng(number)).save(folder / f"{number}.png")
    monkeypatch.chdir(folder)
    return folder


def run_as_installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its script does, which lies elsewhere."""
    script = folder.parent / "siglip-onnx.py"
    script.write_text(
        "import sys\nfrom siglip_onnx.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ("search", ".", "a red star", "-k", "1"),
        ("duplicates", "."),
        ("embed", ".", "--out", "../out", "--workers", "2"),
        ("classify", "0.png", "--text", "a", "--isolate-decoding"),
        ("evaluate", "demo", "labels.csv", "--variant", "int8"),
        ("bench", "demo", "--quick"),
    ],
    ids=lambda words: words[0],
)
def test_commands_execute_nothing_of_the_current_folder(words: tuple[str, ...], folder: Path) -> None:
    (folder / "labels.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    result = run_as_installed(folder, *words)
    assert not (folder.parent / "marks").exists(), (folder.parent / "marks").read_text()
    assert result.returncode == 0, result.stderr


def test_modules_are_found_where_this_process_finds_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [folder.parent, "a\0b", *sys.path])  # which Python ignores
    for command in (module_command("json.tool", "--help"), python_command("import numpy, json; print(json.dumps(1))")):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    lines: list[str] = []
    assert run_steps("json.tool", ["--help"], lines.append).exit_code == 0
    assert "usage" in lines[0]
    (folder.parent / "own").mkdir()
    (folder.parent / "own" / "own_module.py").write_text("import sys; print(sys.argv[1:], __name__)")
    first = module_command("own_module", "a", "b", first=[folder.parent / "own"])
    assert subprocess.run(first, capture_output=True, text=True, check=True).stdout == "['a', 'b'] __main__\n"
    assert not (folder.parent / "marks").exists()


def test_a_long_search_path_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One argument may have 128 kB on Linux, and Bazel gives each package a folder."""
    long_path = [f"/nowhere/{number:0100d}" for number in range(2000)]
    monkeypatch.setattr(sys, "path", [*sys.path, *long_path])
    command = python_command("print(sys.path[-1])")
    assert subprocess.check_output(command, text=True).strip() == long_path[-1]


def test_without_an_interpreter_no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)  # as where a program embeds Python
    with pytest.raises(SiglipOnnxError, match=r"sys\.executable is empty"):
        python_command("")


def test_the_mark_of_an_import_is_seen(folder: Path) -> None:
    """Python itself executes them where it is asked to."""
    assert "executed" in run_process("info").stderr
    assert (folder.parent / "marks").exists()
