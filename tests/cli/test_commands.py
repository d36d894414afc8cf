"""The table of commands: what it imports and says, how commands start and end; files of texts and folders of images."""

import ast
import os
import re
import shlex
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
from siglip_onnx.cli import COMMANDS, load_command, main
from siglip_onnx.cli.inputs import find_images, read_texts
from siglip_onnx.cli.options import RenamedOption
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import ImageError, SiglipOnnxError, TextError
from siglip_onnx.image import load_image

FOLDER = Path(siglip_onnx.cli.__file__).parent
STAR = str(IMAGES_PATH / "red_star.png")


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_of_the_table_is_that_of_the_command(name: str) -> None:
    command = load_command(name)
    assert command.name == name
    assert COMMANDS[name] == command.get_short_help_str(limit=200)


def test_every_file_of_a_command_is_in_the_table() -> None:
    with_command = {
        path.stem.removesuffix("_")  # of `import`, a keyword
        for path in FOLDER.glob("*.py")
        if any(text in path.read_text(encoding="utf-8") for text in ("\n@click.command(", "\n@click.group("))
    }
    assert with_command - {"__init_"} == set(COMMANDS)


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


def all_commands() -> dict[str, click.Command]:
    """Return every command and group by the words that run it, without the program's name."""
    commands: dict[str, click.Command] = {"": main}
    for name in COMMANDS:
        commands[name] = command = load_command(name)
        if isinstance(command, click.Group):
            commands |= {f"{name} {child}": command.commands[child] for child in command.commands}
    return {words: command for words, command in commands.items() if not command.hidden}


ALL_COMMANDS = all_commands()


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_help_has_sections_and_two_examples_that_fit_and_parse(words: str) -> None:
    text = CliRunner().invoke(main, [*words.split(), "--help"], terminal_width=80).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "\nOptions:\n" in text
    examples = [line.strip() for line in text.partition("\nExamples:\n")[2].splitlines()]
    assert len(examples) >= 2
    for example in examples:
        arguments = shlex.split(re.split(r" [|>] ", example[example.index("siglip-onnx") :])[0])[1:]
        assert example.count("siglip-onnx") == 1
        assert f"{' '.join(arguments)} ".startswith(f"{words} ".lstrip())
        command: click.Command = main
        while isinstance(command, click.Group):
            name, command, arguments = command.resolve_command(click.Context(command), arguments)
            if name == "bench" and arguments[0] not in ("run", "compare", "report"):
                arguments = ["run", *arguments]
        with command.make_context(name, arguments) as context:
            assert context.args == []


def test_one_name_for_one_thing() -> None:
    """Texts from a file, a model, a variant and a folder have the same option everywhere; old names are aliases."""
    name_classes = ("evaluate", "calibrate", "fit")  # with --labels, which is no list of texts
    commands = [command for words, command in ALL_COMMANDS.items() if words not in name_classes]
    options = {param.opts[0]: param for command in commands for param in command.params}
    assert not {"--texts", "--labels", "--precision", "--cache"} & set(options)
    for words in (
        "verify",
        "bench run",
        "compile",
        "evaluate",
        "info",
        "classify",
        "embed",
        "search",
        "duplicates",
        "web",
    ):
        assert "--model" in [name for param in ALL_COMMANDS[words].params for name in param.opts], words
    for words, alias in (
        ("verify", "--texts"), ("bench run", "--texts"), ("compile", "--labels"), ("export", "--precision"),
        ("import", "--precision"),
    ):  # fmt: skip
        assert alias in [name for param in ALL_COMMANDS[words].params for name in param.opts]
        assert f"{alias} " not in CliRunner().invoke(main, [*words.split(), "--help"]).stdout


def test_a_model_is_an_argument_or_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["info", "demo"]).stdout == runner.invoke(main, ["info", "--model", "demo"]).stdout
    both = runner.invoke(main, ["info", "demo", "--model", "demo"])
    assert (both.exit_code, "There are two models, one of them with --model" in both.stderr) == (2, True)
    data = runner.invoke(main, ["evaluate", "--model", "demo", "/nowhere"])
    assert data.stderr == runner.invoke(main, ["evaluate", "demo", "/nowhere"]).stderr != ""
    assert "Missing argument 'DATA'" in runner.invoke(main, ["evaluate", "demo"]).stderr
    none = runner.invoke(main, ["verify"])
    assert (none.exit_code, "Missing argument 'MODEL'" in none.stderr) == (2, True)
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", "/nowhere")
    assert "Model '/nowhere' was not found" in runner.invoke(main, ["verify"]).stderr
    assert runner.invoke(main, ["info", "demo"]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("siglip-onnx cl", {"plain,classify"}),
        ("siglip-onnx classify a.jpg --model siglip2-base-patch16-2", {"plain,siglip2-base-patch16-224"}),
        ("siglip-onnx info de", {"plain,demo", "dir,de"}),
        ("siglip-onnx models pull siglip-so400m-patch14-3", {"plain,siglip-so400m-patch14-384"}),
        ("siglip-onnx search photos --vari", {"plain,--variant"}),
        ("siglip-onnx search photos --variant f", {"plain,fp32", "plain,fp16"}),
        ("siglip-onnx classify phot", {"file,phot"}),
    ],
)  # fmt: skip
def test_shells_complete_commands_options_and_models(words: str, expected: set[str]) -> None:
    variables = {
        "_SIGLIP_ONNX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = "from siglip_onnx.cli import main; main(prog_name='siglip-onnx')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables, check=False
    )
    assert done.stderr == ""
    assert expected <= set(done.stdout.split())


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


def test_commands_load_with_a_click_whose_choices_are_not_generic() -> None:
    """Those of 8.1 are not, which many packages pin; with 8.1 itself the commands are run by hand."""
    code = "import click; click.Choice.__class_getitem__ = None; from siglip_onnx.cli import COMMANDS, load_command\n"
    code += "for name in COMMANDS: load_command(name)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


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
        assert done.returncode == (1 if ">&-" in redirection.split() else code), "results are not lost silently"


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


def test_photos_of_too_many_pixels_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A check at a reduced scale would accept JPEGs of four times as many pixels."""
    for name, side in (("large.jpg", 9460), ("small.jpg", 40)):
        Image.new("L", (side, side)).save(tmp_path / name)
    (found,) = find_images(tmp_path, "--images")
    assert found.name == "small.jpg"
    assert load_image(found).size == (40, 40)
    line = capsys.readouterr().err
    assert line.startswith("siglip-onnx: skipped: ")
    assert line.endswith("has 9460x9460 pixels, more than the 89,478,485 allowed; resize it.\n")


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
