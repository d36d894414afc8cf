"""The command ``siglip-onnx web``: start, shutdown, options and errors."""

import http.client
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.commands import assert_error, run, run_process, run_without
from support.images import encode
from support.waiting import wait_until
from support.web_server import STAR, started

import siglip_onnx
from siglip_onnx.cli.web import open_models
from siglip_onnx.head import CALIBRATION_FORMAT
from siglip_onnx.web.server import bind

WATCHDOG_S = 60


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WATCHDOG_S) as answer:  # noqa: S310
        content: str = answer.read().decode()
        return content


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_server_finishes_requests_before_it_stops(tmp_path: Path, number: int, exit_code: int) -> None:
    """A signal in the middle of a request: it is answered; nothing stays on disk, and no text is logged."""
    empty = {name: str(tmp_path) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    body = form_of(STAR, ["赤い星", "six eggs", "星" * 500])  # the last is truncated, of which the tokenizer warns
    with started(cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1", **empty) as (process, url):
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=WATCHDOG_S)
        connection.putrequest("POST", "/v1/classify")
        connection.putheader("Content-Type", "multipart/form-data; boundary=parts")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:1000])
        wait_until(lambda: "siglip_queue_size 1" in get(f"{url}metrics"))
        process.send_signal(number)
        wait_until(lambda: not is_listening(url))
        connection.send(body[1000:])
        answer = connection.getresponse()
        reply = json.loads(answer.read())
        connection.close()
        stdout, stderr = process.communicate(timeout=WATCHDOG_S)
    assert answer.status == 200
    red, eggs, _ = reply["results"][0]["models"][0]["matches"]
    assert red["probability"] > 0.5 > eggs["probability"]
    assert process.returncode == exit_code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "星" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_interrupt_ends_the_server_at_once(tmp_path: Path) -> None:
    with started(cwd=tmp_path) as (process, url):
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(url).port or 0, timeout=WATCHDOG_S)
        connection.putrequest("POST", "/v1/classify")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"{")
        wait_until(lambda: "siglip_queue_size 1" in get(f"{url}metrics"))
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_listening(url))
        process.send_signal(signal.SIGTERM)  # which asks for the same
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=5)  # a running request has more time
        connection.close()
    assert (process.returncode, stdout, stderr) == (130, "", "")


def test_neither_texts_nor_oddities_of_images_are_logged(tmp_path: Path) -> None:
    """Not those that the library warns of: templates other than a calibration's, and EXIF data that cannot be read."""
    demo = siglip_onnx.load("demo")
    document = {"format": CALIBRATION_FORMAT, "model": "demo", "variant": demo.variant, "scale": 1.0, "bias": 0.0,
                "texts": {}, "templates": ["{}"], "spaces": demo.bundle.manifest.spaces}  # fmt: skip
    (tmp_path / "calibration.json").write_text(json.dumps(document))
    odd = PngInfo()
    odd.add_text("Raw profile type exif", "\nexif\n4\nzz")
    image = encode(Image.new("RGB", (8, 8)), pnginfo=odd)
    options = ("--calibration", str(tmp_path / "calibration.json"), "--no-isolate-decoding")
    with started(*options, cwd=tmp_path) as (process, url):
        for path, kind, body in (
            ("v1/embed/texts", "application/json", json.dumps({"texts": ["星"], "template": ["secret {}"]}).encode()),
            ("v1/classify", "multipart/form-data; boundary=parts", form_of(image, ["星"])),
        ):
            request = urllib.request.Request(url + path, body, {"Content-Type": kind})  # noqa: S310
            with urllib.request.urlopen(request, timeout=WATCHDOG_S) as answer:  # noqa: S310
                assert answer.status == 200
        process.terminate()
        _, stderr = process.communicate(timeout=WATCHDOG_S)
    assert "secret" not in stderr
    assert "EXIF" not in stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_before_the_event_loop_runs_stops_the_server(tmp_path: Path) -> None:
    """A script may stop the server as soon as it reads its URL."""
    program = (
        "import os, signal, siglip_onnx\n"
        "from siglip_onnx.web.server import serve\n"
        "from siglip_onnx.web.settings import Settings\n"
        "stop = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
        "serve([siglip_onnx.load('demo', threads=1)], Settings(port=0), listening=stop)\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=WATCHDOG_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def form_of(image: bytes, texts: list[str]) -> bytes:
    part = b'--parts\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = [part % (b"images", b'; filename="a.png"', image)]
    parts += [part % (b"texts", b"", text.encode()) for text in texts]
    return b"".join(parts) + b"--parts--\r\n"


def is_listening(url: str) -> bool:
    try:
        get(f"{url}healthz")
    except (OSError, http.client.HTTPException):
        return False
    return True


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = run("web", "--port", port)
    assert_error(result, 1, f"port {port} cannot be listened on")
    assert "--port" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "url_fetch"),
    [
        ((), True),
        (("--no-url-fetch",), False),
        (("--host", "0.0.0.0"), False),  # noqa: S104
        (("--host", "0.0.0.0", "--allow-url-fetch"), True),  # noqa: S104
        (("--host", "::"), False),
        (("--host", "localhost"), True),
    ],
)
@pytest.mark.parametrize("key", [None, "k"])
def test_defaults_are_safe(
    options: tuple[str, ...], url_fetch: bool, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """URLs are fetched on loopback or when allowed; a host that others reach needs a key, or a warning is printed."""
    served: list[Any] = []
    monkeypatch.setattr("siglip_onnx.web.server.serve", lambda _models, settings, **_: served.append(settings))
    if key:
        monkeypatch.setenv("SIGLIP_ONNX_API_KEY", key)
    result = run("web", *options)
    assert result.exit_code == 0, result.stderr
    (settings,) = served
    assert (settings.port, settings.url_fetch, settings.api_key) == (5678, url_fetch, key)
    assert settings.host == (options[1] if "--host" in options else "127.0.0.1")
    assert ("Anyone" in result.stderr) is (key is None and bool({"0.0.0.0", "::"} & {*options}))  # noqa: S104


def test_the_environment_forbids_to_fetch_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("siglip_onnx.web.server.serve", lambda _models, settings, **_: served.append(settings))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "--allow-url-fetch has no effect, because of HF_HUB_OFFLINE" in run("web", "--allow-url-fetch").stderr
    assert "no effect" not in run("web").stderr
    assert [settings.fetches_urls for settings in served] == [False, False]


@pytest.mark.parametrize("option", ["--url-allow-domain", "--url-allow-network", "--url-contact"])
@pytest.mark.parametrize("allowed", [True, False])
def test_options_without_effect_are_reported(option: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siglip_onnx.web.server.serve", lambda *_, **_options: None)
    more = ["--allow-url-fetch"] if allowed else []
    value = "me@example.org" if option == "--url-contact" else "10.0.0.1"
    result = run("web", "--host", "0.0.0.0", option, value, *more)  # noqa: S104
    assert result.exit_code == 0, result.stderr
    assert ("have no effect" in result.stderr) is not allowed


@pytest.mark.export
def test_every_variant_of_every_model_is_opened(small_bundle: Path) -> None:
    models = open_models((str(small_bundle), str(small_bundle)), ("int8", "fp32"), ())
    assert [model.variant for model in models] == ["int8", "fp32", "int8", "fp32"]
    assert_error(run("web", *["--variant", "int8"] * 5), 2, "at most 4")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--variant", "fp64"), 4, "no variant 'fp64'"),
        (("--model", "nowhere"), 4, "was not found"),
        (("--allow-url-fetch", "--no-url-fetch"), 2, "contradict"),
        (("--api-key", ""), 2, "empty"),
        (("--api-key", " key"), 2, "begins or ends with a space"),
        (("--port", "70000"), 2, "70000"),
        (("--allow-host", "*"), 2, "would allow every host"),
        (("--allow-host", "https://photos.example/siglip"), 2, "--root-path"),
        (("--trusted-proxy", "nginx"), 2, "not an address"),
        (("--allow-origin", "app.example"), 2, "not an origin"),
        (("--root-path", "/a b"), 2, "--root-path"),
        (("--url-contact", "me"), 2, "--url-contact"),
    ],
)
def test_invalid_options(options: tuple[str, ...], code: int, words: str) -> None:
    assert_error(run("web", *options), code, words)


def test_an_empty_key_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compose file with an unset variable gives it; click takes it for none."""
    monkeypatch.setenv("SIGLIP_ONNX_API_KEY", "")
    assert_error(run("web"), 2, "The API key is empty; give a key, or remove the option and the variable.")


def test_the_model_of_the_environment_may_have_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP_ONNX_MODEL", "/path with space/m")
    assert_error(run("web"), 4, "'/path with space/m' was not found")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart"])
def test_missing_extra_is_reported(package: str) -> None:
    assert_error(run_without(package, "web"), 1, '[web]"')


@pytest.mark.export
def test_server_ends_if_a_model_cannot_be_loaded(copy: Path) -> None:
    graph = copy / "onnx" / "vision_model_quantized.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    assert_error(run_process("web", "--port", "0", "--model", copy), 4, "vision_model_quantized.onnx")
