"""Processes that change one folder do so one after the other."""

import shutil
import sys
import threading
from pathlib import Path

import pytest

from siglip_onnx.bundle import strip
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.strip import strip_bundle
from siglip_onnx.demo import BUNDLE_PATH
from siglip_onnx.errors import BundleError
from siglip_onnx.system.files import write_together
from siglip_onnx.system.locks import folder_locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot lock folders")


def test_a_locked_folder_is_waited_for_but_not_forever(tmp_path: Path) -> None:
    with folder_locked(tmp_path) as first, folder_locked(tmp_path, wait_s=0.05) as second:
        assert (first, second) == (True, False)
    with folder_locked(tmp_path, wait_s=0) as again, folder_locked(tmp_path / "missing") as missing:
        assert (again, missing) == (True, True)
    assert list(tmp_path.iterdir()) == []


def test_files_that_belong_together_are_not_mixed(tmp_path: Path) -> None:
    def write(name: bytes) -> None:
        for _ in range(30):
            write_together({tmp_path / "x.npy": name * 100_000, tmp_path / "x.jsonl": name})

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x.npy").read_bytes()[:1] == (tmp_path / "x.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.jsonl", "x.npy"]


def test_two_calls_never_remove_all_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "bundle"))
    errors: list[BundleError] = []
    has_begun, opened = threading.Event(), strip.open_bundle

    def second() -> None:
        has_begun.set()
        try:
            strip_bundle(bundle, ["fp32"])
        except BundleError as error:
            errors.append(error)

    def open_while_another_begins(path: Path) -> object:
        monkeypatch.setattr(strip, "open_bundle", opened)
        thread.start()
        assert has_begun.wait(10)
        thread.join(0.2)
        return opened(path)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(strip, "open_bundle", open_while_another_begins)
    assert strip_bundle(bundle, ["int8"]) > 0
    thread.join(20)
    assert "fp32" in str(errors[0])
    assert list(open_bundle(bundle).manifest.variants) == ["int8"]


def test_a_folder_that_stays_locked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Path(shutil.copytree(BUNDLE_PATH, tmp_path / "bundle"))
    monkeypatch.setattr(strip, "folder_locked", lambda path: folder_locked(path, wait_s=0))
    with folder_locked(bundle), pytest.raises(BundleError, match="Another process is changing"):
        strip_bundle(bundle, ["int8"])
    assert set(open_bundle(bundle).manifest.variants) == {"int8", "fp32"}
