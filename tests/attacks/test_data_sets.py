"""Data sets from strangers: bombs of Parquet, endless lines, pipes, and damage of every kind give one named error."""

import contextlib
import csv
import io
import json
import os
import random
import tarfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attacks.mutate import mutate, mutate_json
from support.drawn import write_json_lines, write_tar

from siglip_onnx.bulk import parquet
from siglip_onnx.bulk.layouts import ParquetLayout
from siglip_onnx.bulk.parquet_pages import scan_pages
from siglip_onnx.errors import DataError, ImageError, JobError
from siglip_onnx.evaluate import classes, tables
from siglip_onnx.evaluate.datasets import DataOptions, open_data, read_labels

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(60)
MOST_MB = 100
NUM_MUTANTS = 150  # of each format


def parquet_of(path: Path, **options: object) -> Callable[..., Path]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def write(**columns: object) -> Path:
        pq.write_table(pa.table(columns), path, compression="zstd", **options)
        return path

    return write


def big_page(path: Path) -> Path:
    return parquet_of(path, use_dictionary=False)(image=[IMAGE, bytes(20_000_000)], label=["a", "b"])


def big_text_page(path: Path) -> Path:
    return parquet_of(path, use_dictionary=False)(image=[IMAGE, IMAGE], label=["a", "x" * 20_000_000])


def repeated(path: Path, *, store_schema: bool) -> Path:
    import pyarrow as pa

    labels = pa.DictionaryArray.from_arrays(np.zeros(5000, np.int32), ["x" * 1_000_000])
    return parquet_of(path, store_schema=store_schema)(image=[IMAGE] * 5000, label=labels)


def prefixes(path: Path) -> Path:
    encoding = {"label": "DELTA_BYTE_ARRAY", "image": "PLAIN"}
    write = parquet_of(path, use_dictionary=False, column_encoding=encoding)
    return write(image=[IMAGE] * 50, label=["x" * 1_000_000] * 50)


def many_rows(path: Path) -> Path:
    import pyarrow as pa

    labels = pa.DictionaryArray.from_arrays(np.zeros(300_000, np.int8), ["a"])
    return parquet_of(path)(image=pa.nulls(300_000, pa.binary()), label=labels)


def long_list(path: Path) -> Path:
    import pyarrow as pa

    labels = pa.ListArray.from_arrays([0, 2_000_000, 2_000_001], pa.array(np.zeros(2_000_001, np.int32)))
    return parquet_of(path)(image=[IMAGE, IMAGE], label=labels)


def large_values(path: Path, size: int, *, lists: bool = False) -> Path:
    """Write absent values of a fixed size, for each of which pyarrow takes that much memory."""
    import pyarrow as pa

    values = pa.nulls(2000 if lists else 2, pa.binary(size))
    labels = pa.ListArray.from_arrays([0, 1999, 2000], values) if lists else values
    return parquet_of(path, store_schema=False)(image=[IMAGE, IMAGE], label=labels)


def long_footer(path: Path) -> Path:
    path.write_bytes(b"PAR1" + bytes(1000) + (1 << 31).to_bytes(4, "little") + b"PAR1")
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (big_text_page, r"a page of [\d,]+ bytes has 20,[\d,]+ decompressed, at most 16,000,000"),
        (lambda path: repeated(path, store_schema=True), "more than 32,000,000 bytes"),
        (lambda path: repeated(path, store_schema=False), "more than 32,000,000 bytes"),
        (prefixes, "more than 32,000,000 bytes"),
        (many_rows, r"it has 300,000 rows in [\d,]+ bytes, at most"),
        (long_list, r"has 2,000,001 values, at most"),
        (
            lambda path: large_values(path, 2_000_000),
            "values of the column label have 2,000,000 bytes, at most",
        ),
        (
            lambda path: large_values(path, 1000, lists=True),
            r"values of the column label.* have 2,000,000 bytes",
        ),
        (long_footer, "its footer has 2,147,483,648 bytes"),
    ],
)
def test_parquet_bombs_are_refused(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = write(tmp_path / "x.parquet")
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match=f"x.parquet cannot be read as Parquet: .*{message}"):
            open_data(path)
    finally:
        pa.set_memory_pool(before)
    assert (pool.max_memory() or 0) < MOST_MB * 1_000_000


def test_an_image_that_is_a_bomb_is_an_error_of_that_image(tmp_path: Path) -> None:
    data = open_data(big_page(tmp_path / "x.parquet"))
    with pytest.raises(ImageError, match=r"x.parquet cannot be read as Parquet: a page of .* at most 16,000,000"):
        data.samples[0].read()


def test_an_image_that_a_dictionary_repeats_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_FEW_IMAGE_BYTES", 2_560_000)
    image = IMAGE + bytes(120_000)
    data = open_data(parquet_of(tmp_path / "x.parquet")(image=[image] * 100, label=["a", "b"] * 50))
    assert data.samples[0].read() == data.samples[20].read() == image
    for row in (99, 98, 40):
        with pytest.raises(ImageError, match=r"images of the column image have more than 20 times the [\d,]+ bytes of"):
            data.samples[row].read()


def test_images_of_parquet_are_read_in_any_order(tmp_path: Path) -> None:
    images = [b"%d" % number * 1000 for number in range(50)]
    path = parquet_of(tmp_path / "x.parquet", row_group_size=20)(image=images, label=["a", "b"] * 25)
    samples = open_data(path).samples
    for order in (range(50), range(0, 50, 7), [30, 2, 2, 49, 0, 19, 20, 21]):
        assert [samples[row].read() for row in order] == [images[row] for row in order]


@pytest.mark.parametrize(
    ("sizes", "sound"),
    [
        (b"\x15\xc8\x01\x15\x14\x2c", True),  # field 2, i32: 100 bytes; field 3, i32: 10 stored; field 5, a structure
        (b"\x15\xc8\x01\x15\x14\x06\x04\x02\x3c", False),  # field 2 once more, as an i64 of 1
        (b"\x16\xc8\x01\x15\x14\x2c", False),  # field 2 as an i64
        (b"\x15\xc8\x01\x15\x14\x05\x84\x80\x08\x02\x05\x0a", False),  # a field 65,538, which is 2 in 16 bits
        (b"\x15\xc8\x81\x80\x80\x20\x15\x14\x2c", False),  # field 2 of 2^32 + 100 bytes
    ],
)
def test_what_two_readers_read_differently_is_refused(sizes: bytes, sound: bool) -> None:
    """The library skips a field of another kind than its own, and uses an earlier one of the same number."""
    header = b"\x15\x00" + sizes + b"\x15\x08\x00\x00"  # 4 values
    file = io.BytesIO(header + bytes(10))
    if sound:
        assert scan_pages(file, 0, len(header) + 10) == (100, 4)
    else:
        with pytest.raises(ValueError, match="the header of a page is damaged"):
            scan_pages(file, 0, len(header) + 10)


def test_texts_are_nested_in_one_list_at_most(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "x.parquet")(image=[IMAGE] * 2, caption=[["a", "b"], ["c"]])
    assert open_data(path).captions == {"": {0: ["a", "b"], 1: ["c"]}}
    path = parquet_of(tmp_path / "x.parquet")(image=[IMAGE] * 2, caption=[[["a"], ["b"]], [["c"]]])
    with pytest.raises(DataError, match="the column caption is nested; expected values or lists"):
        open_data(path)


def test_columns_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "x.parquet", use_dictionary=False)(
        image=[{"bytes": IMAGE, "path": "x" * 20_000_000}] * 2, label=["a", "b"], other=["x" * 20_000_000] * 2
    )
    assert [sample.read() for sample in open_data(path).samples] == [IMAGE] * 2


def test_lines_and_rows_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MAX_LINE_CHARACTERS", 1000)
    monkeypatch.setattr(classes, "_MAX_LABELS_BYTES", 1000)
    path = tmp_path / "x.jsonl"
    path.write_text('{"path": "x", "label": "a"}\n' + " " * 2000)
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: .* more than 1,000 characters"):
        open_data(path)
    path = tmp_path / "x.csv"
    path.write_text("path,label\n" + '"x\n",' * 2000)
    with pytest.raises(DataError, match=r"x\.csv cannot be read as CSV: .* more than 1,000 characters"):
        open_data(path)
    path.write_text("path,label\n" + "x.png,a\ny.png,b\n" * 500)
    assert len(open_data(path).samples) == 2
    path.write_text("x\n" * 2000)
    with pytest.raises(DataError, match=r"x\.csv cannot be read: it has more than 1,000 bytes"):
        read_labels(path)


def test_memory_grows_with_rows_not_with_their_product_with_columns_or_languages(tmp_path: Path) -> None:
    """A short row of CSV counts as one with all columns, and an image has no caption in most languages."""
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(["path", "label", *map(str, range(998))]) + "\n" + "a.png,x\nb.png,y\n" * 3000)
    languages = {f"l{number}": {"caption": ["a"]} for number in range(200)}
    rows = [{"image/key": "k"} | languages, *({"image/key": f"{number:x}"} for number in range(3000))]
    captions = write_json_lines(tmp_path / "captions.jsonl", rows)
    for path in (wide, captions):
        tracemalloc.start()
        data = open_data(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(data.samples) in (2, 3001)
        assert peak < 20_000_000, path  # as dicts of columns 130 MB, as a list for each language 36 MB
    wide.write_text(",".join(["path", "label", *map(str, range(999))]) + "\na.png,x\n")
    with pytest.raises(DataError, match="it has 1,001 columns, at most 1,000 are read"):
        open_data(wide)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json", "x.tar", "x.parquet"])
def test_a_pipe_in_place_of_a_data_set_never_blocks(name: str, tmp_path: Path) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    os.mkfifo(tmp_path / name)
    errors: list[str] = []

    def read() -> None:
        for call in (open_data, read_labels):
            with pytest.raises(DataError) as caught:
                call(tmp_path / name)
            errors.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert len(errors) == 2
    assert all("it is a pipe, expected a regular file" in error for error in errors)


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = max(0, size), kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        header[124:136] = size.to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "content",
    [
        tar_header("long", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        tar_header("pax", 1 << 40, tarfile.XHDTYPE),
        tar_header("a.png", -512) + bytes(1024),
        tar_header("pax", -512, tarfile.XHDTYPE) + bytes(1024),
        tar_header("pax", 0, tarfile.XHDTYPE) * 5000,
        tar_header("a.png", 1 << 62) + bytes(1024),
        tar_header("a.txt", 50_000) + b"cut",
    ],
)
def test_headers_of_archives_that_lie(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    os.truncate(path, len(content) + (1 << 33 if len(content) == 512 else 0))  # sparse, if the header promises more
    with pytest.raises(DataError, match=r"x\.tar"):
        open_data(path)


def test_archives_are_never_unpacked_and_links_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("../a.png", b"0"), ("/b.png", b"0"), ("../b.txt", tarfile.SYMTYPE), ("b.cls", b"6")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "secret.txt", 3 if kind == b"0" else 0
            archive.addfile(info, io.BytesIO(b"png") if kind == b"0" else None)
            if kind == b"0":
                text = tarfile.TarInfo(name.replace("png", "cls"))
                text.size = 4
                archive.addfile(text, io.BytesIO(name[-5:-4].encode() * 4))
    data = open_data(tmp_path / "x.tar")
    assert [sample.name for sample in data.samples] == ["x.tar/../a.png", "x.tar//b.png"]
    assert data.texts == ["aaaa", "bbbb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt", "x.tar"]


@pytest.mark.parametrize(
    "row",
    [
        {"path": "a\0b.png", "label": "a"},
        {"path": "\ud800.png", "label": "a"},
        {"path": "x" * 100_000, "label": "a"},
        {"path": "x", "label": 10**4000},
        {"path": "x", "label": "9" * 10_000},
        {"path": "x", "label": [[[["a"]]]]},
        {"image/key": 5, "en": {"caption": ["x"]}},
        {"image/key": "x", "en": {"caption": [5]}},
        {"image/key": "a\0b", "en": {"caption": ["x"]}},
    ],
)
def test_values_of_every_kind_are_read_or_named(row: dict[str, object], tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "x.jsonl", [])
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'label': 'b'})}\n")
    check(path)


def test_second_row_without_key_is_named(tmp_path: Path) -> None:
    rows = [{"image/key": "x", "en": {"caption": ["x"]}}, {"en": {"caption": ["y"]}}]
    with pytest.raises(DataError, match="row 2: image/key is None"):
        open_data(write_json_lines(tmp_path / "x.jsonl", rows))


def check(path: Path) -> None:
    """A data set, however damaged, is read or refused with one named error, and so is each of its images."""
    try:
        data, error = open_data(path, DataOptions(split="")), ""
    except DataError as refusal:
        data, error = None, str(refusal)
    assert len(error) < 5000 + 20 * len(str(path))
    for sample in data.samples[:3] if data else ():
        with contextlib.suppress(ImageError):
            sample.read()


def seeds(folder: Path) -> dict[str, bytes]:
    rows = [("a.png", "red", "en"), ("b.png", "blue|3", "ja")]
    lines = io.StringIO()
    csv.writer(lines).writerows([("path", "label", "language"), *rows])
    found = {"csv": lines.getvalue().encode()}
    records = [{"path": path, "label": label.split("|"), "caption": [label]} for path, label, _ in rows]
    found["jsonl"] = "".join(json.dumps(record) + "\n" for record in records).encode()
    entry = {"filepath": "x", "filename": "1.jpg", "split": "test", "sentences": [{"raw": "a cat"}]}
    found["json"] = json.dumps({"images": [entry, entry]}).encode()
    keyed = {"image/key": "0a", "en": {"caption": ["x", "y"]}, "ja": {"caption": ["z"]}}
    found["crossmodal.jsonl"] = (json.dumps(keyed) + "\n").encode() * 2
    files = [("a.png", IMAGE), ("a.cls", b"red"), ("n" * 120 + ".png", IMAGE), ("n" * 120 + ".cls", b"blue")]
    found["tar"] = write_tar(folder / "seed.tar", files).read_bytes()
    return found


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "crossmodal.jsonl", "tar", "parquet"])
def test_damaged_data_sets_are_named(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    if kind == "parquet":
        write = parquet_of(tmp_path / "seed.parquet", row_group_size=3)
        seed = write(image=[IMAGE] * 6, label=["a", "b"] * 3, caption=[["x", "y"]] * 6).read_bytes()
    else:
        seed = seeds(tmp_path)[kind]
    path = tmp_path / f"x.{kind}"
    for number in range(NUM_MUTANTS):
        mutant = mutate(seed, [seed], rng)
        if kind == "json" and number % 2:
            mutant = mutate_json(json.loads(seed), rng).encode("utf-8", "surrogatepass")
        path.write_bytes(mutant)
        check(path)


@pytest.mark.parametrize("kind", ["many", "large"])
def test_parquet_bombs_in_folders_of_vectors_are_refused(kind: str, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    (tmp_path / "parquet").mkdir()
    path = tmp_path / "parquet" / "000000.parquet"
    if kind == "many":
        column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * 300_000, np.float32)), 4)
    else:
        column = pa.nulls(3, pa.binary(20))
    parquet_of(path)(embedding=column)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(
            JobError,
            match=r"has 1,200,000 values, more than 1,000 vectors have|1,200,000 values, at most|values of 20 bytes",
        ):
            ParquetLayout(4, np.dtype(np.float32)).read(tmp_path, 0)
    finally:
        pa.set_memory_pool(before)
    assert (pool.max_memory() or 0) < 1_000_000
