"""One model in many threads, after a fork, closed; and memory that does not grow."""

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.engines import ENGINES, Providers
from support.images import make_image

import siglip_onnx
from siglip_onnx import SiglipOnnxError
from siglip_onnx.session import return_free_memory

WATCHDOG_S = 10
THREADS, CALLS, FULL_CALLS = 8, 40, 500
REQUESTS, FULL_REQUESTS = 1000, 10_000
Call = Callable[[], NDArray[np.float32]]


def mixed_calls(model: siglip_onnx.SigLIP, count: int) -> list[Call]:
    """Images of many sizes, texts of many lengths, labels in templates, and preprocessing, in a fixed order."""
    rng = np.random.default_rng(5)
    images = [make_image(rng, (int(w), int(h))) for w, h in rng.integers(5, 200, (12, 2))]
    texts = ["a cat", "犬", "", "word " * 100, "a photo of a red circle", "e\u0301", "</s> x"]

    def call(number: int) -> Call:
        image, text = images[number % len(images)], texts[number % len(texts)]
        kinds: list[Call] = [
            lambda: model.encode_images(image),
            lambda: model.encode_texts([text, f"{text} {number}"]),
            lambda: model.encode_labels([text], template=["{}", "a photo of {}."]),
            lambda: np.array([match.logit for match in model.classify(image, [text, "b"])], np.float32),
            lambda: model.preprocess(image)[0]["pixel_values"],  # type: ignore[return-value,list-item]
        ]
        return kinds[number % len(kinds)]

    return [call(number) for number in range(count)]


@pytest.mark.parametrize("providers", ENGINES)
@pytest.mark.parametrize("variant", ["int8", pytest.param("fp32", marks=pytest.mark.export)])
def test_threads_give_bit_equal_results(small_bundle: Path, full: bool, variant: str, providers: Providers) -> None:
    calls = FULL_CALLS if full else CALLS
    models = [siglip_onnx.load(small_bundle, variant=variant, providers=providers) for _ in range(2)]
    expected = [call() for call in mixed_calls(models[0], calls)]
    shared = mixed_calls(models[1], calls)
    start = threading.Barrier(THREADS)

    def work(thread: int) -> list[int]:
        start.wait(WATCHDOG_S)
        order = [(number + thread * calls // THREADS) % calls for number in range(calls)]
        return [number for number in order if not np.array_equal(shared[number](), expected[number])]

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [[]] * THREADS


def run_python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; a process that hangs fails the test."""
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60 + WATCHDOG_S, check=False)


FORK = f"""
import os, signal, sys, threading
import numpy as np
import siglip_onnx
ending, path, *providers = sys.argv[1:]
model = siglip_onnx.load(path, threads=2, providers=providers or None)
image = np.zeros((50, 40, 3), np.uint8)
expected = model.encode_images(image), model.encode_texts(["a"])
inherited = [getattr(model, tower).session.load() for tower in ("vision", "text")]
stop = threading.Event()
busy = threading.Thread(target=lambda: [model.classify(image, [str(n)]) for n in range(10**6) if not stop.is_set()])
busy.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm({WATCHDOG_S})
        code = 7
        try:
            results = model.encode_images(image), model.encode_texts(["a"])
            code = 0 if all(np.array_equal(*pair) for pair in zip(results, expected)) else 8
            if any(getattr(model, tower).session.load() in inherited for tower in ("vision", "text")):
                code = 6
        except siglip_onnx.errors.ProviderError as error:
            code = 5 if "OpenVINO does not work in this process" in str(error) else 4
        finally:
            if ending == "abrupt":
                os._exit(code)
            model.close()
        raise SystemExit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    if ending == "orderly":
        break
stop.set()
busy.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("providers", ENGINES)
@pytest.mark.parametrize("ending", ["abrupt", "orderly"])
def test_a_forked_child_loads_its_own_towers(small_bundle: Path, ending: str, providers: Providers) -> None:
    """While another thread of the parent computes and may hold any lock; OpenVINO, which would hang, is refused."""
    process = run_python("-c", FORK, ending, small_bundle, *(providers or ()))
    lines = process.stdout.split()
    assert lines
    assert set(lines) == {"5" if providers else "0"}, process.stdout + process.stderr


POOL = """
import multiprocessing, sys
import numpy as np
import siglip_onnx

def embed(path):
    import siglip_onnx
    return siglip_onnx.load(path).encode_texts(["a"]).tolist()

if __name__ == "__main__":
    path, method = sys.argv[1:]
    expected = embed(path)
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(embed, [path] * 4).get(50)
    print(all(result == expected for result in results))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_start_method_of_processes(small_bundle: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    process = run_python(script, small_bundle, method)
    assert process.stdout.strip() == "True", process.stderr


@pytest.mark.parametrize("providers", ENGINES)
def test_closed_model_raises_an_error(small_bundle: Path, providers: Providers) -> None:
    with siglip_onnx.load(small_bundle, providers=providers) as model:
        model.encode_texts(["a"])
    model.close()
    with pytest.raises(SiglipOnnxError, match="This model is closed"):
        model.encode_texts(["b"])
    with pytest.raises(SiglipOnnxError, match="This model is closed"):
        model.encode_images(Image.new("RGB", (8, 8)))
    model.vision.session.preload()


def test_close_does_not_break_runs_in_progress(small_bundle: Path) -> None:
    for _ in range(10):
        model = siglip_onnx.load(small_bundle)
        outcomes: list[str] = []

        def work(model: siglip_onnx.SigLIP = model, outcomes: list[str] = outcomes) -> None:
            try:
                for number in range(20):
                    model.encode_texts([str(number)])
                outcomes.append("done")
            except SiglipOnnxError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        model.close()
        for thread in threads:
            thread.join(WATCHDOG_S)
        assert len(outcomes) == 3
        assert all(outcome == "done" or "is closed" in outcome for outcome in outcomes)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow(small_bundle: Path, full: bool) -> None:
    requests = FULL_REQUESTS if full else REQUESTS
    model = siglip_onnx.load(small_bundle, threads=1)
    calls = mixed_calls(model, 500)
    for call in calls:
        call()
    before = resident_mb()
    for number in range(requests):
        calls[number % len(calls)]()
    grown = resident_mb() - before
    logging.getLogger(__name__).warning("%d mixed calls: %.1f MB, grown by %.2f MB", requests, before, grown)
    assert grown <= min(50, 0.05 * before)


def resident_mb() -> float:
    gc.collect()
    return_free_memory()
    time.sleep(0.05)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
