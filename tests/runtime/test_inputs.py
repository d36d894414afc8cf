"""What counts as images and as texts, what is refused with which error, and models that are pickled and copied."""

import copy
import gzip
import io
import json
import lzma
import mmap
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

import siglip_onnx
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import (
    BundleError,
    CacheError,
    DataError,
    DownloadError,
    ImageError,
    ImageFileError,
    ImageNotFoundError,
    JobNotFoundError,
    ModelNotFoundError,
    OptionError,
    SiglipOnnxError,
    TextError,
)
from siglip_onnx.head import CALIBRATION_FORMAT
from siglip_onnx.hub.cache import cache_errors
from siglip_onnx.image.decode import open_image

PATHS = sorted(IMAGES_PATH.iterdir())[:3]
CONTENTS = [path.read_bytes() for path in PATHS]
TEXTS = ["a red star", "犬"]


@pytest.fixture(scope="module")
def demo() -> siglip_onnx.SigLIP:
    return siglip_onnx.load("demo")


@pytest.fixture(scope="module")
def expected(demo: siglip_onnx.SigLIP) -> Any:
    return demo.encode_images(PATHS)


@pytest.mark.parametrize(
    "images",
    [
        lambda: (path for path in PATHS),
        lambda: np.array([str(path) for path in PATHS]),
        lambda: np.array(PATHS, object),
        lambda: [path.open("rb") for path in PATHS],
        lambda: [path.open("rb", buffering=0) for path in PATHS],
        lambda: [io.BytesIO(content) for content in CONTENTS],
        lambda: [SimpleNamespace(read=io.BytesIO(content).read) for content in CONTENTS],  # as of a socket
        lambda: [memoryview(content) for content in CONTENTS],
        lambda: [bytearray(content) for content in CONTENTS],
        lambda: [{"bytes": content, "path": None} for content in CONTENTS],
        lambda: [{"bytes": None, "path": str(path)} for path in PATHS],
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the files stay the caller's
def test_images_in_every_form_give_the_same_bits(
    demo: siglip_onnx.SigLIP, expected: Any, images: Callable[[], Any]
) -> None:
    assert_array_equal(demo.encode_images(images()), expected)


def test_a_single_open_file_is_read_from_its_beginning(demo: siglip_onnx.SigLIP, expected: Any) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(CONTENTS[0])
        file.flush()
        assert_array_equal(demo.encode_images(file), expected[:1])  # type: ignore[arg-type]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert_array_equal(demo.encode_images(mapped), expected[:1])  # type: ignore[arg-type]
    assert len(demo.classify(io.BytesIO(CONTENTS[0]), TEXTS)) == 2
    assert len(demo.classify([io.BytesIO(CONTENTS[0])], TEXTS)[0]) == 2


class _Upload:
    async def read(self, _size: int = -1) -> bytes:
        return b""


class _Table:
    """As a DataFrame: iterable, but over the names of its columns."""

    ndim = 2

    def __iter__(self) -> Any:
        return iter(["image", "text"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "a dict of nothing; expected {'bytes'"),
        ({"image": b""}, "a dict of 'image'; expected {'bytes'"),
        ({"bytes": None}, "a dict of 'bytes'"),
        ({"bytes": CONTENTS[0], "label": 1}, "a dict of 'bytes', 'label'"),
        (io.StringIO("text"), "not a binary file; open it with mode 'rb'"),
        (io.BytesIO(), "the BytesIO is empty"),
        (_Upload(), "read asynchronously; give its content"),
        (_Table(), "cannot be a _Table"),
        ({"a.png", "b.png"}, "cannot be a set"),
        (np.zeros((), np.uint8), "An image array is uint8"),
    ],
)
def test_other_objects_are_refused(demo: siglip_onnx.SigLIP, images: Any, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        demo.encode_images(images)
    assert message in str(caught.value)
    assert caught.value.index is None


def test_a_closed_file_is_an_os_error(demo: siglip_onnx.SigLIP) -> None:
    with PATHS[0].open("rb") as file:
        pass
    with pytest.raises(ImageFileError, match="closed file"):
        demo.encode_images(file)


def open_undecoded() -> Image.Image:
    return Image.open(PATHS[0])


@pytest.mark.parametrize("make", [lambda: io.BytesIO(CONTENTS[0]), open_undecoded, lambda: Image.new("RGB", (8, 8))])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_image_is_named_and_ends_no_stream(workers: int, make: Callable[[], Any]) -> None:
    closed = make()
    closed.close()
    with siglip_onnx.load("demo", workers=workers) as model:
        first, error, last = model.stream_images([PATHS[0], closed, PATHS[1]])
    assert isinstance(error, ImageFileError)
    assert "closed" in str(error)
    assert not isinstance(first, ImageError)
    assert not isinstance(last, ImageError)


def test_a_path_may_be_of_bytes_where_an_object_gives_it(demo: siglip_onnx.SigLIP) -> None:
    with os.scandir(os.fsencode(PATHS[0].parent)) as entries:
        entry = next(entry for entry in entries if os.fsdecode(entry.name) == PATHS[0].name)
    assert_array_equal(demo.encode_images(entry), demo.encode_images(PATHS[0]))


@pytest.mark.parametrize("url", ["https://example.invalid/a.png", "data:image/png;base64,AAAA"])
def test_a_url_is_named_as_such(url: str, demo: siglip_onnx.SigLIP) -> None:
    with pytest.raises(ImageNotFoundError, match=re.escape(f"{url} is a URL; fetch it, and give its content.")):
        demo.encode_images(url)


def damaged_files() -> Iterator[Any]:
    """Yield open files whose content cannot be read to its end."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", CONTENTS[0])
    changed = archive.getvalue().replace(CONTENTS[0], CONTENTS[0][:-1] + b"x")
    with (
        zipfile.ZipFile(io.BytesIO(changed)).open("a.png") as member,
        gzip.open(io.BytesIO(gzip.compress(CONTENTS[0])[:-20])) as cut,
        lzma.open(io.BytesIO(lzma.compress(CONTENTS[0])[:-20])) as other,
    ):
        yield from (member, cut, other)
    failing = Mock()
    failing.read.side_effect = RuntimeError("no network")
    yield failing


def test_a_file_that_cannot_be_read_is_one_error(demo: siglip_onnx.SigLIP) -> None:
    *errors, embedded = demo.stream_embeddings(chain(damaged_files(), PATHS[:1]))
    assert not isinstance(embedded, ImageError)
    assert {type(error) for error in errors} == {ImageFileError}
    messages = " ".join(map(str, errors))
    assert messages.count("cannot be read: ") == len(errors) == 4
    for cause in ("Bad CRC-32", "ended before the end-of-stream marker", "no network"):
        assert cause in messages


def test_the_error_says_which_image_failed(demo: siglip_onnx.SigLIP, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ImageError, match=r"^images\[1\]: nowhere\.png does not exist") as caught:
        demo.encode_images([PATHS[0], "nowhere.png", b"x"])
    assert (caught.value.index, caught.value.status) == (1, "io_error")
    with pytest.raises(ImageError, match=r"^nowhere\.png does not exist") as caught:
        demo.encode_images("nowhere.png")
    assert caught.value.index is None
    assert caplog.messages == []
    rows = demo.encode_images([PATHS[0], "nowhere.png", PATHS[1], b"x"], on_error="skip")
    assert_array_equal(rows, demo.encode_images(PATHS[:2]))
    assert [message.partition(":")[0] for message in caplog.messages] == ["images[1]", "images[3]"]
    assert demo.encode_images(["nowhere.png"], on_error="skip").shape == (0, 128)
    with pytest.raises(OptionError, match="on_error is 'ignore', expected 'raise' or 'skip'"):
        demo.encode_images([], on_error="ignore")


@pytest.mark.parametrize(
    "texts",
    [
        lambda: (text for text in TEXTS), lambda: iter(TEXTS), lambda: np.array(TEXTS),
        lambda: np.array(TEXTS, object), lambda: dict.fromkeys(TEXTS).keys(),
    ],
)  # fmt: skip
def test_texts_of_any_iterable_give_the_same_bits(demo: siglip_onnx.SigLIP, texts: Callable[[], Any]) -> None:
    assert_array_equal(demo.encode_texts(texts()), demo.encode_texts(TEXTS))
    assert_array_equal(demo.encode_labels(texts(), template="a {}"), demo.encode_labels(TEXTS, template="a {}"))
    assert [match.text for match in demo.classify(PATHS[0], texts())] == TEXTS
    assert_array_equal(demo.tokenize(texts()), demo.tokenize(TEXTS))


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        ({"a": 1}, "dict"), (b"a", "bytes"), (np.array("a"), "ndarray"), (np.array([["a"]]), "ndarray"),
        (_Table(), "_Table"), (io.StringIO("a\nb"), "StringIO"), (3, "int"), (None, "NoneType"),
    ],
)  # fmt: skip
def test_what_is_not_a_list_of_texts_is_refused(demo: siglip_onnx.SigLIP, texts: Any, kind: str) -> None:
    with pytest.raises(TextError, match=f"Texts cannot be a {kind}; give a list"):
        demo.encode_texts(texts)


def test_names_that_no_file_can_have_are_errors_of_this_package() -> None:
    with pytest.raises(ModelNotFoundError):
        siglip_onnx.load("a" * 5000)
    with pytest.raises(OptionError, match="which no file can be called"):
        siglip_onnx.load("demo", label_cache="a\0b")


def test_errors_are_also_those_of_python(demo: siglip_onnx.SigLIP, tmp_path: Path) -> None:
    calls: list[tuple[Callable[[], object], type[SiglipOnnxError], type[Exception]]] = [
        (lambda: demo.encode_images(b"x"), ImageError, ValueError),
        (lambda: demo.encode_images(tmp_path), ImageError, OSError),
        (lambda: demo.encode_images(tmp_path / "none.png"), ImageError, FileNotFoundError),
        (lambda: demo.encode_texts([3]), TextError, ValueError),  # type: ignore[list-item]
        (lambda: demo.encode_labels([b"a"]), TextError, ValueError),  # type: ignore[list-item]
        (lambda: demo.encode_labels([None]), TextError, ValueError),  # type: ignore[list-item]
        (lambda: siglip_onnx.load("/nowhere/at/all"), ModelNotFoundError, FileNotFoundError),
        (lambda: siglip_onnx.load("a/b", offline=True), DownloadError, OSError),
        (lambda: siglip_onnx.load("demo", workers=0), OptionError, ValueError),
        (lambda: siglip_onnx.ImageLimits(max_side=0), OptionError, ValueError),
        (lambda: siglip_onnx.load("demo", threads=0).encode_texts(["a"]), OptionError, ValueError),
        (lambda: siglip_onnx.load("demo", background="no color"), OptionError, ValueError),
        (lambda: siglip_onnx.load("demo", providers=["X"]).encode_texts(["a"]), siglip_onnx.ProviderError, ValueError),
        (lambda: demo.logits(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)), OptionError, ValueError),
        (lambda: demo.logits(np.eye(128)[:2], np.eye(128)[:2], logit_bias=np.zeros(3)), OptionError, ValueError),
    ]
    for call, own, python in calls:
        with pytest.raises(own) as caught:
            call()
        assert isinstance(caught.value, python), own
        copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (type(copied), str(copied), vars(copied)) == (type(caught.value), str(caught.value), vars(caught.value))
    assert issubclass(JobNotFoundError, FileNotFoundError)


def test_an_error_of_this_package_is_not_taken_for_one_of_the_system() -> None:
    """Blocks that turn an OSError into an error of their own pass on ours, of which some are OSErrors too."""
    with pytest.raises(ModelNotFoundError), cache_errors():
        raise ModelNotFoundError("no such model")
    with pytest.raises(CacheError), cache_errors():
        raise PermissionError(13, "denied")


def test_workers_auto_means_one_per_cpu() -> None:
    model = siglip_onnx.load("demo", workers="auto")
    assert len(model.encode_images(PATHS)) == 3
    with pytest.raises(OptionError, match="workers is 'many', expected a number from 1 to 512, or 'auto'"):
        siglip_onnx.load("demo", workers="many")


@pytest.mark.parametrize("copy_", [lambda model: pickle.loads(pickle.dumps(model)), copy.copy, copy.deepcopy])  # noqa: S301
def test_pickled_models_are_opened_again(copy_: Callable[[Any], Any], expected: Any) -> None:
    model = siglip_onnx.load("demo", threads=1, background="black", variant="int8")
    model.encode_texts(["a"])
    other = copy_(model)
    assert other is not model
    assert not other.text.session.is_loaded
    assert repr(other) == repr(model)
    assert repr(model) == "SigLIP('demo', variant='int8', embedding_dim=128, providers=['CPUExecutionProvider'])"
    assert other.vision.reader == model.vision.reader
    model.close()
    assert_array_equal(other.encode_images(PATHS), expected)


def test_a_model_is_sent_to_another_process(demo: siglip_onnx.SigLIP, expected: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert_array_equal(pool.submit(demo.encode_images, PATHS).result(), expected)


def write_calibration(path: Path, bias: float) -> None:
    demo = siglip_onnx.load("demo")
    document = {"format": CALIBRATION_FORMAT, "model": "demo", "variant": demo.variant, "scale": 1.0, "bias": bias,
                "texts": {}, "spaces": demo.bundle.manifest.spaces}  # fmt: skip
    path.write_text(json.dumps(document))


def test_paths_keep_their_meaning_when_the_current_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers are loaded later, and again after a fork or for many texts."""
    (tmp_path / "other").mkdir()
    shutil.copytree(BUNDLE_PATH, tmp_path / "model")
    write_calibration(tmp_path / "calibration.json", -3)
    monkeypatch.chdir(tmp_path)
    model = siglip_onnx.load("model", calibration="calibration.json", label_cache="labels")
    monkeypatch.chdir(tmp_path / "other")
    (match,) = model.classify(PATHS[0], ["a red star"])
    for other in (copy.copy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert other.classify(PATHS[0], ["a red star"]) == [match]
    assert (tmp_path / "labels").is_dir()
    assert not list(Path().iterdir())


def test_a_calibration_that_changed_is_not_used_for_a_pickled_model(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, -3)
    pickled = pickle.dumps(siglip_onnx.load("demo", calibration=path))
    write_calibration(path, -4)
    with pytest.raises(DataError, match="holds another calibration than the pickled model had"):
        pickle.loads(pickled)  # noqa: S301


def test_a_folder_that_changed_is_not_opened_for_a_pickled_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(BUNDLE_PATH)
    pickled = pickle.dumps(siglip_onnx.load(folder, variant="fp32"))
    assert pickle.loads(pickled).variant == "fp32"  # noqa: S301
    folder.unlink()
    with pytest.raises(BundleError):
        pickle.loads(pickled)  # noqa: S301
    options = siglip_onnx.RuntimeOptions(variant="fp32")
    from siglip_onnx.model import reopen

    with pytest.raises(BundleError, match="but the pickled one had fp32-0"):
        reopen(BUNDLE_PATH, options, "fp32-0")


def test_a_pickle_that_does_not_know_its_calibration_is_opened(tmp_path: Path) -> None:
    """As those of version 0.1."""
    write_calibration(tmp_path / "calibration.json", -3)
    model = siglip_onnx.load("demo", calibration=tmp_path / "calibration.json")
    function, arguments = model.__reduce__()
    assert function(*arguments[:4]).calibration == model.calibration


def test_path_in_a_data_set_never_leads_to_an_open_pipe() -> None:
    """Its writer might never write, and the path is not the user's."""
    reader, writer = os.pipe()
    os.close(writer)
    try:
        path = f"/dev/fd/{reader}"
        with pytest.raises(ImageError, match=f"{path} cannot be opened: it is a pipe, expected a regular file"):
            open_image({"bytes": None, "path": path})
    finally:
        os.close(reader)
