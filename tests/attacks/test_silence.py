"""No socket and no file that nobody asked for; no code in data."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.source import libraries_of, nodes_of_package

from siglip_onnx.demo import IMAGES_PATH

IMAGE = str(IMAGES_PATH / "red_star.png")
# Runs a command of the package and prints every socket, and every file that was opened for writing or created.
WATCH = """
import json, os, sys
seen = {"sockets": [], "files": []}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        seen["sockets"].append(f"{event} {arguments[1:]!r}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING and arguments[0] != os.devnull:
        seen["files"].append(str(arguments[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        seen["files"].append(str(arguments[0]))
sys.addaudithook(watch)
from siglip_onnx.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    seen["code"] = end.code
open(sys.argv[1], "w").write(json.dumps(seen))
"""


def watch(tmp_path: Path, *arguments: object, **environment: str) -> dict[str, object]:
    """Run a command with an empty home; return what it opened, and the files that are in the home afterwards."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("SIGLIP", "HF_", "XDG"))}
    subprocess.run(
        [sys.executable, "-c", WATCH, tmp_path / "seen.json", *map(str, arguments)],
        env=variables | {"HOME": str(home)} | environment, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    seen = json.loads((tmp_path / "seen.json").read_text())
    seen["files"].remove(str(tmp_path / "seen.json"))
    seen["home"] = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return dict(seen)


@pytest.mark.parametrize(
    "command",
    [
        ("classify", IMAGE, "--text", "a red star"),
        ("classify", IMAGE, "--text", "a red star", "--offline", "--json"),
        ("info", "--verify-files"),
        ("doctor", "--json"),
        ("models", "list"),
        ("models", "list", "--known"),
    ],
    ids=" ".join,
)
def test_commands_on_the_demo_open_no_socket_and_write_no_file(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert watch(tmp_path, *command) == {"sockets": [], "files": [], "home": [], "code": 0}


@pytest.mark.parametrize("how", [("--offline",), ("HF_HUB_OFFLINE",)])
def test_offline_opens_no_socket(tmp_path: Path, how: tuple[str, ...]) -> None:
    options = [option for option in how if option.startswith("--")]
    environment = {variable: "1" for variable in how if not variable.startswith("--")}
    for command in (("models", "pull"), ("classify", IMAGE, "--text", "a", "--model")):
        report = watch(tmp_path, *command, "siglip2-base-patch16-224", *options, **environment)
        assert report == {"sockets": [], "files": [], "home": [], "code": 4}


def test_model_folder_is_not_changed(tmp_path: Path, small_bundle: Path) -> None:
    report = watch(tmp_path, "classify", IMAGE, "--text", "a", "--model", small_bundle)
    cache = str(tmp_path / "home" / ".cache" / "siglip_onnx")
    assert report["code"] == 0
    assert report["sockets"] == []
    assert report["files"]
    assert all(str(path).startswith((cache, str(Path(cache).parent))) for path in report["files"])  # type: ignore[attr-defined]
    assert all(path.startswith(".cache/siglip_onnx/verified/") for path in report["home"])  # type: ignore[attr-defined]


def test_audit_hook_sees_sockets(tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    report = watch(tmp_path, "models", "pull", "a/b", HF_ENDPOINT="http://127.0.0.1:9")
    assert report["sockets"]


# What runs code, or trusts data as if it were code.
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "xml", "telnetlib", "ftplib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "mktemp"}


def test_no_data_is_executed() -> None:
    for path, node in nodes_of_package():
        assert not libraries_of(node) & FORBIDDEN_IMPORTS, path
        if isinstance(node, ast.Call):
            check_call(node, path)


def check_call(node: ast.Call, path: str) -> None:
    function = node.func
    if isinstance(function, ast.Name):
        assert function.id not in FORBIDDEN_CALLS, path
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "os":
        assert function.attr not in FORBIDDEN_CALLS, path
    for keyword in node.keywords:
        if keyword.arg in ("allow_pickle", "shell", "trust_remote_code") and isinstance(keyword.value, ast.Constant):
            assert keyword.value.value is False, path


NETWORK = {"socket", "http", "urllib", "requests", "httpx", "aiohttp", "huggingface_hub", "ftplib", "smtplib", "ssl"}
NETWORK_ROOMS = {"hub", "web", "bench"}


def test_network_libraries_are_imported_in_their_rooms_only() -> None:
    """``urllib.parse`` opens no socket."""
    users = {
        path
        for path, node in nodes_of_package()
        if libraries_of(node) & NETWORK and getattr(node, "module", None) != "urllib.parse"
    }
    assert {path.split("/")[0] for path in users} <= NETWORK_ROOMS
