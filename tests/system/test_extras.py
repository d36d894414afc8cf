"""Optional extras: which failed import is one, and the command that installs it."""

import json
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siglip_onnx.errors import MissingExtraError
from siglip_onnx.system.extras import EXTRAS, check_extra, extra, install_command

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def installed_from(monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] | None) -> str:
    files = {"direct_url.json": None if record is None else json.dumps(record)}
    monkeypatch.setattr(metadata, "distribution", lambda _name: SimpleNamespace(read_text=files.__getitem__))
    return install_command("ray")


@pytest.mark.parametrize(
    ("record", "arguments"),
    [
        (None, '"siglip-onnx[ray]"'),
        (
            {"url": "https://example.org/siglip_onnx-1.whl", "archive_info": {}},
            '"siglip-onnx[ray] @ https://example.org/siglip_onnx-1.whl"',
        ),
        (
            {"url": "https://example.org/a.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}, "subdirectory": "b"},
            f'"siglip-onnx[ray] @ git+https://example.org/a.git@{COMMIT}#subdirectory=b"',
        ),
        ({"url": "file:///no/such/folder", "dir_info": {"editable": True}}, '"siglip-onnx[ray]"'),
    ],
    ids=["index", "archive", "vcs", "deleted folder"],
)
def test_command_for_each_origin(
    monkeypatch: pytest.MonkeyPatch, record: dict[str, Any] | None, arguments: str
) -> None:
    assert installed_from(monkeypatch, record) == f"pip install {arguments}"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
@pytest.mark.parametrize("editable", [False, True])
@pytest.mark.parametrize("name", ["plain", "with space", "犬", "a'b", 'a"b$HOME`x`!', "a[b]"])
def test_command_for_a_folder_of_any_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, editable: bool
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    command = installed_from(monkeypatch, {"url": folder.as_uri(), "dir_info": {"editable": editable}})
    expected = ["pip", "install", *(["-e"] if editable else []), f"{folder}[ray]"]
    assert shlex.split(command) == expected
    printed = subprocess.check_output(["/bin/sh", "-c", f"pip() {{ printf '%s\\n' \"$@\"; }}; {command}"], text=True)
    assert printed.splitlines() == expected[1:]


def test_command_for_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("web") == f'pip install "{ROOT}[web]"'
    assert install_command() == f'pip install "{ROOT}"'


def test_only_a_package_of_the_extra_that_is_not_installed_counts() -> None:
    message = r"--x needs onnx.x, which is not installed\. Run: pip install .*\[export\]"
    with pytest.raises(MissingExtraError, match=message), extra("export", "--x"):
        raise ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x")
    for error in (
        ModuleNotFoundError("No module named 'pydantic'", name="pydantic"),  # of a package that the extra's need
        ModuleNotFoundError("No module named 'siglip_onnx.x'", name="siglip_onnx.x"),
        ImportError("libprotobuf.so: cannot open shared object file", name="onnx"),
    ):
        with pytest.raises(ImportError) as raised, extra("export", "--x"):
            raise error
        assert raised.value is error


def test_packages_are_checked_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "web", ("json", "no_such_package"))
    check_extra("web", "it", ["json"])
    with pytest.raises(MissingExtraError, match="it needs no_such_package, which is not installed"):
        check_extra("web", "it")


def test_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    imported_as = {"protobuf": "google", "optimum_onnx": "optimum", "scikit_learn": "sklearn"}

    def packages(name: str) -> set[str]:
        found: set[str] = set()
        for requirement in declared[name]:
            package = requirement.split(">")[0].split("=")[0].split("<")[0].replace("-", "_")
            if package.startswith("siglip_onnx["):
                found |= packages(package.removeprefix("siglip_onnx[").removesuffix("]"))
            else:
                found.add(imported_as.get(package, package))
        return found

    assert {name: set(modules) for name, modules in EXTRAS.items()} == {
        name: packages(name) for name in declared if name not in ("dev", "test")
    }
