"""Results are written whole or not at all, on full disks and after kills; only what is ours is removed."""

import ast
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.commands import assert_error, command, run_process
from support.source import nodes_of_package

import siglip_onnx
from siglip_onnx import demo
from siglip_onnx.bulk.job import make_folder
from siglip_onnx.errors import JobError, TextError
from siglip_onnx.system import files
from siglip_onnx.system.files import (
    STALE_S,
    atomic_path,
    follow_links,
    open_list,
    open_regular,
    remove,
    remove_stale_parts,
    write_atomic,
    write_together,
)
from siglip_onnx.text import label_cache
from siglip_onnx.text.label_cache import LabelCache
from siglip_onnx.text.templates import fill_templates

RED_STAR = demo.IMAGES_PATH / "red_star.png"
OLD, NEW = b"old and good", b"new"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Let every test be the first to look for stale files in its folder."""
    files._clear_stale_parts.cache_clear()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A good result of an earlier run, alone in its folder."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "result.html").write_bytes(OLD)
    return folder / "result.html"


def test_write_atomic_replaces_content(result: Path) -> None:
    write_atomic(result, NEW)
    assert result.read_bytes() == NEW
    write_atomic(result, iter([b"a", b"", b"b"]))
    assert result.read_bytes() == b"ab"
    with atomic_path(result) as part:
        assert part.suffix == ".html"
        part.write_bytes(NEW)
        assert result.read_bytes() == b"ab"
    assert result.read_bytes() == NEW
    write_atomic(result.with_name("fresh"), NEW, durable=False)
    assert sorted(path.name for path in result.parent.iterdir()) == ["fresh", "result.html"]


def broken_content() -> Iterator[bytes]:
    yield b"half"
    raise RuntimeError("no more")


def test_failed_write_keeps_the_old_content(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no more"):
        write_atomic(result, broken_content())

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "chmod")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="No space left"):
                write_atomic(result, NEW)
            with pytest.raises(OSError, match="No space left"):
                write_together({result: NEW})
    assert result.read_bytes() == OLD
    assert [path.name for path in result.parent.iterdir()] == ["result.html"]


def test_target_that_is_a_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, NEW)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs permission to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def test_full_disk_keeps_the_old_content(small_disk: Path) -> None:
    first, second = small_disk / "a.npy", small_disk / "a.jsonl"
    write_together({first: OLD, second: OLD})
    with pytest.raises(OSError, match="No space left on device"):
        write_together({first: NEW, second: bytes(100_000)})
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(first, (bytes(1000) for _ in range(100)))
    assert (first.read_bytes(), second.read_bytes()) == (OLD, OLD)
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.jsonl", "a.npy"]


def limit_files() -> None:
    """Let files have at most 64 bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


@pytest.mark.parametrize("kind", ["search", "embed", "compile", "verify"])
def test_commands_on_a_full_disk_keep_the_old_result(small_bundle: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    labels = tmp_path / "labels.txt"
    labels.write_text("a cat\na dog\n")
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    if kind == "search":
        job = tmp_path / "job"
        subprocess.run(command("embed", RED_STAR.parent, "--out", job), check=True, capture_output=True)
        arguments = command("search", job, "a red star", "--html", out / "result.html")
    elif kind == "embed":
        arguments = command("embed", RED_STAR, "--out", out / "result.npy")
    elif kind == "compile":
        arguments = command("compile", bundle, "--labels", labels, "-o", out / "result.onnx")
    else:
        out = bundle
        arguments = command("verify", bundle, "--write-card")
    if kind != "verify":
        assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # which writes too
    failed = subprocess.run(
        arguments, capture_output=True, text=True, check=False, preexec_fn=limit_files,
        env=unmeasured | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert failed.returncode in (1, 4), failed.stderr
    assert "cannot be written: File too large" in failed.stderr.splitlines()[-1]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from siglip_onnx.system.files import write_atomic
def content():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), content())
"""


def test_old_temporary_files_of_killed_runs_are_removed(result: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(result)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert result.read_bytes() == OLD
    (left,) = set(result.parent.iterdir()) - {result}
    mine = [result.with_name(name) for name in (".siglip_onnx-notes.part", "a.part", f".{'a' * 32}.part")]
    for path in mine:
        path.write_text("mine")
        os.utime(path, (0, 0))
    write_atomic(result, NEW)
    assert left.exists(), "it may be of a run that is still writing"
    files._clear_stale_parts.cache_clear()
    long_ago = time.time() - STALE_S - 1
    os.utime(left, (long_ago, long_ago))
    write_atomic(result, NEW)
    assert not left.exists()
    assert all(path.read_text() == "mine" for path in mine)


def test_old_folder_of_a_killed_export_is_removed(tmp_path: Path) -> None:
    left = files.new_part(tmp_path / "model")
    (left / "onnx").mkdir(parents=True)
    (left / "onnx" / "a.onnx").write_bytes(b"half")
    (tmp_path / "mine").mkdir()
    (left / "link").symlink_to(tmp_path / "mine")
    for path in (left, left / "onnx", left / "link"):
        os.utime(path, (0, 0), follow_symlinks=False)
    remove_stale_parts(tmp_path)
    assert left.exists(), "a file in it is new"
    os.utime(left / "onnx" / "a.onnx", (0, 0))
    remove_stale_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_folder_of_a_run_that_was_killed_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from siglip_onnx.system.files import new_part_folder
with new_part_folder(Path({str(tmp_path / "model")!r})) as folder:
    (folder / "half.onnx").write_bytes(b"half")
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        left = sorted(tmp_path.iterdir())
        assert len(left) == 2
        remove_stale_parts(tmp_path)
        assert sorted(tmp_path.iterdir()) == left, "its run is alive"
        process.kill()
    remove_stale_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with files.new_part_folder(tmp_path / "model") as folder:
        (folder / "x").touch()
        remove_stale_parts(tmp_path)
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_mode_and_links_are_kept(result: Path, tmp_path: Path) -> None:
    result.chmod(0o640)
    link = tmp_path / "link.html"
    link.symlink_to(result)
    write_atomic(link, NEW)
    assert link.is_symlink()
    assert result.read_bytes() == NEW
    assert stat.S_IMODE(result.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later")
    write_atomic(dangling, NEW)
    assert (tmp_path / "later").read_bytes() == NEW


def test_devices_and_pipes_are_written_and_kept(tmp_path: Path) -> None:
    write_atomic(Path(os.devnull), NEW)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_together({pipe: NEW})
    assert os.read(reader, 1000) == NEW
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_files_of_shared_caches_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        LabelCache("space", 2, tmp_path).put("a cat", np.zeros(2, np.float32))
    finally:
        os.umask(before)
    (path,) = (tmp_path / "space").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert LabelCache("space", 2, tmp_path).get("a cat") is not None


def test_remove_refuses_paths_outside(tmp_path: Path) -> None:
    ours, photos = tmp_path / "ours", tmp_path / "photos"
    (ours / "a" / "b").mkdir(parents=True)
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"mine")
    (ours / "link").symlink_to(photos)
    (ours / "a" / "link").symlink_to(photos)
    for path in (photos, ours, tmp_path, ours / "..", ours / ".." / "photos", ours / "link" / "wedding.jpg"):
        with pytest.raises(PermissionError, match=r"is outside .*, and is not removed"):
            remove(path, within=ours)
    with pytest.raises(PermissionError, match="it is a symbolic link"):
        remove(ours / "link", within=ours)
    remove(ours / "a", within=ours)
    remove(ours / "a", within=ours)  # nothing is there
    assert [path.name for path in ours.iterdir()] == ["link"]
    assert (photos / "wedding.jpg").read_bytes() == b"mine"


REMOVING = {"rmtree", "unlink", "rmdir", "removedirs"}


def test_no_other_module_removes_files() -> None:
    for path, node in nodes_of_package():
        if path == "system/files.py" or not isinstance(node, ast.Attribute):
            continue
        assert node.attr not in REMOVING, f"{path}:{node.lineno} removes by itself"
        of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
        assert not of_os or node.attr not in {"remove", "replace"}, f"{path}:{node.lineno} replaces by itself"


def test_stamps_are_written_atomically(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path))
    siglip_onnx.load(small_bundle)
    (stamps,) = (tmp_path / "verified").iterdir()
    assert "config.json" in json.loads(stamps.read_bytes())


@pytest.fixture(params=["pipe", "socket", "device", "folder"])
def special_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif request.param == "device":
        return Path("/dev/zero")
    else:
        path.mkdir()
    return path


def test_only_regular_files_are_opened(special_file: Path) -> None:
    """At once: opening a pipe, or reading a device, could take forever."""
    for opening in (open_regular, open_list):
        with pytest.raises(OSError, match=r"pipe|device|directory"):
            opening(special_file)
    assert_error(run_process("classify", RED_STAR, "--texts-file", special_file), 1, "cannot be read")


def test_special_files_in_the_label_cache_are_ignored(tmp_path: Path) -> None:
    cache = LabelCache("space", 2, tmp_path)
    cache.put("a", np.ones(2, np.float32))
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    os.mkfifo(path)
    assert LabelCache("space", 2, tmp_path).get("a") is None


BASH = shutil.which("bash") or ""


@pytest.mark.skipif(not BASH, reason="bash is not installed")
@pytest.mark.parametrize("source", ["<(echo six eggs)", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_lists_are_read_from_open_pipes(source: str) -> None:
    words = " ".join(command("classify", RED_STAR, "--json", "--texts-file"))
    line = f"echo six eggs | {words} {source}"
    result = subprocess.run([BASH, "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "six eggs" in result.stdout


def test_label_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_cache, "MAX_MEMORY_BYTES", 10_000)
    cache = LabelCache("space", 2)
    for number in range(10):
        cache.put(f"{number}" * 1000, np.ones(2, np.float32))
    assert [cache.get(f"{number}" * 1000) is not None for number in range(10)] == [False] * 8 + [True] * 2


def test_template_that_repeats_the_text_is_bounded() -> None:
    with pytest.raises(TextError, match=r"repeats the text 1,000,000 times"):
        fill_templates("{}" * 1_000_000, ["a" * 4096])
    assert fill_templates("{} or {}", ["a"]) == [["a or a"]]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("kind", ["file", "dangling", "folder", "chain"])
def test_link_of_another_user_in_a_shared_folder_is_not_followed(kind: str, tmp_path: Path) -> None:
    """The kernel would refuse it too, if it were opened by its name."""
    shared, home = tmp_path / "shared", tmp_path / "home"
    shared.mkdir()
    shared.chmod(0o1777)
    home.mkdir()
    target = home / "profile"
    if kind in ("file", "chain"):
        target.write_bytes(OLD)
    elif kind == "folder":
        target.mkdir()
    link = shared / "result"
    link.symlink_to(target)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    place = link
    if kind == "chain":
        place = shared / "own"
        place.symlink_to(link)
    if kind == "folder":
        with pytest.raises(JobError, match="link of another user"):
            make_folder(place)
    else:
        with pytest.raises(PermissionError, match="link of another user in a folder of everybody"):
            write_atomic(place, NEW)
        assert (target.read_bytes() if target.exists() else None) == (None if kind == "dangling" else OLD)
    os.chown(link, 0, 0, follow_symlinks=False)  # one's own link is followed
    assert follow_links(place) == target
