"""Every bomb is refused from its header, in no time and no memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attacks.bombs import BOMBS, icon, jpeg_of_empty_scans, jpeg_of_passes, png
from support.images import encode, make_image

from siglip_onnx.errors import ImageError
from siglip_onnx.image import SERVER_LIMITS, ImageLimits, load_image

MAX_MB, MAX_CPU_S, WATCHDOG_S = 20, 0.15, 5  # measured: at most 0.05 s
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
began = time.process_time()
try:
    load_image(data)
    status = "decoded"
except ImageError as error:
    status = error.status
seconds = time.process_time() - began
print(json.dumps([status, seconds, megabytes("VmHWM") - before]))
"""


def measure(image: bytes, folder: Path) -> tuple[str, float, float]:
    """Return status, CPU seconds and megabytes of reading an image, in a process of its own that has decoded before."""
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
        assert seconds < MAX_CPU_S
        assert megabytes <= MAX_MB


@pytest.mark.parametrize("name", ["components.jp2", "empty_scans.jpg", "precincts.jp2"])
def test_small_files_of_attackers(name: str, material: Path, tmp_path: Path) -> None:
    status, seconds, megabytes = measure((material / "attacks" / name).read_bytes(), tmp_path)
    assert status == "too_large"
    assert seconds < MAX_CPU_S
    assert megabytes <= MAX_MB


def ordinary_files() -> dict[str, bytes]:
    """Files with as many parts as encoders make."""
    image = make_image(np.random.default_rng(2), (700, 500))
    plain = np.asarray(image.resize((60, 40)))
    numbers = "\n".join(f"# row {row}\n{' '.join(map(str, pixels.ravel()))}" for row, pixels in enumerate(plain))
    comment = {"comment": b"words " * 200_000}  # in 4,700 blocks
    files = {
        "plain ppm": f"P3\n60 40\n255\n{numbers}\n".encode(),
        "jpeg of one scan per component": jpeg_of_empty_scans(0xC0, 1, side=16),
        "jpeg of 60 scans": jpeg_of_passes(60, side=700),
        "icon of many entries": icon(png(16, 16, *[(b"tEXt", b"a\0b")] * 500), side=16, count=256),
        "gif of a long comment": encode(image, "GIF", **comment),
        "progressive jpeg": encode(image, "JPEG", progressive=True, icc_profile=bytes(900_000)),
        "webp": encode(image, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(60_000), xmp=bytes(3_000_000)),
    }
    for compression in ("raw", "tiff_lzw"):
        files[f"tiff of one row per strip, {compression}"] = encode(
            image, "TIFF", compression=compression, tiffinfo={278: 1}
        )
    for number, options in enumerate(
        (
            {"precinct_size": (64, 64)},
            {"tile_size": (128, 128), "num_resolutions": 6},
            {"codeblock_size": (16, 16)},
            {"quality_layers": [80, 60, 40, 20, 10, 5, 2, 1], "precinct_size": (128, 128), "irreversible": True},
        )
    ):
        files[f"jpeg 2000 {number}"] = encode(image, "JPEG2000", **options)
    return files


def test_ordinary_files_pass() -> None:
    for name, data in ordinary_files().items():
        assert load_image(data).width in (60, 700, 16), name
