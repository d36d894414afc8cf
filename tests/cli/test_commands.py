"""The table of commands: what it imports and says, how commands start and end; files of texts and folders of images."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from support.images import make_image

import siglip_onnx.cli
from siglip_onnx.cli import COMMANDS, inputs, load_command, main
from siglip_onnx.cli.inputs import find_images, read_texts
from siglip_onnx.cli.options import RenamedOption
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import ImageError, SiglipOnnxError, TextError

FOLDER = Path(siglip_onnx.cli.__file__).parent
STAR = str(IMAGES_PATH / "red_star.png")


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_of_the_table_is_that_of_the_command(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    assert COMMANDS[name] == command.get_short_help_str(limit=200)


def test_every_file_of_a_command_is_in_the_table() -> None:
    with_command = {
        path.stem
        for path in FOLDER.glob("*.py")
        if any(text in path.read_text(encoding="utf-8") for text in ("\n@click.command(", "\n@click.group()"))
    }
    assert with_command | {"bench"} == set(COMMANDS)


def test_summaries_are_whole_on_80_columns() -> None:
    text = subprocess.check_output(
        [sys.executable, "-m", "siglip_onnx", "--help"], text=True, env=os.environ | {"COLUMNS": "80"}
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("Commands:")[1]
    joined = " ".join(text.split())
    assert all(f"{name} {summary}" in joined for name, summary in COMMANDS.items())


@pytest.mark.parametrize("name", ["bench", "models"])
def test_summaries_of_subcommands_are_whole_on_80_columns(name: str) -> None:
    text = CliRunner().invoke(main, [name, "--help"], terminal_width=80).stdout
    assert "..." not in text.split("Commands:")[1]


def test_few_functions_import() -> None:
    """Only optional extras, and what would make a light command heavy."""
    importing = {
        f"{path.name}: {function.name}"
        for path in FOLDER.glob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function))
    }
    assert len(importing) <= 9, importing


def test_help_needs_no_extra() -> None:
    blocked = ("fastapi", "matplotlib", "onnx", "onnx_ir", "pyarrow", "ray", "torch", "usearch")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from siglip_onnx.cli import main\n"
    code += f"for name in {list(COMMANDS)}: main([name, '--help'], standalone_mode=False)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).count("Usage: ") == len(COMMANDS)


def test_a_mistyped_command_is_guessed() -> None:
    result = CliRunner().invoke(main, ["clasify"])
    assert result.exit_code == 2
    assert "No such command 'clasify'" in result.stderr


def test_old_names_are_accepted_and_hidden() -> None:
    @click.command()
    @click.option("--new", "--old", cls=RenamedOption, metavar="X", help="Help.")
    def command(new: str) -> None:
        click.echo(new)

    runner = CliRunner()
    assert runner.invoke(command, ["--old", "1"]).stdout == runner.invoke(command, ["--new", "1"]).stdout == "1\n"
    assert "  --new X  Help." in runner.invoke(command, ["--help"]).stdout
    assert "--old" not in runner.invoke(command, ["--help"]).stdout
    models = runner.invoke(main, ["models", "--help"]).stdout
    assert "check" in models
    assert "verify" not in models
    assert runner.invoke(main, ["models", "verify", "demo"]).stdout == "demo: all files match the manifest\n"
    assert runner.invoke(main, ["models", "check", "demo"]).stdout == "demo: all files match the manifest\n"


def test_a_damaged_package_ends_with_one_message() -> None:
    code = "import sys; sys.modules['tokenizers'] = None; from siglip_onnx.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + f"main(['classify', {STAR!r}, '--text', 'a'])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "tokenizers" in done.stderr
    assert "A package is missing or damaged; install it again, or run: pip install " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&- <&-", "2>&1 | true", "2>/dev/full", ">/dev/full"])
@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["info"], 0), (["classify", "/nowhere.png"], 1)])
def test_closed_and_full_streams(tmp_path: Path, redirection: str, arguments: list[str], code: int) -> None:
    words = [*arguments, "--text", "a"] if arguments[0] == "classify" else arguments
    script = f'exec 3>"$0"; "$@" 2>&3 {redirection}' if "2>" not in redirection else f'"$@" {redirection}'
    log = tmp_path / "stderr"
    done = subprocess.run(
        ["/bin/bash", "-c", script, log, sys.executable, "-m", "siglip_onnx", *words],
        check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    errors = done.stderr + (log.read_text() if log.exists() else "")
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    if "full" not in redirection and "|" not in redirection:
        assert done.returncode == code


def test_errors_of_a_file_are_not_errors_of_a_text(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.txt", "does not exist"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(SiglipOnnxError, match=message) as raised:
            read_texts([], path)
        assert not isinstance(raised.value, TextError)


def test_unreadable_images_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "b.png", "deep/c.webp", "cut.jpg", "cut.png"):
        make_image(rng, (500, 400)).save(tmp_path / name)
    for name in ("cut.jpg", "cut.png"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "notes.txt").write_text("not an image")
    assert [path.name for path in find_images(tmp_path, "--images")] == ["a.jpg", "b.png", "c.webp"]
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(" is ")[0]).name for line in lines] == ["cut.jpg", "cut.png", "notes.txt"]
    assert all(line.startswith("siglip-onnx: skipped: ") for line in lines)


def test_jpegs_are_checked_at_an_eighth_of_their_size(tmp_path: Path) -> None:
    make_image(np.random.default_rng(4), (1600, 800)).save(tmp_path / "a.jpg")
    assert inputs._CHECK.read(tmp_path / "a.jpg").rgb.size == (200, 100)


def test_a_sample_is_spaced_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    assert [path.stem for path in find_images(tmp_path, "--images", at_most=3)] == ["0", "3", "6"]
    assert "using 3 of the 10 files" in capsys.readouterr().err


def test_a_folder_without_images(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "is not a folder"), (tmp_path, "contains no readable image")):
        with pytest.raises(SiglipOnnxError, match=f"{message}; --images expects a folder of images") as raised:
            find_images(folder, "--images")
        assert not isinstance(raised.value, ImageError)
