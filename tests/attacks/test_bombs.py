"""Every bomb is refused from its header, in no time and no memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attacks.bombs import BOMBS, png

from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageLimits, load_image

MAX_MB, WATCHDOG_S = 20, 5
MEASURABLE = Path("/proc/self/clear_refs").exists()

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


def measure(image: bytes, folder: Path) -> tuple[str, float, float]:
    """Return status, seconds and megabytes of reading an image, in a process of its own that has decoded before."""
    (folder / "image.jpg").write_bytes(image)
    (folder / "warm").write_bytes(png(64, 64))
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, folder / "image.jpg", folder / "warm"],
        capture_output=True, text=True, timeout=60 + WATCHDOG_S, check=True,
    )  # fmt: skip
    status, seconds, megabytes = json.loads(process.stdout)
    return status, seconds, megabytes


@pytest.mark.skipif(not MEASURABLE, reason="needs /proc")
def test_the_measure_sees_memory(tmp_path: Path) -> None:
    """Otherwise the test below could not fail."""
    status, _, megabytes = measure(png(5000, 5000), tmp_path)
    assert status == "decoded"
    assert megabytes > MAX_MB


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_no_cost(name: str, tmp_path: Path) -> None:
    bomb = BOMBS[name]()
    (tmp_path / "image.jpg").write_bytes(bomb)
    for limits in (ImageLimits(), SERVER_LIMITS):
        with pytest.raises(ImageError, match=r"image\.jpg") as caught:
            load_image(tmp_path / "image.jpg", limits=limits)
        assert caught.value.status == "too_large"
    if MEASURABLE:
        status, seconds, megabytes = measure(bomb, tmp_path)
        assert status == "too_large"
        assert seconds < WATCHDOG_S
        assert megabytes <= MAX_MB
