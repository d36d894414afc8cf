"""Thousands of mutated images, configs and manifests: a result or our own error, never a crash or a hang."""

import hashlib
import json
import multiprocessing
import os
import random
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from attacks.mutate import mutate, mutate_json
from PIL import Image
from support.images import encode, make_image

from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.config import read_config, read_preprocessor_config
from siglip_onnx.errors import ImageError, SiglipOnnxError
from siglip_onnx.image import FORMATS, ImageLimits, ImageReader, open_image
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.text.tokenizer import Tokenizer

# A mutated header may promise anything: what is decoded is kept small, so that many are.
LIMITS = ImageLimits(max_pixels=2_000_000, max_side=5_000, max_bytes=1_000_000)
SLOW_S = 2.0
LARGEST = 30_000  # bytes of a file that is mutated
PER_TASK = 250
TIMEOUT_S = 300
POOL_SHARE = 5  # of the images that --fuzz names, one in so many is decoded in a process of its own
MAX_GROWTH_MB = 100
DOCUMENTS = 400
Finding = tuple[int, str]


def corpus() -> list[bytes]:
    """Small images of every format and many modes, and odd real files where they are available."""
    rng = np.random.default_rng(3)
    images = [make_image(rng, size) for size in ((31, 17), (64, 64))]
    files = []
    for image in images:
        files += [encode(image, format_) for format_ in sorted(set(FORMATS) - {"PSD"})]  # which Pillow cannot write
        files += [encode(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
        files += [encode(image.convert(mode), "TIFF") for mode in ("1", "L", "P", "CMYK", "F", "YCbCr")]
        files += [
            encode(image, "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ]
        files += [encode(image.convert("L"), "JPEG"), encode(image.convert("CMYK"), "JPEG")]
        files += [encode(image, "JPEG", progressive=True), encode(image, "JPEG2000", no_jp2=True)]
        files += [encode(image, "WEBP", lossless=True), encode(image, "GIF", save_all=True, append_images=images)]
        files += [encode(image, "PNG", save_all=True, append_images=images), encode(image, "TGA", rle=True)]
        exif = Image.Exif()
        exif[0x0112] = 6
        files.append(encode(image, "JPEG", exif=exif))
    if folder := os.environ.get("SIGLIP_ONNX_MATERIAL"):
        odd = sorted((Path(folder) / "images" / "odd").rglob("*"))
        files += [path.read_bytes() for path in odd if path.is_file() and 0 < path.stat().st_size <= LARGEST]
    return files


def decode_many(seed: int) -> tuple[Counter[str], list[Finding]]:
    """Decode mutants; return counts of outcomes, and forbidden outcomes."""
    warnings.simplefilter("ignore")  # of Pillow, about damaged files
    rng, seeds = random.Random(seed), corpus()
    outcomes: Counter[str] = Counter()
    bad: list[Finding] = []
    for number in range(PER_TASK):
        data = mutate(rng.choice(seeds), seeds, rng)
        began = time.perf_counter()
        try:
            image = open_image(data, limits=LIMITS, allow_truncated=number % 2 == 0)
            assert image.rgb.mode == "RGB"
            outcomes["truncated, allowed" if image.truncated else "decoded"] += 1
        except ImageError as error:
            outcomes[error.status] += 1
        except BaseException as error:
            bad.append((number, repr(error)))
        seconds = time.perf_counter() - began
        if seconds > SLOW_S:
            bad.append((number, f"{seconds:.1f} s"))
    return outcomes, bad


@pytest.mark.slow
def test_mutated_images(request: pytest.FixtureRequest) -> None:
    """A worker that crashes breaks the pool, one that hangs runs into the time limit; the seed says which image."""
    tasks = max(1, request.config.getoption("--fuzz") // PER_TASK)
    outcomes: Counter[str] = Counter()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for seed, (counts, findings) in enumerate(pool.map(decode_many, range(tasks), timeout=TIMEOUT_S + tasks)):
            assert findings == [], f"seed {seed}"
            outcomes += counts
    assert outcomes.total() == tasks * PER_TASK
    assert outcomes.keys() >= {"decoded", "decode_error", "too_large", "truncated"}, outcomes


def decode_in_pool(pool: DecoderPool, seed: int) -> tuple[Counter[str], list[Finding]]:
    """Decode mutants in processes of their own, each also here unless it is refused; count the outcomes."""
    rng, seeds = random.Random(seed), corpus()
    direct = ImageReader(LIMITS, allow_truncated=True)
    outcomes: Counter[str] = Counter()
    bad: list[Finding] = []
    for number in range(PER_TASK):
        data = mutate(rng.choice(seeds), seeds, rng)
        expected, found = (_outcome(reader, data) for reader in (direct, pool))
        outcomes[found[0]] += 1
        if found != expected and not found[1].startswith("the image ") and "to decode" not in found[1]:
            bad.append((number, f"{expected} became {found}"))
    return outcomes, bad


def _outcome(reader: ImageReader | DecoderPool, data: bytes) -> tuple[str, str]:
    try:
        image = reader.read(data)
    except ImageError as error:
        return error.status, str(error)
    return "truncated, allowed" if image.truncated else "decoded", hashlib.sha256(image.rgb.tobytes()).hexdigest()


@pytest.mark.slow
def test_mutated_images_in_processes_of_their_own(request: pytest.FixtureRequest) -> None:
    """This process survives every mutant, its memory and that of the decoders stay flat, and results are the same."""
    warnings.simplefilter("ignore")  # of Pillow, about damaged files
    tasks = max(1, request.config.getoption("--fuzz") // PER_TASK // POOL_SHARE)
    outcomes: Counter[str] = Counter()
    pool = DecoderPool(ImageReader(LIMITS, allow_truncated=True))
    with closing(pool):
        for seed in range(tasks):
            counts, findings = decode_in_pool(pool, seed)
            assert findings == [], f"seed {seed}"
            outcomes += counts
            if seed == 0:
                before = memory_mb(pool)
        assert max(after - first for first, after in zip(before, memory_mb(pool), strict=True)) < MAX_GROWTH_MB
    assert outcomes.total() == tasks * PER_TASK
    assert outcomes.keys() >= {"decoded", "decode_error", "too_large", "truncated, allowed"}, outcomes


def memory_mb(pool: DecoderPool) -> list[float]:
    """Return the resident memory of this process and of the pool's only one, 0 where that is unknown."""
    paths = [Path(f"/proc/{pid}/statm") for pid in (os.getpid(), *(each._process.pid for each in pool._running))]
    return [int(path.read_text().split()[1]) * 4096 / 1e6 if path.exists() else 0.0 for path in paths]


def load(folder: Path) -> None:
    config = read_config(folder / "config.json")
    read_preprocessor_config(folder / "preprocessor_config.json", config)
    Tokenizer(folder / "tokenizer.json", 16)(["a cat", "犬"])


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json", "manifest.json"])
def test_mutated_json(small_bundle: Path, tmp_path: Path, name: str) -> None:
    for path in small_bundle.iterdir():
        (tmp_path / path.name).symlink_to(path)
    document = json.loads((small_bundle / name).read_text(encoding="utf-8"))
    if name == "tokenizer.json":  # a shorter vocabulary leaves room for the rest
        document["model"]["vocab"] = document["model"]["vocab"][:40]
    (tmp_path / name).unlink()
    rng = random.Random(8 if name == "manifest.json" else 7)
    refused = 0
    for number in range(DOCUMENTS):
        (tmp_path / name).write_bytes(mutate_json(document, rng).encode("utf-8", errors="surrogateescape"))
        try:
            open_bundle(tmp_path).verify_files() if name == "manifest.json" else load(tmp_path)
        except SiglipOnnxError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"document {number} of {name}") from error
    assert refused > DOCUMENTS / 4
