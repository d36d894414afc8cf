"""The command line: exact output, exit codes, and no traceback for any input."""

import csv
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_error, command, run
from support.waiting import interrupt

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.model import SigLIP
from siglip_onnx.session import LazySession

RED_STAR = str(IMAGES_PATH / "red_star.png")


@pytest.fixture
def fixed_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(_self: SigLIP, images: Any, _texts: Any, **_options: Any) -> Any:
        return np.repeat(np.array([[2.0, -1.5, -12.25]], np.float32), len(images), axis=0)

    monkeypatch.setattr(SigLIP, "logits", logits)


@pytest.mark.usefixtures("fixed_logits")
def test_table_is_exact_and_wide_characters_align(small_bundle: Path) -> None:
    result = run("classify", RED_STAR, "--model", small_bundle, "--text", "a cat", "--text", "赤い丸", "--text", "é")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == (
        f"{RED_STAR}\n"
        "text     logit  probability  relative\n"
        "a cat     2.00       88.1 %    97.1 %\n"
        "赤い丸   -1.50       18.2 %     2.9 %\n"
        "é       -12.25      < 0.1 %   < 0.1 %\n"
    )


@pytest.mark.usefixtures("fixed_logits")
def test_json_is_one_document(small_bundle: Path) -> None:
    result = run("classify", RED_STAR, "--json", "--model", small_bundle, "--text", "a", "--text", "赤", "--text", "c")
    document = json.loads(result.stdout)
    assert document["model"] == "small"
    assert document["variant"] == "int8"
    assert document["templates"] == ["{}"]
    (found,) = document["results"]
    assert found["image"] == RED_STAR
    assert [match["text"] for match in found["matches"]] == ["a", "赤", "c"]
    assert [match["logit"] for match in found["matches"]] == [2.0, -1.5, -12.25]
    assert found["matches"][0]["probability"] == pytest.approx(0.880797)
    assert sum(match["relative"] for match in found["matches"]) == pytest.approx(1)


@pytest.mark.usefixtures("fixed_logits")
def test_csv_has_a_line_per_image_and_text(small_bundle: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\ufeffa, b\n\n  赤い丸  \nc\n", encoding="utf-8")
    result = run("classify", RED_STAR, RED_STAR, "--csv", "--model", small_bundle, "--texts-file", texts)
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0] == ["image", "text", "logit", "probability", "relative", "error"]
    assert [row[:2] for row in rows[1:]] == [[RED_STAR, text] for text in ("a, b", "赤い丸", "c")] * 2
    assert float(rows[1][2]) == 2.0


def test_threshold_bias_and_template_ensemble(small_bundle: Path) -> None:
    arguments = ["classify", RED_STAR, "--json", "--model", small_bundle, "--text", "cat", "--text", "dog"]
    templates = ["a {}", "my {}."]
    result = run(*arguments, "--template", templates[0], "--template", templates[1], "--logit-bias", "3.5")
    expected = siglip_onnx.load(small_bundle).classify(RED_STAR, ["cat", "dog"], template=templates, logit_bias=3.5)
    expected.sort(key=lambda match: -match.logit)
    assert json.loads(result.stdout)["results"][0]["matches"] == [match._asdict() for match in expected]
    assert json.loads(run(*arguments, "--threshold", "1").stdout)["results"][0]["matches"] == []


def test_cached_texts_need_no_text_tower(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["classify", RED_STAR, "--json", "--text", "cat", "--text", "赤い丸", "--model", small_bundle]
    first = run(*arguments, "--label-cache", tmp_path / "cache")

    def vision_only(session: LazySession) -> Any:
        assert session._path.name.startswith("vision")
        return real(session)

    real = LazySession._load
    monkeypatch.setattr(LazySession, "_load", vision_only)
    monkeypatch.setattr("siglip_onnx.text_tower.Tokenizer", None)
    second = run(*arguments, "--cache", tmp_path / "cache")  # the name of version 0.1
    assert second.exit_code == 0
    assert second.stdout == first.stdout
    monkeypatch.undo()
    unwritable = tmp_path / "file"
    unwritable.touch()
    refused = run("classify", RED_STAR, "--text", "a", "--model", small_bundle, "--cache", unwritable)
    assert_error(refused, 1, "cannot be written")


def test_demo_model_answers_and_says_what_it_knows() -> None:
    result = run("classify", RED_STAR, "--text", "a red star", "--text", "a blue circle")
    assert result.exit_code == 0
    first, second = result.stderr.splitlines()
    assert first.startswith("Using the demo model, which knows only colored shapes")
    assert second == (
        "For photographs: siglip-onnx models pull siglip2-base-patch16-224, then --model siglip2-base-patch16-224"
    )


def test_model_from_the_environment(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", str(small_bundle))
    result = run("classify", RED_STAR, "--text", "a", "--json")
    assert json.loads(result.stdout)["model"] == "small"
    assert result.stderr == ""


def test_unreadable_images_do_not_stop_the_others(small_bundle: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    arguments = ("--model", small_bundle, "--text", "a", "--json")
    some = run("classify", empty, RED_STAR, *arguments)
    assert some.exit_code == 3
    broken, good = json.loads(some.stdout)["results"]
    assert broken == {
        "image": str(empty),
        "error": f"{empty} is empty (0 bytes); expected an image file.",
        "status": "decode_error",
    }
    assert good["matches"]
    assert some.stderr == f"siglip-onnx: {broken['error']}\n"
    assert run("classify", empty, *arguments).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["classify", RED_STAR], 2, "There are no texts to compare with; give --text TEXT or --texts-file FILE."),
        (["classify", "--text", "a"], 2, "Missing argument 'IMAGE...'"),
        (["classify", RED_STAR, "--text", "a", "--model", "/nowhere"], 4, "Model '/nowhere' was not found"),
        (["classify", RED_STAR, "--text", "a", "--model", "/"], 4, "/ is not a model bundle"),
        (["classify", RED_STAR, "--text", "a", "--variant", "q4"], 4, "has no variant 'q4'; it has fp32, int8"),
        (["classify", RED_STAR, "--text", "a", "--provider", "Nope"], 1, "Execution provider Nope is not available"),
        (["classify", RED_STAR, "--text", "a", "--template", "x"], 1, "The template 'x' has no {}"),
        (["classify", RED_STAR, "--text", "x" * 100_000], 1, "has 100,000 characters; at most 20,000"),
        (["classify", RED_STAR, "--texts-file", "/nowhere.txt"], 1, "/nowhere.txt does not exist"),
        (["embed", "--out", "x.npy"], 2, "Give either images, or texts"),
        (["embed", RED_STAR, "--out", "vectors.v1"], 2, "give a file name that ends with .npy"),
        (["classify", RED_STAR, "--text", "a", "--threads", "100000"], 2, "1<=x<=512"),
        (["classify", RED_STAR, "--text", "a", "--threshold", "2"], 2, "0<=x<=1"),
        (["classify", RED_STAR, "--text", "a", "--logit-bias", "nan"], 1, "logit_bias is nan"),
        (["classify", RED_STAR, "--text", "a", "--threshold", "nan"], 2, "'nan' is not a finite number"),
        (["classify", RED_STAR, "--text", "a", "--max-megapixels", "nan"], 2, "'nan' is not a finite number"),
        (["web", "--host", "a..b", "--port", "0"], 1, "a..b port 0 cannot be listened on"),
        pytest.param(["compile", "demo", "--labels", Path(RED_STAR).parent.parent / "texts.txt", "--logit-bias", "nan",
                      "-o", "x.onnx"], 1, "logit_bias is nan", marks=pytest.mark.export),
        (["embed", RED_STAR, "--text", "a", "--out", "x.npy"], 2, "Give either images, or texts"),
        (["classify", "/nowhere.png", "--text", "a", "--model", "/nowhere"], 1, "/nowhere.png does not exist"),
        (["classify", "/nowhere/*.png", "--text", "a"], 1, "No file matches '/nowhere/*.png'"),
        (["classify", "@/nowhere", "--text", "a"], 1, "The list /nowhere cannot be read: No such file"),
        (["classify", "-", "-", "--text", "a"], 2, "- is given twice, but stdin has one image"),
        (["embed", "nofolder", "--out", "x", "--model", "/nowhere"], 1, "nofolder does not exist; give an image, or a"),
        (["embed", IMAGES_PATH, "nofolder", "--out", "x"], 1, "nofolder does not exist; give an image, or a folder"),
        (["embed", IMAGES_PATH, RED_STAR, "--out", "x"], 2, "Give either single images, or folders and lists"),
        (["embed", "none.txt", "--out", "x", "--model", "/nowhere"], 1, "The list none.txt cannot be read: No such"),
        (["embed", RED_STAR, "--out", "/nowhere/x.npy"], 1, "/nowhere is not a folder; create it first"),
        (["info", "--model", "/nowhere"], 4, "Model '/nowhere' was not found"),
        pytest.param(["export", "/nowhere", "never"], 4, "/nowhere does not exist; expected a checkpoint folder",
                     marks=pytest.mark.export),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_wrong_input_ends_with_one_message(arguments: list[str], exit_code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--text", "x" * 100_000], 1, "has 100,000 characters"),
        (["--text", "a", "--template", "x"], 1, "has no {}"),
        (["--text", "a", "--provider", "AzureExecutionProvider"], 1, "AzureExecutionProvider"),
        (["--text", b"caf\xe9"], 1, "lone surrogate"),
    ],
)
def test_real_processes_end_with_one_message(arguments: list[str | bytes], exit_code: int, message: str) -> None:
    """The tower that loads in the background must not bring the interpreter down."""
    words: list[str | bytes] = [sys.executable, "-m", "siglip_onnx", "classify", RED_STAR, *arguments]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == exit_code
    assert message in found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    assert len(found.stderr.splitlines()) == 3  # two about the demo model


def test_interrupt_while_a_tower_loads_is_clean(small_bundle: Path) -> None:
    words = command("classify", *[RED_STAR] * 6000, "--text", "a", "--model", small_bundle)
    for delay in (0.3, 0.6, 1.0):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a background job ignores it
        ) as process:  # fmt: skip
            time.sleep(delay)
            error = interrupt(process)
        assert process.returncode in (130, -signal.SIGINT)  # the latter while Python itself still starts
        assert "terminate called" not in error


@pytest.mark.parametrize("words", [["classify", "images", "--text", "a"], ["embed", "images", "--out", "vectors"]])
def test_a_second_interrupt_ends_at_once(words: list[str], small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(300):
        shutil.copy(RED_STAR, tmp_path / "images" / f"{number}.png")
    for delay, pause in ((0.5, 0.0), (1.0, 0.01), (1.5, 0.1)):
        with subprocess.Popen(
            command(*words, "--model", small_bundle), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        ) as process:  # fmt: skip
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=60)[1]
        assert process.returncode in (130, -signal.SIGINT, 0)  # 0: it was done before
        assert not [word for word in ("terminate called", "Traceback", "Fatal", "ignored") if word in error], error


def test_a_second_interrupt_while_threads_end() -> None:
    """The first Ctrl-C ends the command; Python then waits for a thread, until the second one."""
    code = """
import signal, threading, time
from siglip_onnx import cli
@cli.main.command("wait")
def wait():
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("ready", flush=True)
    time.sleep(60)
cli.load_command = lambda name: wait
cli.main(["wait"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a background job ignores it
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "siglip-onnx: interrupted\n"
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 130


def test_only_messages_about_texts_are_shown_once() -> None:
    assert run("models", "list").exit_code == 0  # sets up the log
    (handler,) = logging.getLogger("siglip_onnx").handlers
    for name, passed in (("siglip_onnx.web.server", [True, True]), ("siglip_onnx.text.tokenizer", [True, False])):
        record = logging.LogRecord(name, logging.WARNING, "", 0, "the same", None, None)
        assert [bool(handler.filter(record)) for _ in range(2)] == passed


def test_output_that_cannot_be_written(small_bundle: Path) -> None:
    words = command("classify", RED_STAR, "--text", "a", "--model", small_bundle)
    for format_ in ([], ["--json"], ["--csv"]):
        with Path("/dev/full").open("w") as full:
            found = subprocess.run([*words, *format_], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert found.returncode == 1
        assert "No space left" in found.stderr
        assert "Traceback" not in found.stderr


def test_file_names_that_are_not_valid_unicode(small_bundle: Path, tmp_path: Path) -> None:
    image = os.fsencode(tmp_path) + b"/\xe9\xff.png"
    with open(image, "wb") as file:  # noqa: PTH123 - a Path cannot hold these bytes
        Image.new("RGB", (8, 8)).save(file, "PNG")
    words = command()
    for arguments in (["classify", image, "--text", "a", "--json"], ["embed", image, "--out", tmp_path / "v.npy"]):
        found = subprocess.run([*words, *arguments, "--model", small_bundle], capture_output=True, check=False)
        assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "v.jsonl").read_text())["row"] == 0


def test_image_from_a_pipe(small_bundle: Path) -> None:
    words = command("classify", "/dev/stdin", "--text", "a", "--model", small_bundle)
    found = subprocess.run(words, input=Path(RED_STAR).read_bytes(), capture_output=True, check=False)
    assert found.returncode == 0, found.stderr


def test_texts_files(small_bundle: Path, tmp_path: Path) -> None:
    """A form feed does not end a text."""
    texts = tmp_path / "texts.txt"
    texts.write_bytes("a\x0cb\r\n赤\u2028い\n".encode())
    document = json.loads(run("classify", RED_STAR, "--json", "--model", small_bundle, "--texts-file", texts).stdout)
    assert sorted(match["text"] for match in document["results"][0]["matches"]) == ["a\x0cb", "赤\u2028い"]
    texts.write_text("\n \n")
    assert "contains no text" in run("classify", RED_STAR, "--texts-file", texts).stderr
    texts.write_bytes("赤".encode("shift_jis"))
    assert "is not UTF-8" in run("classify", RED_STAR, "--texts-file", texts).stderr


def test_embed_images(small_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    result = run("embed", RED_STAR, "missing.png", RED_STAR, "--model", small_bundle, "--out", out)
    assert result.exit_code == 3
    vectors = np.load(out)
    np.testing.assert_array_equal(vectors, siglip_onnx.load(small_bundle).encode_images([RED_STAR, RED_STAR]))
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [0, None, 1]
    assert rows[1]["error"].startswith("missing.png does not exist")
    assert rows[0]["embedding_space"] == siglip_onnx.load(small_bundle).embedding_space


def test_embed_texts(small_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "texts.npy"
    result = run("embed", "--text", "a cat", "--text", "赤い丸", "--model", small_bundle, "--out", out, "--json")
    assert json.loads(result.stdout)["shape"] == [2, 64]
    np.testing.assert_array_equal(np.load(out), siglip_onnx.load(small_bundle).encode_texts(["a cat", "赤い丸"]))
    rows = out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[1])["text"] == "赤い丸"


def test_info_shows_the_contents_of_a_bundle(small_bundle: Path) -> None:
    facts = json.loads(run("info", "--model", small_bundle, "--json").stdout)
    assert facts["embedding_dim"] == 64
    assert (facts["picture"]["width"], facts["picture"]["height"]) == (32, 32)
    assert set(facts["variants"]) == {"fp32", "int8"}
    assert "CPUExecutionProvider" in facts["providers"]
    result = run("info", "--model", small_bundle, "--verify-files")
    assert result.exit_code == 0
    assert "int8 (default)" in result.stdout
    assert result.stderr == "All files match the manifest.\n"


def test_info_finds_a_changed_file(small_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert run("export", small_checkpoint, out).exit_code == 0
    tokenizer = out / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("NFKC", "NFKD"))
    assert_error(run("info", "--model", out, "--verify-files"), 4, "is damaged: tokenizer.json:")


def test_cut_texts_are_named_once_on_stderr(small_bundle: Path) -> None:
    result = run("classify", RED_STAR, "--model", small_bundle, "--text", "word " * 50, "--json")
    assert result.exit_code == 0
    assert result.stderr == f"siglip-onnx: Only the first 16 tokens of the text {'word ' * 8 + '…'!r} are read.\n"


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("siglip_onnx.cli.options.open_model", interrupt)
    result = run("classify", RED_STAR, "--text", "a")
    assert result.exit_code == 130
    assert result.stderr == "siglip-onnx: interrupted\n"


def test_damaged_graph_is_one_message(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is damaged but of the right size fails in the background load and at its first use, once."""
    monkeypatch.setattr("siglip_onnx.bundle.Bundle.check_unchanged", lambda *_: None)  # which would find it
    graph = copy / "onnx" / "vision_model_quantized.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    result = run("classify", RED_STAR, "--text", "a", "--model", copy)
    assert result.exit_code == 4
    assert result.stderr.count("siglip-onnx:") == 1
    assert "cannot be loaded" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("search", "", "a star"), ("classify", "", "--text", "a"), ("embed", "", "--out", "x"), ("duplicates", ""),
     ("embed", ".", "--out", ""), ("search", ".", "--image", ""), ("import", "", "x")],
    ids=str,
)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(arguments: tuple[str, ...]) -> None:
    """A shell makes it of a variable that is not set."""
    assert_error(run(*arguments), 2, "the path is empty")


@pytest.mark.parametrize(
    "arguments",
    [("info", ""), ("models", "check", ""), ("models", "strip", "", "--keep", "int8"), ("models", "push", "", "a/b"),
     ("classify", "x.png", "--text", "a", "--model", ""), ("web", "--model", "")],
    ids=str,
)  # fmt: skip
def test_an_empty_model_is_neither_the_current_folder_nor_the_default(arguments: tuple[str, ...]) -> None:
    assert_error(run(*arguments), 2, "the name is empty")


def test_threads_of_openblas_do_not_spin_at_the_start() -> None:
    """They would take 50 ms of CPU time in every process; what the user has set stays."""
    code = (
        "import atexit, os; from siglip_onnx.__main__ import main; "
        "atexit.register(lambda: print(os.environ['OPENBLAS_THREAD_TIMEOUT'])); main()"
    )
    for given, expected in (({}, "4"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")):
        command = [sys.executable, "-c", code, "--version"]
        variables = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
        done = subprocess.run(command, env=variables | given, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == expected
