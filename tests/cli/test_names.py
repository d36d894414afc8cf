"""Names that are not UTF-8, hold line feeds or terminal escapes, or are long; consoles of other encodings."""

import csv
import io
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from support.images import make_image

from siglip_onnx.bulk.job import open_job
from siglip_onnx.cli import _OneLine, main
from siglip_onnx.cli.output import format_table, print_csv, print_json, print_json_list, print_paths
from siglip_onnx.errors import ImageError, SiglipOnnxError, printable
from siglip_onnx.image import load_image

NAMES = (b"caf\xe9.png", b"two\nlines.png", b"red\x1b[31m.png", b"\xe2\x80\xaegnp.png", "夕焼け😀.png".encode(),
         b"tab\t.png", b"x" * 251 + b".png")  # fmt: skip
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of an odd name with images of odd names, two of which are broken."""
    folder = tmp_path / os.fsdecode(b"odd\xe9\n\x1b[1mfolder")
    folder.mkdir()
    for number, name in enumerate(NAMES):
        make_image(np.random.default_rng(number), (24, 17)).save(folder / os.fsdecode(name))
    (folder / os.fsdecode(b"broken\xe9\x1b]0;title\x07\n.png")).write_text("not an image")
    (folder / "gone\x1b[2J.png").symlink_to("nowhere")
    return folder


def run(encoding: str, *arguments: object, code: int = 0) -> Result:
    result = CliRunner(charset=encoding).invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.stderr, result.exception)
    assert not UNSAFE.search(result.stderr)
    return result


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp932", "ascii"])
def test_every_command_prints_odd_names(encoding: str, odd: Path, small_bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode("モデル\x1b[31m".encode())
    shutil.copytree(small_bundle, model)
    images = sorted(odd.iterdir())
    with_model = ("--model", model)
    texts = ("--text", "夕焼け", "--text", "red\x1b[31m\nstar")
    table = run(encoding, "classify", *images, *texts, *with_model, code=3)
    assert not UNSAFE.search(table.stdout)
    document = json.loads(run(encoding, "classify", *images, *texts, *with_model, "--json", code=3).stdout)
    assert [result["image"] for result in document["results"]] == [str(path) for path in images]
    lines = run(encoding, "classify", *images, *texts, *with_model, "--jsonl", code=3).stdout.splitlines()
    assert [json.loads(line)["image"] for line in lines] == [str(path) for path in images]
    run(encoding, "classify", *images, *texts, *with_model, "--csv", code=3)
    run(encoding, "embed", *images, *with_model, "--out", odd / "x.npy", code=3)
    out = tmp_path / os.fsdecode(b"out\xe9\n")
    embedded = run(encoding, "embed", odd, *with_model, "--out", out, code=3)
    assert not UNSAFE.search(embedded.stdout)
    assert len(embedded.stdout.splitlines()) == 1
    summary = json.loads(run(encoding, "embed", odd, *with_model, "--out", out, "--json", code=3).stdout)
    assert summary["vectors"] == len(NAMES)
    found = run(encoding, "search", out, "夕焼け", *with_model, "--html", tmp_path / os.fsdecode(b"\xe9.html"))
    assert len(found.stdout.splitlines()) == 2 + len(NAMES)
    assert not UNSAFE.search(found.stdout)
    hits = json.loads(run(encoding, "search", out, "夕焼け", *with_model, "--json").stdout)["results"]
    assert {os.fsencode(hit["path"]) for hit in hits} == {os.fsencode(odd / os.fsdecode(name)) for name in NAMES}
    run(encoding, "duplicates", out)
    run(encoding, "info", *with_model)
    run(encoding, "models", "check", model)
    run(encoding, "classify", "x" * 5000, images[1], "--text", "a", *with_model, code=3)
    run(encoding, "embed", odd, "--out", odd / "red\x1b[31m.npy", *with_model, code=2)
    run(encoding, "info", "--model", tmp_path / "no\x1b[31m\n", code=4)


FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", 'quoted"\n', "\r", "a,b", "")


def test_csv_for_other_programs_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [os.fsdecode(name) for name in (*NAMES, b"\xe9\xff", *map(str.encode, FORMULAS))]
    runner = CliRunner()
    with runner.isolation() as streams:
        print_csv([("name", "number"), *((name, 0.1) for name in names)])
        written = streams[0].getvalue()
    with io.TextIOWrapper(io.BytesIO(written), "utf-8", "surrogateescape", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "number"]
    assert [name for name, _ in rows] == names
    with runner.isolation() as streams:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        print_csv([(name,) for name in names])
        shown = streams[0].getvalue().decode()
    assert not UNSAFE.search(shown)
    assert r"red\x1b[31m.png" in shown


@pytest.mark.parametrize("items", [[], [{"a": []}], [{"text": "星\n", "rows": [1, {"b": None}]}, {}, 3]])
def test_json_in_parts_is_the_json_of_the_whole(items: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"model": "a]b", "templates": []}
    print_json(facts | {"results": items})
    whole = capsys.readouterr().out
    print_json_list(facts, "results", iter(items))
    assert capsys.readouterr().out == whole


def test_paths_that_begin_with_a_dash_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["-rf.png", "--out", "a.png", os.fsdecode(b"-\xe9\x1b[31m")]
    with CliRunner().isolation() as streams:
        print_paths([str(tmp_path / name) for name in names], null=True)
        written = streams[0].getvalue()
    assert written.split(b"\0")[:-1] == [b"./-rf.png", b"./--out", b"a.png", b"./-\xe9\x1b[31m"]


def test_what_a_terminal_would_obey_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """For other programs it is exact."""
    names = [name.decode() for name in NAMES[1:]] + ["\x9b31m", "\x7f", "星\u3000\N{ZERO WIDTH JOINER}"]
    runner = CliRunner()
    for is_terminal in (True, False):
        with runner.isolation() as streams:
            monkeypatch.setattr(sys.stdout, "isatty", lambda shown=is_terminal: shown)
            print_json(names)
            document = streams[0].getvalue().decode()
        assert json.loads(document) == names
        assert "星\u3000\N{ZERO WIDTH JOINER}" in document
        with runner.isolation() as streams:
            monkeypatch.setattr(sys.stdout, "isatty", lambda shown=is_terminal: shown)
            print_paths(names, null=True)
            paths = streams[0].getvalue()
        assert (b"\x1b" in paths) is not is_terminal
        if is_terminal:
            assert not UNSAFE.search(document)
            assert not UNSAFE.search(paths.replace(b"\0", b"\n").decode())
        else:
            assert paths.split(b"\0")[:-1] == [os.fsencode(name) for name in names]


@pytest.mark.parametrize("layout", ["clip-retrieval", "parquet"])
def test_parquet_holds_odd_names(layout: str, odd: Path, small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    run("utf-8", "embed", odd, "--model", small_bundle, "--out", out, "--layout", layout, code=3)
    assert len(open_job(out).read_vectors(0)) == len(NAMES)


def test_messages_of_errors_are_one_safe_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "a\x1b[31m\nb.png")
    assert str(caught.value).endswith(r"a\x1b[31m\nb.png does not exist; give the path of an image.")
    assert str(SiglipOnnxError("a\x07b")) == r"a\x07b"
    assert printable(os.fsdecode(b"\xff\n\x1b\x7f\xc2\x9b")) == r"\xff\n\x1b\x7f\x9b"
    assert (
        printable("夕焼け 😀 \N{ZERO WIDTH JOINER}é\N{IDEOGRAPHIC SPACE}")
        == "夕焼け 😀 \N{ZERO WIDTH JOINER}é\N{IDEOGRAPHIC SPACE}"
    )
    assert printable("\u202egnp.exe\u2028") == r"\u202egnp.exe\u2028"


def test_log_lines_and_tables_are_safe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("siglip_onnx", logging.INFO, "", 0, "downloading %s", ("a\x1b[31m\nb",), None)
    assert _OneLine("siglip-onnx: %(message)s").format(record) == r"siglip-onnx: downloading a\x1b[31m\nb"
    assert format_table(("a\n",), [["b\x1b"]]).splitlines() == [r"a\n", r"b\x1b"]
    deep: Any = Image.fromarray(np.full((4, 4), 999, np.uint16))
    path = tmp_path / "deep\x1b[31m.png"
    deep.save(path)
    load_image(path)
    assert r"deep\x1b[31m.png has levels beyond 8 bits" in caplog.messages[0]
