"""``classify``: sources of images, order, formats, and rows as they are computed."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from support.commands import assert_error, command, run
from support.fake_internet import PUBLIC, FakeInternet, answering, response, serving_in_thread
from support.waiting import interrupt

import siglip_onnx
from siglip_onnx.cli import main
from siglip_onnx.cli.inputs import list_images
from siglip_onnx.cli.output import draw_bar, format_percent, format_table, shorten
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import SiglipOnnxError
from siglip_onnx.image.decoder_pool import DecoderPool

STAR, EGGS = IMAGES_PATH / "red_star.png", IMAGES_PATH / "six_eggs.png"
TEXTS = ("--text", "six eggs", "--text", "青い星", "--text", "a red star")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``photos`` of three images and two other files, in the current folder."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, source in (("star.png", STAR), ("deep/eggs.png", EGGS), ("b.png", STAR)):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "broken.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("photos/star.png\n\nphotos/none.png\n")
    monkeypatch.chdir(tmp_path)
    return folder


def names(*arguments: str, **options: Any) -> list[str]:
    result = CliRunner().invoke(main, ["classify", *arguments, "--text", "a red star", "--jsonl"], **options)
    return [json.loads(line)["image"] for line in result.stdout.splitlines()]


@pytest.mark.usefixtures("photos")
def test_folders_patterns_and_lists_keep_the_names_as_given() -> None:
    assert names("photos") == ["photos/b.png", "photos/broken.jpg", "photos/deep/eggs.png", "photos/star.png"]
    assert names("photos/*.png", "photos/deep") == ["photos/b.png", "photos/star.png", "photos/deep/eggs.png"]
    assert names("photos/**/e*.png") == ["photos/deep/eggs.png"]
    assert names("@photos/notes.txt") == ["photos/star.png", "photos/none.png"]
    result = run("classify", "photos", "--text", "a")
    assert "siglip-onnx: skipped 1 file without an image extension in photos." in result.stderr
    assert result.exit_code == 3


@pytest.mark.parametrize(
    "words", [("classify", "photos", "--text", "a"), ("search", "photos", "a"), ("duplicates", "photos")]
)
def test_what_a_folder_has_besides_its_images_is_named(words: tuple[str, ...], photos: Path) -> None:
    (photos / "album").symlink_to(photos / "deep")
    (photos / "a.cr2").touch()
    result = run(*words)
    assert "skipped 2 files without an image extension (1 RAW, 1 other) in photos. Convert RAW f" in result.stderr
    assert "did not follow 1 link to folders in photos.\n" in result.stderr
    assert "skipped" not in run("search", "photos", "a").stderr or words[0] == "classify"  # said once for an index


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "isolated"),
    [
        (["photos"], True),
        (["photos/*.png"], True),
        (["@photos/notes.txt"], True),
        (["photos/star.png", "photos/deep"], True),
        (["photos/star.png", "photos/b.png"], False),
        (["photos/star.png", "photos/b.gif"], True),
        (["photos/b.gif", "--no-isolate-decoding"], False),
        (["photos", "--no-isolate-decoding"], False),
        (["photos/star.png", "--isolate-decoding"], True),
    ],
)
def test_images_not_named_one_by_one_and_of_unusual_formats_are_decoded_in_processes_of_their_own(
    arguments: list[str], isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(STAR) as image:
        image.save("photos/b.gif")
    started: list[object] = []
    start = DecoderPool._start
    monkeypatch.setattr(DecoderPool, "_start", lambda pool: started.append(pool) or start(pool))
    assert names(*arguments)
    assert bool(started) == isolated


@pytest.mark.usefixtures("photos")
def test_images_of_patterns_are_embedded_in_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    start = DecoderPool._start
    monkeypatch.setattr(DecoderPool, "_start", lambda pool: started.append(pool) or start(pool))
    assert run("embed", "photos/b.png", "--out", "x.npy").exit_code == len(started) == 0
    assert run("embed", "photos/*.png", "--out", "y.npy").exit_code == 0
    assert started


def test_patterns_of_any_depth_name_each_image_once_and_follow_no_links(photos: Path) -> None:
    """Two links to their own folder lead to 2^40 paths, one to 41 of each image."""
    for name in ("a_link", "deep/b_link", "deep/c_link"):
        (photos / name).symlink_to(photos)
    (photos / ".hidden").mkdir()
    shutil.copy(STAR, photos / ".hidden" / "x.png")
    pngs = ["photos/b.png", "photos/deep/eggs.png", "photos/star.png"]
    everything = sorted([*pngs, "photos/broken.jpg", "photos/notes.txt"])
    assert list_images(["photos/**/*.png"]) == list_images(["**/*.png"]) == list_images(["ph*/**/**/*.png"]) == pngs
    assert list_images(["photos/**"]) == list_images(["**"]) == everything
    assert list_images(["photos/**/d*"]) == list_images(["photos/d**"]) == ["photos/deep/eggs.png"]
    assert list_images([f"{photos}/**/e*"]) == [f"{photos}/deep/eggs.png"]
    assert list_images(["photos/a_link/**/s*.png"]) == ["photos/a_link/star.png"]
    with pytest.raises(SiglipOnnxError, match=r"No file matches 'photos/[*][*]/none"):
        list_images(["photos/**/none*"])


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_lists_do_not_name_stdin(name: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{STAR}\n{name}\n")
    with pytest.raises(SiglipOnnxError, match=f"names {name}, expected paths of files; give {name} as an argument"):
        list_images([f"@{tmp_path / 'list.txt'}"])
    assert list_images([name]) == [name]


def test_file_called_like_the_mark_of_stdin_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(STAR.read_bytes())
    (tmp_path / "list.txt").write_text("-\n")
    assert list_images(["@list.txt"]) == list_images(["*-"]) == ["./-"]


def test_image_on_stdin() -> None:
    result = CliRunner().invoke(main, ["classify", "-", *TEXTS, "--jsonl"], input=STAR.read_bytes())
    row = json.loads(result.stdout)
    assert (row["image"], row["matches"][0]["text"]) == ("-", "a red star")
    broken = CliRunner().invoke(main, ["classify", "-", *TEXTS], input=b"not an image")
    assert_error(broken, 1, "stdin: the image (12 bytes) is not a readable image")


@pytest.mark.web
def test_images_by_url_are_fetched_by_the_guarded_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from siglip_onnx.web import fetch

    internet = FakeInternet({"example.com": [PUBLIC], "inside.example": ["10.0.0.1"]})
    real = fetch.Fetcher
    monkeypatch.setattr(fetch, "Fetcher", lambda limits: real(limits, resolve=internet.resolve, dial=internet.dial))
    urls = ["http://inside.example/a.png", "https://user@example.com/a.png", "http://example.com/a.png"]
    with serving_in_thread(answering(response(STAR.read_bytes())), internet):
        result = run("classify", *urls, EGGS, *TEXTS, "--jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows] == [*urls, str(EGGS)]
    assert rows[0]["error"] == f"{urls[0]}: The URL is refused: its host does not have a public address."
    assert "it contains a user name" in rows[1]["error"]
    assert rows[2]["matches"][0]["text"] == "a red star"
    assert result.exit_code == 3
    offline = run("classify", urls[2], *TEXTS, "--offline")
    assert_error(offline, 1, f"{urls[2]} is not fetched, because of --offline.")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_error(run("classify", urls[2], *TEXTS), 1, f"{urls[2]} is not fetched, because of HF_HUB_OFFLINE.")


def test_best_texts_come_first_in_every_format() -> None:
    expected = sorted(
        siglip_onnx.load("demo").classify(STAR, ["six eggs", "青い星", "a red star"]), key=lambda m: -m.logit
    )
    order = ["a red star", "青い星", "six eggs"]
    assert [match.text for match in expected] == order
    (document,) = json.loads(run("classify", STAR, *TEXTS, "--json").stdout)["results"]
    assert document["matches"] == [match._asdict() for match in expected]
    assert json.loads(run("classify", STAR, *TEXTS, "--jsonl").stdout) == document
    rows = list(csv.DictReader(io.StringIO(run("classify", STAR, *TEXTS, "--csv").stdout)))
    assert [(row["text"], float(row["probability"])) for row in rows] == [(m.text, m.probability) for m in expected]
    table = run("classify", STAR, *TEXTS).stdout.splitlines()
    assert [re.split(r" {2,}", line)[0] for line in table[2:]] == order
    top = run("classify", STAR, *TEXTS, "--top", "2", "--json").stdout
    assert json.loads(top)["results"][0]["matches"] == document["matches"][:2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 %"), (1e-9, "< 0.1 %"), (0.0009999, "< 0.1 %"), (0.001, "0.1 %"), (0.5, "50.0 %"),
        (0.9932, "99.3 %"), (0.99949, "99.9 %"), (0.9995, "> 99.9 %"), (1 - 8.3e-7, "> 99.9 %"), (1.0, "100.0 %"),
    ],
)  # fmt: skip
def test_percentages_are_never_rounded_to_0_or_1(value: float, text: str) -> None:
    assert format_percent(value) == text


def test_bars_have_steps_of_an_eighth() -> None:
    assert [draw_bar(value, 2) for value in (0, 0.06, 0.5, 0.75, 1)] == ["  ", "▏ ", "█ ", "█▌", "██"]
    table = run("classify", STAR, *TEXTS, "--bars").stdout.splitlines()
    best = siglip_onnx.load("demo").classify(STAR, ["a red star"])[0].probability
    assert table[2].endswith(f" {draw_bar(best).rstrip()}")
    assert 0.5 < best < 1


def test_long_texts_are_shortened_to_the_width_of_a_terminal() -> None:
    assert (shorten("夕焼けの海", 10), shorten("夕焼けの海", 9)) == ("夕焼けの海", "夕焼けの…")
    table = format_table(("text", "logit"), [("夕焼けの海と船" * 9, "-1.00"), ("a" * 80, "2.00")], max_width=40)
    first, second = table.splitlines()[1:]
    assert first == "夕焼けの海と船夕焼けの海と船夕焼…  -1.00"
    assert second == "a" * 32 + "…" + "   2.00"


def test_a_long_cell_widens_no_other_row() -> None:
    table = format_table(("text", "logit"), [("a" * 100_000, "1.00"), *[("b", "2.00")] * 100])
    assert "a" * 100_000 in table
    assert len(table) < 200_000
    began = time.monotonic()
    assert shorten("犬" * 1_000_000, 9) == "犬犬犬犬…"
    assert shorten("a" + "\u0301" * 1_000_000, 9).startswith("a\u0301")
    assert time.monotonic() - began < 5


def test_unreadable_images_have_a_row_in_every_format(photos: Path) -> None:
    result = run("classify", "photos/broken.jpg", "photos/star.png", "--text", "a", "--csv")
    header, broken, star = csv.reader(io.StringIO(result.stdout))
    assert header == ["image", "text", "logit", "probability", "relative", "error"]
    assert broken[:5] == ["photos/broken.jpg", "", "", "", ""]
    assert result.stderr.endswith(f"siglip-onnx: {broken[5]}\n")
    assert (star[0], star[5]) == ("photos/star.png", "")
    assert result.exit_code == 3
    (photos / "star.png").unlink()
    missing = json.loads(run("classify", "photos/star.png", "--text", "a", "--json").stdout)
    assert list(missing) == ["model", "variant", "providers", "embedding_space", "templates", "results"]
    assert missing["results"][0]["status"] == "io_error"


@pytest.mark.parametrize("format_", ["--csv", "--jsonl", "--threads=1"])
def test_rows_appear_as_they_are_computed_and_stay_after_an_interrupt(format_: str) -> None:
    """The second image is a pipe that is opened, but not yet written."""
    read_end, write_end = os.pipe()
    words = command("classify", STAR, f"/dev/fd/{read_end}", "--text", "a red star", format_)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[read_end],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a background job ignores it
    ) as process:  # fmt: skip
        os.close(read_end)
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        printed = next(lines)
        while "a red star" not in printed:
            printed += next(lines)
        error = interrupt(process)
    os.close(write_end)
    assert process.returncode == 130
    assert str(STAR) in printed
    assert error.endswith("siglip-onnx: interrupted\n")
    assert "Traceback" not in error


def test_progress_is_shown_on_a_terminal_only(photos: Path) -> None:
    for number in range(60):
        Image.new("RGB", (400, 400)).save(photos / f"{number}.png")
    words = [*command("classify", "photos", "--text", "a", "--csv"), "--workers", "1"]
    assert "of 64" not in subprocess.run(words, capture_output=True, text=True, check=False).stderr
    terminal, theirs = os.openpty()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs):
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the process has ended
            while part := os.read(terminal, 10_000):
                shown += part
    os.close(terminal)
    assert b"of 64 (" in shown
    assert b"1 error" in shown
