"""Every bomb is refused from its header, in no time and no memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bombs import BOMBS

from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageLimits, load_image

MAX_MB, WATCHDOG_S = 20, 5

MEASURE = """
import json, resource, sys, time
from siglip_onnx.errors import ImageError
from siglip_onnx.image import ImageLimits, load_image
data = open(sys.argv[1], "rb").read()
warm = open(sys.argv[2], "rb").read()
load_image(warm)
for path in sys.argv[3:]:
    try:
        load_image(open(path, "rb").read(), limits=ImageLimits(max_pixels=1000))  # loads that format's plugin
    except ImageError:
        pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
try:
    load_image(data)
    status = "decoded"
except ImageError as error:
    status = error.status
seconds = time.perf_counter() - began
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([status, seconds, grown * (1 if sys.platform == "darwin" else 1024) / 1e6]))
"""


def measure(bomb: Callable[[], bytes], folder: Path) -> tuple[str, float, float]:
    """Return status, seconds and megabytes of refusing a bomb, in a process of its own that has decoded before."""
    from bombs import png

    (folder / "bomb").write_bytes(bomb())
    (folder / "warm").write_bytes(png(64, 64))
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, folder / "bomb", folder / "warm"],
        capture_output=True, text=True, timeout=60 + WATCHDOG_S, check=True,
    )  # fmt: skip
    status, seconds, megabytes = json.loads(found.stdout)
    return status, seconds, megabytes


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_cost_nothing(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    status, seconds, megabytes = measure(bomb, tmp_path)
    assert status == "too_large"
    assert seconds < WATCHDOG_S
    assert megabytes <= MAX_MB


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bombs_are_refused_as_files_too(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(bomb())
    for limits in (ImageLimits(), SERVER_LIMITS):
        with pytest.raises(ImageError, match=r"picture\.jpg") as found:
            load_image(path, limits=limits)
        assert found.value.status == "too_large"
