"""A malicious Hub or proxy with paths, wrong names and endless files: nothing outside the cache is touched."""

import contextlib
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import hub_server
from support.commands import assert_error, run
from support.hub_server import Hub, serve

import siglip_onnx
from siglip_onnx.errors import DownloadError
from siglip_onnx.hub import download
from siglip_onnx.hub.cache import cached_models, repository_folder, stale_entries
from siglip_onnx.hub.download import RemoteFile, Repository, fetch, look_up

NAME = "someone/tiny-siglip"
COMMIT = "0123456789" * 4


class HostileHandler(hub_server._Handler):
    """Change what the Hub states, and send some files without end."""

    facts: dict[str, Any] = {}  # noqa: RUF012 - set per test
    sizes: dict[str, Any] = {}  # noqa: RUF012
    endless: set[str] = set()  # noqa: RUF012
    answer: tuple[bytes, dict[str, str]] | None = None  # instead of the description of a repository
    slow = ""  # what arrives byte by byte: "headers", "answer", or the name of a file
    chunked = True
    sent_bytes = 0

    def _send(self, status: int, body: bytes, *arguments: Any, **options: Any) -> None:
        if self.path.startswith("/api/") and self.answer is not None:
            super()._send(status, *self.answer)
            return
        if self.path.startswith("/api/") and status == 200:
            document = json.loads(body) | self.facts
            for sibling in document["siblings"] if self.sizes else ():
                if sibling["rfilename"] in self.sizes:
                    sibling["size"] = self.sizes[sibling["rfilename"]]
            body = json.dumps(document).encode()
        super()._send(status, body, *arguments, **options)

    def _answer(self, *, with_body: bool) -> None:
        if self.slow in ("headers", "answer") or (self.slow and self.path.endswith(f"/{self.slow}")):
            self._trickle()
        else:
            super()._answer(with_body=with_body)

    def _trickle(self) -> None:
        self.close_connection = True
        in_headers = self.slow == "headers"
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if in_headers else b"Content-Length: 1000\r\n\r\n"))
        with contextlib.suppress(OSError):  # the client closes the connection
            while self.slow:
                self.wfile.write(b"a: b\r\n" if in_headers else b" ")
                time.sleep(0.05)

    def _send_file(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        if file not in self.endless:
            super()._send_file(file, content, headers)
            return
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", str(10**12))))
        self.end_headers()
        block = bytes(100_000)
        self.close_connection = True
        try:
            while type(self).sent_bytes < 1_000_000_000:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if self.chunked else block)
                type(self).sent_bytes += len(block)
        except OSError:
            return  # the client closed the connection


Handler = type[HostileHandler]


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Handler:
    """The Hub's request handler; tests set its fields."""
    fresh = type("_Fresh", (HostileHandler,), {"facts": {}, "sizes": {}, "endless": set(), "sent_bytes": 0})
    monkeypatch.setattr(hub_server, "_Handler", fresh)
    return fresh


@pytest.fixture
def hub(handler: Handler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A malicious Hub, an empty cache, and photos of the user beside the cache."""
    assert hub_server._Handler is handler
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    photos = tmp_path / "home" / "photos"
    photos.mkdir(parents=True)
    (photos / "wedding.jpg").write_bytes(b"mine")
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_commit_is_not_replaced_by_another(hub: Hub, handler: Handler, small_bundle: Path) -> None:
    """A branch or tag may look like the beginning of a commit, but not like a whole one."""
    pinned = hub.add(NAME, small_bundle)
    handler.facts = {"sha": COMMIT}
    failed = run("models", "pull", f"{NAME}@{pinned}")
    assert_error(failed, 4, f"The Hub names {COMMIT} as the commit {pinned} of {NAME}")
    assert cached_models() == stale_entries() == []
    handler.facts = {}
    assert run("models", "pull", f"{NAME}@{pinned}").exit_code == 0


@pytest.mark.parametrize(
    "sha",
    ["PHOTOS", "..", "../..", "../../../photos", ".", "", "main", COMMIT[:39], COMMIT + "0", COMMIT + "\n", None, 7,
     COMMIT[:38] + "/x", COMMIT.replace("0", "A")],
    ids=str,
)  # fmt: skip
def test_revision_is_not_a_path(hub: Hub, handler: Handler, small_bundle: Path, tmp_path: Path, sha: object) -> None:
    hub.add(NAME, small_bundle)
    handler.facts = {"sha": str(tmp_path / "home" / "photos") if sha == "PHOTOS" else sha}
    failed = run("models", "pull", NAME)
    assert_error(failed, 4, f"as the revision of {NAME}, expected a commit of 40 hexadecimal digits")
    assert (tmp_path / "home" / "photos" / "wedding.jpg").read_bytes() == b"mine"
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["cache", "photos"]
    assert cached_models() == stale_entries() == []


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("file", ["config.json", "onnx/vision_model_quantized.onnx_data"])
def test_download_stops_at_promised_size(
    hub: Hub, handler: Handler, small_bundle: Path, file: str, chunked: bool
) -> None:
    hub.add(NAME, small_bundle)
    handler.endless, handler.chunked = {file}, chunked
    promised = (small_bundle / file).stat().st_size
    with pytest.raises(DownloadError, match=f"{file} of {NAME} is larger than the {promised:,} bytes"):
        siglip_onnx.load(NAME)
    assert handler.sent_bytes < 40_000_000, "what the client and the sockets buffer"
    kept = [path for path in repository_folder(NAME).rglob("*") if path.is_file()]
    assert all(path.stat().st_size <= promised for path in kept if ".incoming" in path.parts)
    handler.endless = set()
    assert siglip_onnx.load(NAME).variant == "int8", "what arrived does not stand in the way of the next try"


def test_file_of_unknown_size_has_a_limit(
    hub: Hub, handler: Handler, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, small_bundle)
    handler.sizes = {"config.json": None}
    assert look_up(NAME, None).files["config.json"].size_bytes is None
    siglip_onnx.load(NAME)
    assert run("models", "rm", NAME).exit_code == 0
    part = tmp_path / ".incoming" / hashlib.sha256(b"config.json").hexdigest()
    part.parent.mkdir()
    part.write_bytes(b"all or not, of a killed run")
    fetch(look_up(NAME, None), ["config.json"], tmp_path)
    assert (tmp_path / "config.json").read_bytes() == (small_bundle / "config.json").read_bytes()
    handler.endless = {"config.json"}
    monkeypatch.setattr(download, "_UNSIZED_BYTES", 1_000_000)
    with pytest.raises(DownloadError, match=r"config\.json of .* is larger than the 1,000,000 bytes"):
        siglip_onnx.load(NAME)
    assert handler.sent_bytes < 40_000_000


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "README.md"])
def test_texts_of_absurd_size_are_not_downloaded(
    hub: Hub, handler: Handler, small_bundle: Path, tmp_path: Path, name: str
) -> None:
    hub.add(NAME, small_bundle, **{"README.md": b"# tiny"})
    handler.sizes = {name: 5_000_000_000}
    with pytest.raises(DownloadError, match=rf"{re.escape(name)} of {NAME} has 5,000,000,000 bytes, expected at most"):
        fetch(look_up(NAME, None), [name], tmp_path)
    assert not hub.sent[name]


@pytest.mark.parametrize("size", [-1, "899", 1.5, 10**400, [], 2**60])
def test_invalid_size_is_refused(hub: Hub, handler: Handler, small_bundle: Path, size: object) -> None:
    hub.add(NAME, small_bundle)
    handler.sizes = {"config.json": size}
    with pytest.raises(DownloadError, match=r"as the size of 'config\.json'"):
        siglip_onnx.load(NAME)


@pytest.mark.parametrize(
    "siblings",
    [[{"rfilename": ["a"]}], [{"rfilename": None}], [{}], [7], {"a": 1}, [{"rfilename": "manifest.json", "lfs": 7}]],
    ids=str,
)
def test_malformed_answer_is_one_error(hub: Hub, handler: Handler, small_bundle: Path, siblings: object) -> None:
    hub.add(NAME, small_bundle)
    handler.facts = {"siblings": siblings}
    failed = run("models", "pull", NAME)
    assert failed.exit_code == 4, failed.output
    assert len(failed.stderr.splitlines()) == 1
    assert cached_models() == []


def test_names_that_exclude_each_other_are_one_error(hub: Hub, small_bundle: Path, tmp_path: Path) -> None:
    hub.add(NAME, small_bundle, onnx=b"a file")
    repository = look_up(NAME, None)
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch(repository, ["onnx", "onnx/vision_model.onnx"], tmp_path / "folder")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "a//x", "./x", ".hidden", ".incoming/x", "a\\..\\x", "C:/x", "x\0", "x\n", "", "a/",
     "onnx/" + 300 * "x", "~/x"],
)  # fmt: skip
def test_a_file_name_must_match_before_it_is_a_path(hub: Hub, name: str, tmp_path: Path) -> None:
    repository = Repository(NAME, COMMIT, {name: RemoteFile(name, 3, None, None)})
    with pytest.raises(DownloadError, match="It is not downloaded"):
        fetch(repository, [name], tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert hub.requests.total() == 0


def test_shards_with_hostile_names_are_refused(hub: Hub, small_checkpoint: Path, tmp_path: Path) -> None:
    outside = "model-/../../../../../photos/wedding.safetensors"
    hub.add(NAME, small_checkpoint, **{"model.safetensors.index.json": b"{}", outside: b"evil"})
    commit, files = hub.repositories[NAME]
    del files["model.safetensors"]
    hub.repositories[NAME] = (commit, files)
    with pytest.raises(DownloadError, match="holds a file named 'model-/"):
        siglip_onnx.load(NAME)
    assert [path.name for path in (tmp_path / "home" / "photos").iterdir()] == ["wedding.jpg"]


def test_rm_removes_only_what_the_cache_wrote(hub: Hub, small_bundle: Path, tmp_path: Path) -> None:
    hub.add(NAME, small_bundle)
    siglip_onnx.load(NAME)
    folder = repository_folder(NAME)
    (folder / "notes.txt").write_text("mine")
    (folder / f"{COMMIT}.partial").mkdir()
    assert run("models", "rm", NAME).exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    linked = folder / COMMIT
    linked.symlink_to(tmp_path / "home" / "photos")
    assert_error(run("models", "rm", NAME), 4, "it is a symbolic link, and is not removed")
    assert (tmp_path / "home" / "photos" / "wedding.jpg").exists()


def test_a_repository_folder_that_is_a_link_is_not_followed(hub: Hub, small_bundle: Path, tmp_path: Path) -> None:
    hub.add(NAME, small_bundle)
    elsewhere = tmp_path / "home" / "elsewhere"
    (elsewhere / COMMIT).mkdir(parents=True)
    repository_folder(NAME).parent.mkdir(parents=True)
    repository_folder(NAME).symlink_to(elsewhere)
    assert_error(run("models", "rm", NAME), 4, "is outside")
    assert (elsewhere / COMMIT).is_dir()


@pytest.mark.parametrize("revision", ["..", "photos", "x" * 40])
def test_a_record_of_something_else_is_not_a_model(hub: Hub, revision: str) -> None:
    folder = repository_folder(NAME)
    folder.mkdir(parents=True)
    (folder / revision).mkdir(parents=True, exist_ok=True)
    (folder / revision / "manifest.json").write_text("{}")
    record = {"name": NAME, "revision": revision, "kind": "bundle", "pulled": 0.0, "asked": ""}
    (folder / f"{revision}.json").write_text(json.dumps(record))
    assert cached_models() == []
    assert hub.requests.total() == 0


def test_large_answer_is_refused(hub: Hub, handler: Handler, small_bundle: Path) -> None:
    """A compressed answer of 200 kB that stands for 200 MB of blanks."""
    hub.add(NAME, small_bundle)
    compressor = zlib.compressobj(wbits=31)
    body = compressor.compress(b'{"siblings": [')
    body += b"".join(compressor.compress(b" " * 10_000_000) for _ in range(20)) + compressor.flush()
    assert len(body) < 300_000
    handler.answer = body, {"Content-Encoding": "gzip"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DownloadError, match=f"answer about {NAME} is larger than the 20,000,000 bytes"):
        look_up(NAME, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kB"


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b'{"sha": 1e', b"[" * 100_000, b'{"siblings": [7]}', b"\xff", b'{"siblings": [{"rfilename": null}]}',
     b'{"siblings": [{"rfilename": "a", "lfs": {}}]}'],
    ids=lambda answer: repr(answer[:40]),
)  # fmt: skip
def test_answer_that_describes_nothing_is_an_error(hub: Hub, handler: Handler, answer: bytes) -> None:
    hub.put(NAME, {})
    handler.answer = answer, {}
    with pytest.raises(DownloadError, match=f"answer about {NAME} cannot be read"):
        look_up(NAME, None)


@pytest.mark.parametrize("slow", ["headers", "answer", "config.json"])
def test_slow_hub_is_given_up(
    hub: Hub, handler: Handler, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """One byte after the other, each well within the client's timeout; nobody else has to wait for the lock."""
    hub.add(NAME, small_bundle)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_STALL_S", 0.5)
        patch.setattr(download, "_LEAST_BYTES_PER_S", 1e9)
        handler.slow = slow
        with pytest.raises(DownloadError, match="kB/s; the download was stopped"):
            siglip_onnx.load(NAME)
        handler.slow = ""
    assert siglip_onnx.load(NAME).variant == "int8"


def test_the_library_tells_the_hub_nothing_about_this_machine() -> None:
    """Version 2 would ask the Hub for the names and values of environment variables to report."""
    code = (
        "from siglip_onnx.hub.download import library; hub = library(); print(hub.constants.HF_HUB_DISABLE_TELEMETRY, "
    )
    code += "hub.utils.build_hf_headers()['user-agent'])"
    environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    is_off, agent = done.stdout.split(maxsplit=1)
    assert is_off == "True"
    assert {part.partition("/")[0] for part in agent.strip().split("; ")} == {"unknown", "hf_hub", "python"}
