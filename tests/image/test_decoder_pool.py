"""Decoding in processes of their own: the same pixels, limits that hold, and no process left behind."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attacks.bombs import jpeg_of_empty_scans
from PIL import Image
from support.images import encode, make_image
from support.waiting import wait_until

import siglip_onnx
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.errors import ImageError, SiglipOnnxError
from siglip_onnx.image import ImageLimits, ImageReader, decoder_pool
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.image.decoder_process import DecoderLimits, limit_process
from siglip_onnx.image.preprocess import NaflexFit, ShrinkFit, SquashFit

STAR = IMAGES_PATH / "red_star.png"
READER = ImageReader()
FITS = [None, SquashFit(32, 48, 3), NaflexFit(16, 64, 2), ShrinkFit(40)]
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
# A QOI of 1 x N pixels, one byte each, which Pillow decodes slowly in Python.
SLOW = b"qoif" + (4000).to_bytes(4, "big") + (4000).to_bytes(4, "big") + b"\4\0" + b"\xfe\1\2\3" * 16_000_000


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    with contextlib.closing(DecoderPool(READER)) as pool:
        yield pool


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """A pool on a system without shared memory."""

    def refuse(_name: str) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(decoder_pool.os, "memfd_create", refuse, raising=False)
    monkeypatch.setattr(decoder_pool, "_logged", set())
    with contextlib.closing(DecoderPool(READER)) as pool:
        yield pool


def pids(pool: DecoderPool) -> list[int]:
    return [decoder._process.pid for decoder in pool._running]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    return False


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_same(pool: DecoderPool, source: object) -> None:
    for fit in FITS:
        direct, isolated = (reader.read(source, fit) for reader in (READER, pool))  # type: ignore[arg-type]
        assert np.array_equal(direct.rgb, isolated.rgb)
        assert (direct.size, direct.truncated) == (isolated.size, isolated.truncated)


def test_pixels_are_the_same(pool: DecoderPool, tmp_path: Path) -> None:
    image = make_image(np.random.default_rng(1), (90, 41))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "\udcff 犬.jpg"
    path.write_bytes(encode(image, "JPEG", exif=exif))
    sources = [path, str(path), STAR.read_bytes(), image, np.asarray(image), encode(image.convert("RGBA"), "WEBP")]
    sources += [encode(image.convert("I;16"), "PNG"), encode(image, "AVIF"), encode(image, "JPEG2000")]
    for source in sources:
        assert_same(pool, source)
    assert len(pids(pool)) == 1


def test_errors_are_the_same(pool: DecoderPool, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    sources = [
        tmp_path / "text.jpg",
        tmp_path / "empty.jpg",
        tmp_path / "none.jpg",
        tmp_path,
        STAR.read_bytes()[:-400],
        5,
    ]
    for source in sources:
        with pytest.raises(ImageError) as direct:
            READER.read(source)  # type: ignore[arg-type]
        with pytest.raises(ImageError) as isolated:
            pool.read(source)  # type: ignore[arg-type]
        assert (str(isolated.value), isolated.value.status) == (str(direct.value), direct.value.status)


@ON_LINUX
def test_cpu_time_is_that_of_the_pixels() -> None:
    """A file of few pixels that takes minutes is hostile, and a large photo may take a minute on a slow machine."""
    image = Image.new("RGB", (4000, 3000))
    code = "\n".join((
        "import io, json, resource, sys",
        "from siglip_onnx.image import ImageReader",
        "from siglip_onnx.image.decoder_process import DecoderLimits, _make_reader, _timed, describe_reader",
        "limits = DecoderLimits.of_images(ImageReader().limits)",
        "with _timed(limits):",
        "    print(resource.getrlimit(resource.RLIMIT_CPU)[0])",
        "    _make_reader(describe_reader(ImageReader()), limits).read(sys.stdin.buffer.read())",
        "    print(resource.getrlimit(resource.RLIMIT_CPU)[0])",
    ))  # fmt: skip
    seconds = {}
    for name, data in (("small", encode(image.resize((9, 9)), "GIF")), ("large", encode(image, "GIF")),
                       ("slow", encode(image, "BMP"))):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=60)
        opening, seconds[name] = map(int, done.stdout.split())
        assert opening <= 30
    assert seconds["small"] <= 30
    assert 39 <= seconds["large"] <= 60
    assert 75 <= seconds["slow"] <= 99


@pytest.mark.parametrize(("format_", "here"), [("JPEG", True), ("PNG", True), ("WEBP", True), ("GIF", False),
                                               ("JPEG2000", False), ("AVIF", False), ("TIFF", False)])  # fmt: skip
def test_plain_formats_need_no_process_where_they_are_decoded_here(format_: str, *, here: bool) -> None:
    image = make_image(np.random.default_rng(1), (90, 41))
    with contextlib.closing(DecoderPool(READER, plain_here=True)) as pool:
        assert_same(pool, encode(image, format_))
        assert bool(pids(pool)) != here


@pytest.mark.parametrize(
    ("format_", "size", "here"),
    [
        ("JPEG", (7200, 7200), True),
        ("JPEG", (7400, 7400), False),  # 438 MB if it is turned
        ("progressive", (5900, 5900), True),
        ("progressive", (6000, 6000), False),
        ("PNG", (5100, 5100), True),
        ("PNG", (5200, 5200), False),
        ("WEBP", (4500, 4500), True),
        ("WEBP", (4600, 4600), False),
        ("arithmetic", (1016, 1016), False),
    ],
)
def test_images_that_may_take_much_memory_need_a_process(
    format_: str, size: tuple[int, int], *, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageReader, "_read_opened", lambda *_: "here")
    monkeypatch.setattr(DecoderPool, "_take", lambda *_: None)
    monkeypatch.setattr(DecoderPool, "_decode", lambda *_: "in a process")
    if format_ == "arithmetic":
        data = jpeg_of_empty_scans(0xC9, 1, side=size[0])
    else:
        options = {"progressive": True} if format_ == "progressive" else {}
        data = encode(Image.new("L", size), "JPEG" if options else format_, **options)
    with contextlib.closing(DecoderPool(READER, plain_here=True)) as pool:
        assert pool.read(data) == ("here" if here else "in a process")


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0no image", b"\x89PNG\r\n\x1a\n", b"RIFF0000WEBPno image", b"no"])
def test_errors_of_plain_formats_are_the_same(data: bytes) -> None:
    with contextlib.closing(DecoderPool(READER, plain_here=True)) as pool:
        errors = []
        for reader in (READER, pool):
            with pytest.raises(ImageError) as error:
                reader.read(data)
            errors.append((str(error.value), error.value.status))
        assert errors[0] == errors[1]


def test_options_and_log_lines_pass(caplog: pytest.LogCaptureFixture) -> None:
    reader = ImageReader(ImageLimits(max_pixels=5000), allow_truncated=True, background="red", draft_size=(8, 8))
    with contextlib.closing(DecoderPool(reader)) as pool:
        image = Image.new("RGBA", (50, 50))
        assert pool.read(encode(image, "PNG")).rgb.getpixel((9, 9)) == (255, 0, 0)
        assert pool.read(encode(image.convert("RGB"), "PNG")[:-30]).truncated
        assert "is truncated; what is missing" in caplog.text
        assert pool.read(encode(image.convert("RGB"), "JPEG")).size == (13, 13)
        with pytest.raises(ImageError, match="more than the 5,000 allowed"):
            pool.read(encode(Image.new("RGB", (100, 51)), "PNG"))


def test_model_gives_the_same_vectors() -> None:
    images = sorted(IMAGES_PATH.glob("*.png"))
    direct = siglip_onnx.load("demo").encode_images(images)
    with siglip_onnx.load("demo", workers=2, isolate_decoding=True) as model:
        assert np.array_equal(model.encode_images(images), direct)
        assert isinstance(model.vision.reader, DecoderPool)
        running = pids(model.vision.reader)
        assert 1 <= len(running) <= 2
    assert not any(map(is_alive, running))


def test_many_threads_share_few_processes() -> None:
    data = STAR.read_bytes()
    with contextlib.closing(DecoderPool(READER, 2)) as pool, ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda _: pool.read(data).rgb, range(60)))
        assert len(pids(pool)) <= 2
    assert all(np.array_equal(image, images[0]) for image in images)


def test_without_shared_memory_pipes_are_used(piped: DecoderPool, caplog: pytest.LogCaptureFixture) -> None:
    image = make_image(np.random.default_rng(1), (700, 500))
    assert_same(piped, encode(image, "PNG"))
    assert_same(piped, encode(image, "PNG", compress_level=0))  # a megabyte
    assert caplog.text.count("through pipes instead of shared memory (Function not implemented)") == 1
    with pytest.raises(ImageError, match="not a readable image"):
        piped.read(b"no image")


@ON_LINUX
@pytest.mark.parametrize("blocks", [0, 10])
def test_low_limits_of_files_do_not_apply_to_images(blocks: int) -> None:
    words = f"{sys.executable} -m siglip_onnx classify {STAR} --model demo --text 'a red star' --isolate-decoding"
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -f {blocks}; {words}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "a red star" in done.stdout
    assert "through pipes instead of shared memory, because files may have only" in done.stderr
    assert done.returncode == 0


@ON_LINUX
def test_generous_limits_take_no_memory() -> None:
    """Python allocates what one call of an open file's ``read`` asks for."""
    content = STAR.read_bytes()
    for max_bytes, max_pixels in ((sys.maxsize, 10**9), (10**30, 10**9)):
        reader = ImageReader(ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels))
        with contextlib.closing(DecoderPool(reader)) as pool, STAR.open("rb") as file:
            for source in (STAR, content, io.BytesIO(content), file):
                assert pool.read(source).size == reader.read(source).size == (256, 256)
    code = f"""
import resource, sys
from siglip_onnx.image import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
pool = DecoderPool(ImageReader())
pool.start()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1))
for reader in (pool, pool.reader):
    for source in ({str(STAR)!r}, open({str(STAR)!r}, "rb")):
        print(reader.read(source).size)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "(256, 256)\n" * 4


def test_time_without_poll_is_limited_by_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(decoder_pool.select, "poll")
    limits = DecoderLimits(1_000_000_000, cpu_seconds=100, wall_seconds=0.5)
    with contextlib.closing(DecoderPool(READER, 1, limits)) as pool:
        assert pool.read(STAR).size == (256, 256)
        with pytest.raises(ImageError, match="takes more than 0 seconds to decode") as caught:
            pool.read(SLOW)
        assert caught.value.status == "too_large"


@ON_LINUX
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (DecoderLimits(1_000_000_000, cpu_seconds=100, wall_seconds=0.5), "more than 0 seconds"),
        (DecoderLimits(1_000_000_000, cpu_seconds=1, wall_seconds=100.0), "more CPU time than images of its size need"),
        (DecoderLimits(20_000_000, cpu_seconds=100, wall_seconds=100.0), "more than 20,000,000 bytes of memory"),
    ],
)
def test_image_beyond_a_limit_is_too_large_and_the_next_is_read(limits: DecoderLimits, reason: str) -> None:
    with contextlib.closing(DecoderPool(READER, 1, limits)) as pool:
        pool.read(STAR)
        first = pids(pool)
        with pytest.raises(ImageError, match=f"takes {reason}") as caught:
            pool.read(SLOW)
        assert caught.value.status == "too_large"
        assert not is_alive(first[0])
        assert_same(pool, STAR)


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_process_that_dies_between_images_is_replaced(pool: DecoderPool, number: int) -> None:
    pool.read(STAR)
    first = pids(pool)
    os.kill(first[0], number)
    assert_same(pool, STAR)
    assert pids(pool) != first


@ON_LINUX
@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [(signal.SIGKILL, "too_large", "more memory than the system has"), (signal.SIGSEGV, "decode_error", "SIGSEGV")],
)
def test_image_that_kills_its_process_is_refused(pool: DecoderPool, number: int, status: str, reason: str) -> None:
    pool.start()  # a process that has read no image before: the image is not tried again
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(pool.read, SLOW)
        wait_until(lambda: not pool._idle)
        time.sleep(0.5)
        os.kill(pids(pool)[0], number)
        with pytest.raises(ImageError, match=reason) as caught:
            result.result()
    assert caught.value.status == status
    assert_same(pool, STAR)


@ON_LINUX
def test_decoder_can_open_no_file_and_no_connection() -> None:
    code = """
import os, socket
from siglip_onnx.image.decoder_process import DecoderLimits, limit_process
descriptor = os.open("/dev/null", os.O_RDONLY)
os.dup2(descriptor, 40)  # a gap below
print(limit_process(DecoderLimits(100_000_000, 1, 1.0), 1000))
for attempt in (lambda: socket.socket(), lambda: open("/dev/null"), lambda: os.dup(0)):
    try:
        attempt()
        print("opened")
    except OSError as error:
        print(error.errno)
try:
    bytearray(200_000_000)
except MemoryError:
    print("no memory")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["[]", "24", "24", "24", "no memory"]


def test_missing_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert limit_process(DecoderLimits(1, 1, 1.0), 0) == ["memory", "CPU time", "files", "network"]


def test_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable, problem in (("/nonexistent", "No such file"), ("/bin/false", "did not start \\(exit code 1\\)")):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(SiglipOnnxError, match=f"{problem}.*--no-isolate-decoding"):
            DecoderPool(READER).read(STAR)


KILL = """
decoder = next(iter(pool._running))._process
os.kill(decoder.pid, signal.SIGKILL)
decoder.wait()
"""
LEAVE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for commands in the background
from siglip_onnx.image.decode import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
pool = DecoderPool(ImageReader())
pool.read(sys.argv[1])
print(next(iter(pool._running))._process.pid, flush=True)
"""


@ON_LINUX
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(0)", 0),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
        ("pid = os.fork()\nif pid: os.waitpid(pid, 0); os._exit(0)\nelse: pool.read(sys.argv[1]); sys.exit(0)", 0),
    ],
)
def test_no_process_is_left(end: str, code: int) -> None:
    command = [sys.executable, "-c", LEAVE + end, STAR]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == code
    assert "Exception ignored" not in process.stderr
    wait_until(lambda: not is_alive(int(process.stdout)))


@ON_LINUX
def test_a_broken_pipe_ends_no_host_that_lets_it() -> None:
    """As scripts do that give SIGPIPE its default: the process that died is replaced."""
    code = f"signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n{KILL}\nprint(pool.read(sys.argv[1]).size)"
    command = [sys.executable, "-c", LEAVE + code, STAR]
    assert subprocess.check_output(command, text=True).splitlines()[1:] == ["(256, 256)"]


BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"  # as hosts in other languages do
IGNORED = "for each in (signal.SIGXCPU, signal.SIGALRM, signal.SIGIO): signal.signal(each, signal.SIG_IGN)\n"
DAEMON = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"  # no exit code of a child is known then


@ON_LINUX
@pytest.mark.parametrize("signals", [BLOCKED, IGNORED, DAEMON])
def test_limits_hold_whatever_the_host_does_with_signals(signals: str, tmp_path: Path) -> None:
    code = f"""
import signal, sys
from siglip_onnx import ImageError
from siglip_onnx.image.decode import ImageReader
from siglip_onnx.image.decoder_pool import DecoderPool
from siglip_onnx.image.decoder_process import DecoderLimits
{signals}
pool = DecoderPool(ImageReader(), 1, DecoderLimits(1_000_000_000, cpu_seconds=1, wall_seconds=100.0))
pool.read(sys.argv[1])
try:
    pool.read(sys.argv[2])
except ImageError as error:
    print(error.status, "more CPU time" in str(error))
"""
    (tmp_path / "slow.qoi").write_bytes(SLOW)
    command = [sys.executable, "-c", code, STAR, tmp_path / "slow.qoi"]
    assert subprocess.check_output(command, text=True) == "too_large True\n"


@ON_LINUX
@pytest.mark.parametrize(
    ("number", "signals"),
    [(signal.SIGINT, ""), (signal.SIGTERM, ""), *((signal.SIGKILL, signals) for signals in ("", BLOCKED, IGNORED))],
)
def test_a_signal_during_an_image_ends_its_process_too(number: int, signals: str) -> None:
    """Also where the parent cannot do so: SIGTERM and SIGKILL end it at once."""
    code = (
        LEAVE.replace("pool.read", signals + "pool.read")
        + "sys.stdin.buffer.read(1)\npool.read(sys.stdin.buffer.read())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, STAR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    decoder = int(process.stdout.readline())
    process.stdin.write(b"." + SLOW)
    process.stdin.close()
    time.sleep(1.5)
    process.send_signal(number)
    assert process.wait(20) == -number
    wait_until(lambda: not is_alive(decoder), seconds=3)  # the image takes longer
    process.stdout.close()
    assert process.stderr
    process.stderr.close()


@ON_LINUX
@pytest.mark.parametrize("before", [0, 1])
def test_closing_ends_the_image_in_progress(before: int) -> None:
    descriptors = num_descriptors()
    pool = DecoderPool(READER, 2)
    with ThreadPoolExecutor() as threads:
        for _ in range(before):
            pool.read(STAR)
        slow = threads.submit(pool.read, SLOW)
        wait_until(lambda: any(decoder._num_images > before for decoder in pool._running))
        decoders = pids(pool)
        pool.close()
        assert not any(map(is_alive, decoders))
        with pytest.raises(SiglipOnnxError, match=r"pool was closed meanwhile\.$"):
            slow.result()
    assert pids(pool) == []
    assert_same(pool, STAR)
    pool.close()
    assert num_descriptors() == descriptors


@ON_LINUX
def test_closing_ends_the_process_that_starts() -> None:
    descriptors = num_descriptors()
    pool = DecoderPool(READER)
    with ThreadPoolExecutor() as threads:
        for number in range(12):
            start = threads.submit(pool.start)
            wait_until(lambda: pool._running)
            time.sleep(number * 0.01)  # from one that was just started to one that is ready
            pool.close()
            error = start.exception()
            assert error is None or "pool was closed meanwhile" in str(error)
            assert pids(pool) == pool._idle == []
    assert num_descriptors() == descriptors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_pool_survives_fork(pool: DecoderPool) -> None:
    pool.read(STAR)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            same = np.array_equal(pool.read(STAR).rgb, READER.read(STAR).rgb)
            pool.close()
            os._exit(0 if same else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first = pids(pool)
    assert_same(pool, STAR)
    assert pids(pool) == first


@ON_LINUX
def test_large_files_pass_in_blocks(pool: DecoderPool, tmp_path: Path) -> None:
    """Only what a decoder asks for is read, and a hole, of which a file can have half a gigabyte, takes nothing."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8))
    for format_ in ("BMP", "TIFF", "JPEG2000"):
        (tmp_path / "x").write_bytes(encode(noise, format_))
        assert_same(pool, tmp_path / "x")
    path = tmp_path / "sparse.gif"
    with path.open("wb") as file:
        file.write(encode(make_image(np.random.default_rng(1)), "GIF"))
        file.truncate(100_000_000)
    assert_same(pool, path)
    tracemalloc.start()
    pool.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@ON_LINUX
@pytest.mark.parametrize("cut", [False, True])
def test_a_large_file_takes_no_memory_after_its_image(cut: bool, pool: DecoderPool) -> None:
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)), "BMP")
    with contextlib.suppress(ImageError):
        pool.read(data[:-100] if cut else data)
    (decoder,) = pool._running
    assert decoder._memory is not None
    assert os.fstat(decoder._memory).st_size == 0


@ON_LINUX
def test_shared_memory_of_a_large_image_is_returned(pool: DecoderPool) -> None:
    pool.read(encode(Image.new("RGB", (4000, 2000)), "PNG"))
    (decoder,) = pool._running
    assert decoder._memory is not None
    assert os.fstat(decoder._memory).st_size == 0


@ON_LINUX
@pytest.mark.parametrize(
    "reply", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b'\0\0\0\x14{"fitted": [9, 1e99]}', b"\0\0\0\1x"]
)
def test_hijacked_decoder_cannot_harm(pool: DecoderPool, reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.read(STAR)
    (decoder,) = pool._running
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_process", _Hijacked(decoder._process, reply))
        with pytest.raises(ImageError, match="crashed its decoder"):
            pool.read(STAR)
    decoder._process.stdout.close()
    assert_same(pool, STAR)


class _Hijacked:
    """A process with another reply."""

    def __init__(self, process: subprocess.Popen[bytes], reply: bytes) -> None:
        self._process = process
        read, write = os.pipe()
        os.write(write, reply)
        os.close(write)
        self.stdout = io.FileIO(read)

    def __getattr__(self, name: str) -> object:
        return getattr(self._process, name)


def test_limits_of_ordinary_images() -> None:
    limits = DecoderLimits.of_images(ImageLimits())
    assert limits.wall_seconds < 300  # after which a bulk job ends a worker
    assert limits.memory_bytes > 25 * ImageLimits().max_pixels


def test_logs_nothing_by_default(pool: DecoderPool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="siglip_onnx"):
        pool.read(STAR)
    assert caplog.records == []
