"""The commands of docs/export.md run."""

import re
import shlex
from pathlib import Path

import pytest
from support.commands import run

from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_commands_run(small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {
        "CHECKPOINT": small_checkpoint,
        "IMAGES": IMAGES_PATH,
        "LABELS": BUNDLE_PATH.parent / "texts.txt",
        "photo.jpg": IMAGES_PATH / "red_star.png",
    }
    commands = re.findall(r"^siglip-onnx (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 12
    for command in commands:
        arguments = [str(paths.get(word, word)) for word in shlex.split(command, comments=True)]
        result = run(*arguments)
        assert result.exit_code == 0, f"{command}: {result.stderr}"
