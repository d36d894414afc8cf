"""The files of examples/deploy/: systemd accepts the unit, and the commands of unit and container serve and stop."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.commands import command
from support.examples import EXAMPLES
from support.web_server import started

ROOT, DEPLOY = EXAMPLES.parent, EXAMPLES / "deploy"
UNIT = (DEPLOY / "siglip-onnx.service").read_text(encoding="utf-8")
CONTAINER = re.findall(r"^([A-Z]+) (.+)$", (DEPLOY / "Containerfile").read_text(encoding="utf-8"), re.M)


PROBE = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5678/healthz')"


def serve_and_stop(words: Sequence[str], folder: Path, probe: str = PROBE, **environment: str) -> None:
    """Start the command on a free port, check that it answers, and that SIGTERM ends it within 10 seconds."""
    assert words[0] == "web"
    with started(words=command(*words, "--port", "0"), cwd=folder, **environment) as (process, address):
        assert "http://127.0.0.1:5678/" in probe
        port = address.rstrip("/").rpartition(":")[2]
        proxy = {"http_proxy": "http://127.0.0.1:9"} if probe != PROBE else {}  # which a container may inherit
        subprocess.run([sys.executable, "-c", probe.replace("5678", port)], check=True, env={**os.environ, **proxy})
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)  # both are success for systemd
        assert time.monotonic() - start < 10


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "siglip-onnx.service"
    unit.write_text(UNIT.replace("/opt/siglip-onnx/bin/siglip-onnx", sys.executable))
    done = subprocess.run([systemd, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_command_of_the_unit_serves(tmp_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.+)$", UNIT, re.M)
    program, *words = shlex.split(line)
    assert Path(program).name == "siglip-onnx"
    serve_and_stop(words, tmp_path, SIGLIP_ONNX_CACHE=str(tmp_path / "cache"))


def test_command_and_probe_of_the_container(tmp_path: Path) -> None:
    values = dict(CONTAINER)
    probe = re.findall(r'"([^"]+)"', values["HEALTHCHECK"])[-1]
    assert values["ENTRYPOINT"] == '["siglip-onnx"]'
    serve_and_stop(re.findall(r'"([^"]+)"', values["CMD"]), tmp_path, probe, SIGLIP_ONNX_CACHE=str(tmp_path / "cache"))


def test_container_can_be_built_with_what_converts_checkpoints() -> None:
    """Every published checkpoint has to be exported; a container without the exporter cannot install it later."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert ("ARG", "EXTRAS=web") in CONTAINER
    assert 'pip install --no-cache-dir "/src[$EXTRAS]"' in text
    (extras,) = re.findall(r"--build-arg EXTRAS=(\w+(?:,\w+)*)", text)
    assert {"web", "export"} == set(extras.split(",")) <= set(project["optional-dependencies"])


def test_container_copies_what_the_build_needs() -> None:
    copied = {name for instruction, rest in CONTAINER if instruction == "COPY" for name in rest.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed | set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert all((ROOT / name).exists() for name in copied)
    minimum = project["project"]["requires-python"].removeprefix(">=3.")
    assert int(re.fullmatch(r"python:3\.(\d+)-slim", dict(CONTAINER)["FROM"])[1]) >= int(minimum)  # type: ignore[index]
