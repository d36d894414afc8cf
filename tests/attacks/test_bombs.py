"""Every bomb is refused from its header, in no time and no memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks.bombs import BOMBS, png

from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageLimits, load_image

MAX_MB, WATCHDOG_S = 20, 5

# The peak is the process's own: what getrusage tells would include that of the parent which started it.
MEASURE = """
import json, re, sys, time
from siglip_onnx.errors import ImageError
from siglip_onnx.image import load_image
def megabytes(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
data = open(sys.argv[1], "rb").read()
load_image(open(sys.argv[2], "rb").read())
open("/proc/self/clear_refs", "w").write("5")
before = megabytes("VmRSS")
began = time.perf_counter()
try:
    load_image(data)
    status = "decoded"
except ImageError as error:
    status = error.status
seconds = time.perf_counter() - began
print(json.dumps([status, seconds, megabytes("VmHWM") - before]))
"""


def measure(bomb: Callable[[], bytes], folder: Path) -> tuple[str, float, float]:
    """Return status, seconds and megabytes of refusing a bomb, in a process of its own that has decoded before."""
    (folder / "bomb").write_bytes(bomb())
    (folder / "warm").write_bytes(png(64, 64))
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, folder / "bomb", folder / "warm"],
        capture_output=True, text=True, timeout=60 + WATCHDOG_S, check=True,
    )  # fmt: skip
    status, seconds, megabytes = json.loads(process.stdout)
    return status, seconds, megabytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_the_measure_sees_memory(tmp_path: Path) -> None:
    """Otherwise the test below could not fail."""
    status, _, megabytes = measure(lambda: png(5000, 5000), tmp_path)
    assert status == "decoded"
    assert megabytes > MAX_MB


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_are_refused_at_no_cost(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    status, seconds, megabytes = measure(bomb, tmp_path)
    assert status == "too_large"
    assert seconds < WATCHDOG_S
    assert megabytes <= MAX_MB


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_in_files_are_refused(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(bomb())
    for limits in (ImageLimits(), SERVER_LIMITS):
        with pytest.raises(ImageError, match=r"image\.jpg") as caught:
            load_image(path, limits=limits)
        assert caught.value.status == "too_large"
