"""Every layout of a data set gives the same images and labels; what cannot be used is named."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from support.drawn import NAMES_EN, draw_folders, write_csv, write_json_lines, write_tar

from siglip_onnx.bulk.parquet import ParquetFile
from siglip_onnx.errors import DataError, ImageError
from siglip_onnx.evaluate.classes import read_labels
from siglip_onnx.evaluate.datasets import CaptionedImages, DataOptions, LabeledImages, open_data
from siglip_onnx.evaluate.sources import Sample

DEFAULTS = DataOptions()
CAPTIONS = [("a red circle", "red"), ("a blue star", "blue"), ("丸", "まる")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw_folders(folder, 2)
    return folder


def labeled(path: Path, options: DataOptions = DEFAULTS) -> LabeledImages:
    data = open_data(path, options)
    assert isinstance(data, LabeledImages)
    return data


def captioned(path: Path, options: DataOptions = DEFAULTS) -> CaptionedImages:
    data = open_data(path, options)
    assert isinstance(data, CaptionedImages)
    return data


def in_layout(layout: str, drawn: Path, out: Path) -> tuple[Path, DataOptions]:
    """Write the folder's images in another layout."""
    paths = sorted(drawn.rglob("*.png"))
    names = sorted(NAMES_EN)
    rows = [(str(path.relative_to(drawn)), path.parent.name) for path in paths]
    options = DataOptions(images=drawn)
    (out / "names.txt").write_text("\n".join(names), encoding="utf-8")
    if layout == "csv":
        return write_csv(out / "set.csv", ("path", "label"), rows), options
    if layout == "tsv":
        return write_csv(out / "set.tsv", ("filepath", "class"), rows, "\t"), options
    if layout == "jsonl":
        return write_json_lines(
            out / "set.jsonl", [{"file_name": path, "label": label} for path, label in rows]
        ), options
    if layout == "numbers":
        numbered = [{"image": path, "label": names.index(label)} for path, label in rows]
        path = write_json_lines(out / "set.jsonl", numbered)
        return path, DataOptions(images=drawn, labels=out / "names.txt")
    if layout == "tar":
        (out / "classnames.txt").write_text("\n".join(names), encoding="utf-8")
        files = [
            file
            for number, path in enumerate(paths)
            for file in (
                (f"{number:03}.cls", str(names.index(path.parent.name)).encode()),
                (f"{number:03}.png", path.read_bytes()),
            )
        ]
        half = len(files) // 2
        write_tar(out / "1.tar", files[half:])
        write_tar(out / "0.tar", files[:half])
        return out, DataOptions()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [
        {"image": {"bytes": path.read_bytes(), "path": path.name}, "label": names.index(path.parent.name)}
        for path in paths
    ]
    pq.write_table(pa.Table.from_pylist(columns, schema=schema), out / "set.parquet", row_group_size=5)
    return out / "set.parquet", DataOptions()


def test_of_many_parquet_files_few_are_open_and_kept(tmp_path: Path) -> None:
    """Memory, and open files, must not grow with their number: a large data set has hundreds."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = {}
    for number in range(9):
        images[number] = [np.random.default_rng(10 * number + row).bytes(20_000) for row in range(6)]
        table = pa.table({"image": images[number], "label": list("ababab")})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=3)
    before = len(list(Path("/dev/fd").iterdir()))
    data = labeled(tmp_path)
    expected = [image for number in range(9) for image in images[number]]
    assert [sample.read() for sample in data.samples] == expected
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2
    assert sum(each._file is not None for each in map(parquet_file, data.samples[::6])) <= 2
    assert sum(len(each._kept._entries) for each in map(parquet_file, data.samples[::6])) <= 12
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(Sample.read, data.samples)) == expected
    for last in (data.samples[-7], data.samples[-1]):  # so that the others are closed
        last.read()
    pq.write_table(pa.table({"image": images[0][:5], "label": list("ababa")}), tmp_path / "1.parquet")
    with pytest.raises(ImageError, match="was changed while it was read"):
        data.samples[6].read()


def parquet_file(sample: Sample) -> ParquetFile:
    file: ParquetFile = sample.part.args[0]  # type: ignore[union-attr]
    return file


@pytest.mark.parametrize("layout", ["csv", "tsv", "jsonl", "numbers", "tar", "parquet"])
def test_every_layout_has_the_same_images_and_labels(layout: str, drawn: Path, tmp_path: Path) -> None:
    expected = labeled(drawn)
    data = labeled(*in_layout(layout, drawn, tmp_path))
    assert data.texts == expected.texts == sorted(NAMES_EN)
    assert [sample.labels for sample in data.samples] == [sample.labels for sample in expected.samples]
    assert [sample.read() for sample in data.samples] == [sample.read() for sample in expected.samples]
    assert len({sample.name for sample in data.samples}) == 16
    assert not data.multi_label


def folders(out: Path, names: Iterable[str]) -> Path:
    """Make a folder per class with one image."""
    for name in names:
        (out / "set" / name).mkdir(parents=True)
        (out / "set" / name / "x.png").touch()
    return out / "set"


def words_of_folders(data: Path, content: str) -> dict[str, str]:
    """Return the words that a file of labels gives to the folders."""
    labels = data.with_suffix(".txt")
    labels.write_text(content, encoding="utf-8")
    opened = labeled(data, DataOptions(labels=labels))
    return {Path(sample.name).parts[0]: opened.texts[sample.labels[0]] for sample in opened.samples}


def test_labels_of_folders(drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = tmp_path / "labels.txt"

    def texts(content: str) -> list[str]:
        labels.write_text(content, encoding="utf-8")
        return labeled(drawn, DataOptions(labels=labels)).texts

    more = [*NAMES_EN, "a cat"]
    assert texts("".join(f"{name}\tthe {name}\n" for name in more)) == [f"the {name}" for name in more]
    assert f"{labels} names 1 classes that have no folder in {drawn}; they stay possible answers." in caplog.messages
    assert texts("\n".join(more)) == more
    caplog.clear()
    assert texts("\n".join("ABCDEFGH")) == list("ABCDEFGH")  # as many as folders, in their order
    order = "does not name the folders, so its lines are assigned to them in order: a blue circle is 'A', ..., "
    assert order in caplog.text
    with pytest.raises(DataError, match=r"8 folders.*3 labels that are not their names"):
        texts("x\ny\nz")


FOLDERS = ("red_star", "eggs", "heart")  # not in their order


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (
            FOLDERS,
            "red_star\neggs\nhart",
            "folder 'heart', which .* does not name, although it names others. Wri",
        ),
        (FOLDERS, "Red Star\nEggs\nHeart", "folder 'eggs', which .* does not name exactly: it has 'Eggs'"),
        (FOLDERS, "red-star\nmore eggs\ntwo hearts", "folder 'red_star', .* exactly: it has 'red-star'"),
        (FOLDERS, "RED_STAR\ta star\nEGGS\teggs\nHEART\ta heart", "folder 'eggs', .* exactly: it has 'EGGS'"),
        (
            FOLDERS,
            "n1\ta star\nn2\teggs\nn3\ta heart",
            "folder 'eggs', which .* does not name; it names no folder at all",
        ),
        (FOLDERS, "red_star\ta star\neggs\teggs", "folder 'heart', which .* does not name, although it names others"),
        (FOLDERS, "red star\nred_star\nRED_STAR\neggs\neggs\nheart", "label 'eggs', which could be the class 3 or 4"),
        (FOLDERS, "red_star\tx\nred_star\ty\neggs\tz\nheart\tz", r"line 'red_star\\ty', whose name another line has"),
        (FOLDERS, "red_star\tx\neggs\t\nheart\tz", r"line 'eggs\\t', of which a part is empty"),
        (
            ("1", "2"),
            "a\nb\nc",
            "2 folders from 1 to 2, and .* has 3 labels; which label belongs to which folder is",
        ),
        (("01", "03"), "a\nb\nc", "2 folders from 1 to 3, and .* has 3 labels"),
        (("0", "1", "3"), "a\nb\nc", "3 folders from 0 to 3, and .* has 3 labels"),
        (("1", "2", "4"), "a\nb\nc", "3 folders from 1 to 4, and .* has 3 labels"),
        (("1", "2"), "1\n2\n3", "may be names of classes or their positions"),
        (("0", "1", "cat"), "a\nb\ncat", "folder '0', which .* does not name, although it names others"),
    ],
)
def test_folders_whose_labels_are_not_certain_are_refused(
    names: Sequence[str], content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        words_of_folders(folders(tmp_path, names), content)


@pytest.mark.parametrize(
    ("names", "content", "expected"),
    [
        (FOLDERS, "red star\neggs\nheart", ["red star", "eggs", "heart"]),
        (FOLDERS, "red star\tA\neggs\tB\nheart\tC\nmoon\tD", ["A", "B", "C"]),
        (("A", "a"), "a\nA", ["A", "a"]),
        (("red_star", "red star"), "red star\nred_star", ["red_star", "red star"]),
        (("n02", "n01"), "first\nsecond", ["second", "first"]),
        (("n02", "n01"), "n01\tfirst\nn02\tsecond", ["second", "first"]),
        (("0", "1", "2"), "a\nb\nc", ["a", "b", "c"]),
        (("00", "07", "10"), "\n".join("abcdefghijkl"), ["a", "h", "k"]),
        (("1", "2", "10", *"3456789"), "\n".join("abcdefghij"), ["a", "b", "j", *"cdefghi"]),
        (("2", "0", "1"), "2\n0\n1", "names of classes or their positions"),
        (("2", "3", "1"), "2\n1\n3", ["2", "3", "1"]),
        (("2025", "2024"), "a\nb", ["b", "a"]),
        (("0", "1"), "1\n2", ["1", "2"]),
    ],
)
def test_words_of_folders(names: Sequence[str], content: str, expected: list[str] | str, tmp_path: Path) -> None:
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            words_of_folders(folders(tmp_path, names), content)
    else:
        assert words_of_folders(folders(tmp_path, names), content) == dict(zip(names, expected, strict=True))


def test_composed_and_decomposed_names_are_equal(tmp_path: Path) -> None:
    """macOS writes names of folders into archives decomposed; editors write composed letters."""
    names = ["赤い星", "たまご", "みどりのハート", "Äpfel"]
    data = folders(tmp_path, [normalize("NFD", name) for name in names])
    for content in ("\n".join(names), "\n".join(normalize("NFD", name) for name in names),
                    "".join(f"{name}\tthe {name}\n" for name in names)):  # fmt: skip
        for folder, text in words_of_folders(data, content).items():
            assert normalize("NFC", text).endswith(normalize("NFC", folder))
    assert labeled(data).texts == sorted(names)
    rows = [("a.png", names[0]), ("b.png", normalize("NFD", names[1])), ("c.png", names[1])]
    assert labeled(write_csv(tmp_path / "x.csv", ("path", "label"), rows)).texts == sorted(names[:2])
    for content in ("\n".join(names), "".join(f"{normalize('NFD', name)}\t{name}\n" for name in names)):
        (tmp_path / "labels.txt").write_text(content, encoding="utf-8")
        opened = labeled(tmp_path / "x.csv", DataOptions(labels=tmp_path / "labels.txt"))
        assert [opened.texts[sample.labels[0]] for sample in opened.samples] == [names[0], names[1], names[1]]


@pytest.mark.parametrize("numbers", [(1, 2), (0, 2)])
def test_numbers_that_may_count_from_1_are_said_to_count_from_0(
    numbers: Sequence[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc")
    rows = [{"path": f"{number}.png", "label": number} for number in numbers]
    data = labeled(write_json_lines(tmp_path / "x.jsonl", rows), DataOptions(labels=tmp_path / "labels.txt"))
    assert [sample.labels for sample in data.samples] == [(number,) for number in numbers]
    warned = "has no label 0. Its labels count the classes from 0, so that 1 is 'b'; if they count from 1, write"
    assert (warned in caplog.text) == (0 not in numbers)


def test_folders_with_numbers_are_in_the_order_of_the_labels(tmp_path: Path) -> None:
    path = folders(tmp_path, ["0", "2", "10"])
    (tmp_path / "labels.txt").write_text("\n".join(f"class {number}" for number in range(12)))
    data = labeled(path, DataOptions(labels=tmp_path / "labels.txt"))
    assert [sample.labels for sample in data.samples] == [(0,), (2,), (10,)]
    assert len(data.texts) == 12


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["1", "2", "3"], ["1", "2", "3"], ["1", "2", "3"]),  # 3 is no position
        (["3", "1"], ["1", "3"], ["3", "1"]),
        (["0", "2"], ["1", "2", "3"], ["1", "3"]),  # 0 is no name
        (["0", "1", "cat"], ["a", "b", "cat"], ["a", "b", "cat"]),
        (["007", "7"], ["7", "007"], ["007", "7"]),
        (["0", "1"], ["0", "1"], ["0", "1"]),
        (["1", "2"], ["1", "2", "3"], "such as 1, and may be names of classes or their positions"),
        (["0", "3"], ["1", "2", "3"], "has the label '3', which is not among the 3 known classes"),
    ],
)
def test_labels_that_are_numbers_are_all_names_or_all_positions(
    labels: list[str], classes: list[str], expected: list[str] | str, tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "x.csv", ("path", "label"), [(f"{n}.png", label) for n, label in enumerate(labels)])
    options = DataOptions(labels=tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("\n".join(classes))
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            labeled(path, options)
    else:
        data = labeled(path, options)
        assert [data.texts[sample.labels[0]] for sample in data.samples] == expected
    words = [f"the {name}" for name in classes]
    (tmp_path / "labels.txt").write_text("".join(f"{name}\tthe {name}\n" for name in classes))
    if set(labels) <= set(classes):
        data = labeled(path, options)
        assert [data.texts[sample.labels[0]] for sample in data.samples] == [f"the {label}" for label in labels]
        assert data.texts == words


def test_numbers_of_archives_are_positions(tmp_path: Path) -> None:
    members = [("a.png", b"1"), ("a.cls", b"1"), ("b.png", b"2"), ("b.cls", b"2")]
    path = write_tar(tmp_path / "x.tar", members)
    (tmp_path / "classnames.txt").write_text("1\n2\n3\n")
    data = labeled(path)
    assert [data.texts[sample.labels[0]] for sample in data.samples] == ["2", "3"]


def test_images_with_several_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", ("path", "labels"), [("a.png", "red|round"), ("b.png", "blue"), ("c.png", "")])
    data = labeled(path)
    assert data.multi_label
    assert [[data.texts[number] for number in sample.labels] for sample in data.samples] == [
        ["red", "round"], ["blue"], []
    ]  # fmt: skip
    assert labeled(write_csv(path, ("path", "label"), [("a.png", "red|round"), ("b.png", "red")])).multi_label
    rows = [("a.png", "red"), ("a.png", "round"), ("b.png", "blue")]
    assert labeled(write_csv(path, ("path", "label"), rows)).samples[0].labels == (1, 2)
    path = write_json_lines(tmp_path / "x.jsonl", [{"path": "a.png", "labels": ["red", "round"]}])
    assert labeled(path).samples[0].labels == (0, 1)


def karpathy(path: Path) -> Path:
    entries = [
        {"filepath": "val2014", "filename": f"{number}.jpg", "split": "val" if number == 2 else "test",
         "sentences": [{"raw": text} for text in texts]}
        for number, texts in enumerate(CAPTIONS)
    ]  # fmt: skip
    path.write_text(json.dumps({"images": entries, "dataset": "coco"}), encoding="utf-8")
    return path


def test_captions_of_coco(tmp_path: Path) -> None:
    path = karpathy(tmp_path / "dataset_coco.json")
    data = captioned(path)
    assert [sample.name for sample in data.samples] == ["val2014/0.jpg", "val2014/1.jpg"]
    assert data.captions == {"": {number: list(texts) for number, texts in enumerate(CAPTIONS[:2])}}
    assert len(captioned(path, DataOptions(split="")).samples) == 3
    with pytest.raises(DataError, match="no images of the split 'train'"):
        open_data(path, DataOptions(split="train"))


def test_captions_of_crossmodal(tmp_path: Path) -> None:
    rows = [
        {"image/key": "0a", "image/locale": "cs", "en": {"caption": ["x", "y"], "caption/tokenized": []},
         "ja": {"caption": ["あ"]}},
        {"image/key": "0b", "image/locale": "en", "en": {"caption": ["z"]}},
    ]  # fmt: skip
    data = captioned(write_json_lines(tmp_path / "captions.jsonl", rows))
    assert data.captions == {"en": {0: ["x", "y"], 1: ["z"]}, "ja": {0: ["あ"]}}
    assert [sample.name for sample in data.samples] == ["0a", "0b"]
    assert data.only(["ja"]).captions == {"ja": {0: ["あ"]}}
    with pytest.raises(DataError, match="no captions in 'fr'; it has en, ja"):
        data.only(["fr"])


def test_captions_in_tables_and_archives(tmp_path: Path) -> None:
    rows = [("a.png", "en", "x"), ("a.png", "ja", "あ"), ("b.png", "en", "y"), ("a.png", "en", "x2")]
    data = captioned(write_csv(tmp_path / "x.csv", ("image", "language", "caption"), rows))
    assert data.captions == {"en": {0: ["x", "x2"], 1: ["y"]}, "ja": {0: ["あ"]}}
    path = write_json_lines(tmp_path / "x.jsonl", [{"path": "a.png", "captions": ["x", "x2"]}])
    assert captioned(path).captions == {"": {0: ["x", "x2"]}}
    rows = [{"path": "a.png", "caption": "x"}, {"path": "a.png", "caption": "あ", "lang": "ja"}]
    for turned in (rows, rows[::-1]):
        assert captioned(write_json_lines(path, turned)).captions == {"": {0: ["x"]}, "ja": {0: ["あ"]}}
    path = write_tar(tmp_path / "x.tar", [("a.png", b"1"), ("a.txt", b"x\nx2"), ("b.png", b"2"), ("b.txt", b"y")])
    data = captioned(path)
    assert data.captions == {"": {0: ["x", "x2"], 1: ["y"]}}
    assert [sample.read() for sample in data.samples] == [b"1", b"2"]


def test_separators_inside_a_line_end_no_label(tmp_path: Path) -> None:
    """They are pasted from pages; a file's lines end at line feeds and carriage returns."""
    (tmp_path / "labels.txt").write_bytes("six\u2028eggs\r\na\x0cred star\rword\x85\n".encode())
    assert read_labels(tmp_path / "labels.txt") == ["six\u2028eggs", "a\x0cred star", "word"]
    path = write_tar(tmp_path / "x.tar", [("a.png", b"1"), ("a.txt", "x\u2028y\nz".encode())])
    assert captioned(path).captions == {"": {0: ["x\u2028y", "z"]}}


def test_parquet_files_of_other_classes_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for file, names in (("a", ["star", "eggs"]), ("b", ["star", "eggs"]), ("c", ["eggs", "star"])):
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], metadata=metadata)
        rows = [{"image": b"x", "label": 0}, {"image": b"y", "label": 1}]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / f"{file}.parquet")
    with pytest.raises(DataError, match=r"a\.parquet and .*c\.parquet record other names, or another order"):
        open_data(tmp_path)
    (tmp_path / "c.parquet").unlink()
    assert [sample.labels for sample in labeled(tmp_path).samples] == [(0,), (1,)] * 2
    plain = pa.Table.from_pylist(rows, schema=schema.remove_metadata())
    pq.write_table(plain, tmp_path / "b.parquet")  # by a program that keeps no names
    with pq.ParquetWriter(tmp_path / "c.parquet", plain.schema) as writer:
        for part in (plain[:0], plain[:1], plain[:0], plain[1:]):
            writer.write_table(part)
    opened = labeled(tmp_path)
    assert [sample.labels for sample in opened.samples] == [(0,), (1,)] * 3
    assert [sample.read() for sample in opened.samples] == [b"x", b"y"] * 3
    (tmp_path / "c.parquet").unlink()
    twice = pa.table([pa.array([b"x"]), pa.array([0]), pa.array([1])], names=["image", "label", "label"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(DataError, match="several columns 'label'"):
        open_data(tmp_path)


def test_files_without_the_extension_of_an_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    data = folders(tmp_path, ["a", "b"])
    for name in ("a/noext", "b/y", "b/1.jxl", "b/.hidden"):
        (data / name).touch()
    assert len(labeled(data).samples) == 2
    left_out = "3 files without an image extension (1 JPEG XL, 2 other)"
    assert caplog.messages == [f"{data}: left out of the folders of classes: {left_out}."]
    caplog.clear()
    members = [("a.png", b"1"), ("a.cls", b"0"), ("b.jxl", b"2"), ("b.cls", b"1"), ("c.png", b"3"), ("c.cls", b"1"),
               ("d", b"4"), ("d.cls", b"1")]  # fmt: skip
    (tmp_path / "classnames.txt").write_text("x\ny")
    path = write_tar(tmp_path / "x.tar", members)
    assert len(labeled(path).samples) == 2
    assert f"{path}: samples without a file that has an image extension were left out: 2." in caplog.messages


def test_a_folder_of_several_data_sets_is_refused(tmp_path: Path) -> None:
    """Only one of them would be read."""
    data = folders(tmp_path, ["a", "b"])
    write_tar(data / "backup.tar", [("a.png", b"1"), ("a.txt", b"x")])
    with pytest.raises(DataError, match=r"has backup.tar and images in the folder a; expected one of them. Give"):
        open_data(data)
    for image in data.rglob("*.png"):
        image.unlink()
    assert len(captioned(data).samples) == 1
    (data / "x.parquet").touch()
    with pytest.raises(DataError, match=r"has backup.tar and x.parquet; expected one of them"):
        open_data(data)


def test_splits_are_no_classes(tmp_path: Path) -> None:
    data = folders(tmp_path, ["train/a", "train/b", "Val/a", "Val/b"])
    with pytest.raises(
        DataError,
        match=r"the folders Val, train, which have no images of their own and seem to be splits .* such as .*Val",
    ):
        open_data(data)
    assert labeled(data / "train").texts == ["a", "b"]
    (data / "train" / "x.png").touch()  # a vehicle, and another class
    assert labeled(data).texts == ["Val", "train"]


def test_images_without_a_label_among_those_of_one_label_are_refused(tmp_path: Path) -> None:
    """They may be missing values, or belong to no class."""
    path = write_csv(tmp_path / "x.csv", ("path", "label"), [("a.png", "a"), ("b.png", "b"), ("c.png", "")])
    with pytest.raises(DataError, match=r"has 1 images without a label, such as c.png, and one label for each of the"):
        open_data(path)
    assert labeled(path, DataOptions(multi_label=True)).multi_label
    assert not labeled(write_csv(path, ("path", "label"), [("a.png", "a"), ("b.png", "b")])).multi_label


def test_quotation_marks_of_a_table_with_tabs_are_parts_of_texts(tmp_path: Path) -> None:
    texts = ['"A red star', "six eggs", 'two "eggs"', 'a monitor of 24"', '"a" and "b"', '"', "it's, well"]
    lines = "".join(f"{number}.png\t{text}\n" for number, text in enumerate(texts))
    (tmp_path / "x.tsv").write_text(f"path\tcaption\n{lines}")
    assert captioned(tmp_path / "x.tsv").captions == {"": {number: [text] for number, text in enumerate(texts)}}
    rows = [(f"{number}.png", text) for number, text in enumerate(texts)]
    path = write_csv(tmp_path / "x.tsv", ("path", "caption"), rows, "\t")  # as pandas does, with enclosing quotes
    assert path.read_text().count('""') > 4
    assert captioned(path).captions == {"": {number: [text] for number, text in enumerate(texts)}}
    (tmp_path / "x.tsv").write_text('"path"\t"label"\n"a.png"\t"a star"\n"b.png"\t"6 ""eggs"""\n')
    assert labeled(tmp_path / "x.tsv").texts == ['6 "eggs"', "a star"]
    for text, message in (("two\neggs", "has the caption '\"two'|row 2|eggs"), ("two\teggs", "cannot contain tabs")):
        with pytest.raises(DataError, match=message):
            open_data(write_csv(path, ("path", "caption"), [("a.png", text), ("b.png", "x")], "\t"))


def test_rows_that_quotation_marks_join_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.csv"
    path.write_text('path,caption\na.png,"A red star\nb.png,six eggs\nc.png,a monitor of 24"\n\nd.png,x\ne.png\n\n')
    with pytest.raises(DataError, match="has the caption None"):
        open_data(path)
    path.write_text(path.read_text().replace("e.png", "e.png,y"))
    assert len(captioned(path).samples) == 3
    assert f"{path}: 1 rows span several lines, from one quotation mark to another; check" in caplog.text


def test_another_column_is_not_taken_for_the_language(tmp_path: Path) -> None:
    """Each image has a list for each language."""
    rows = [(f"{number}.png", "a", str(number)) for number in range(5000)]
    with pytest.raises(DataError, match=r"more than 200 languages, such as '200'; a column called language or lang"):
        open_data(write_csv(tmp_path / "x.csv", ("path", "caption", "lang"), rows))


def test_a_limit_takes_evenly_spaced_images(drawn: Path, tmp_path: Path) -> None:
    data = labeled(drawn)
    assert len(data.take(None).samples) == len(data.take(99).samples) == 16
    assert {sample.labels[0] for sample in data.take(8).samples} == set(range(8))
    rows = [(f"{number}.png", "a|b" * (number == 3)) for number in range(4)]
    with pytest.raises(DataError, match=r"None of 2 images of .*x.csv has a label; give a higher --limit"):
        labeled(write_csv(tmp_path / "x.csv", ("path", "label"), rows)).take(2)
    captions = captioned(karpathy(tmp_path / "x.json"), DataOptions(split="")).take(2)
    assert captions.captions == {"": {0: ["a red circle", "red"], 1: ["a blue star", "blue"]}}


def one_class(folder: Path) -> Path:
    (folder / "set" / "only").mkdir(parents=True)
    (folder / "set" / "only" / "x.png").touch()
    return folder / "set"


def empty_folders(folder: Path) -> Path:
    for name in "ab":
        (folder / "set" / name).mkdir(parents=True)
    return folder / "set"


def text_file(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (one_class, "has one class, 'only'; expected at least two"),
        (empty_folders, "has no images"),
        (lambda folder: folder / "none", "does not exist"),
        (text_file("x.pdf", ""), "has the suffix '.pdf'"),
        (text_file("x.csv", "a,b\n1,2\n"), "has the columns a, b; expected one of path"),
        (text_file("x.csv", "path,size\nx.png,2\n"), "expected labels .* or captions"),
        (text_file("x.csv", "path,label\n,2\n"), "row 1: path is ''"),
        (text_file("x.csv", ""), "has no rows"),
        (text_file("x.csv", "path,label\nx.png,0\ny.png,1\n"), "labels that are numbers, such as 0; .* --labels FILE"),
        (text_file("x.jsonl", '{"path": "x", "label": "a"}\n{"path"'), "x.jsonl, line 2: "),
        (text_file("x.jsonl", '{"path": "x", "label": "a"}\n[]'), "x.jsonl, line 2: not an object"),
        (text_file("x.jsonl", '{"path": "x", "label": 1.5}'), r"x has the label 1.5; expected a word"),
        (text_file("x.jsonl", '{"path": "x", "caption": 5}'), r"x has the caption 5"),
        (text_file("x.jsonl", '{"path": "x", "caption": " "}'), "has no captions"),
        (text_file("x.json", "[]"), "cannot be read as a captions file of Karpathy"),
        (text_file("x.json", '{"images": [{"split": "test"}]}'), "cannot be read as a captions file of Karpathy"),
        (text_file("x.tar", "not a tar archive"), "cannot be read as a tar archive"),
        (lambda folder: write_tar(folder / "x.tar", [("a" * 5000 + ".png", b"1")]), "a name of 5,004 characters, exp"),
        (text_file("x.parquet", "not Parquet"), "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_used_is_named(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=message):
        open_data(path)


def test_unknown_labels_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", ("path", "label"), [("a.png", "cat"), ("b.png", "dgo")])
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(
        DataError, match=r"b.png has the label 'dgo', which is not among the 2 known classes \(cat, dog"
    ):
        open_data(path, DataOptions(labels=tmp_path / "labels.txt"))
    write_csv(path, ("path", "label"), [("a.png", "0"), ("b.png", "2")])
    with pytest.raises(DataError, match=r"b.png has the label '2'"):
        open_data(path, DataOptions(labels=tmp_path / "labels.txt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has the line 'nothing'"),
        (b"a\tb\nc\n", "has the line 'c'; expected either"),
        (b"\xff", "cannot be read"),
        (b"a\n" * 1_000_001, "has more than 1,000,000 lines"),
        (b"a" * 20_000_001, "has more than 20,000,000 bytes"),
        (b"\ta\nb\tc\n", "of which a part is empty"),
    ],
)
def test_files_of_labels(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_an_archive_that_was_cut_later(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", b"1" * 5000), ("a.cls", b"0"), ("b.png", b"2"), ("b.cls", b"1")])
    (tmp_path / "classnames.txt").write_text("x\ny")
    data = open_data(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match="ends in the middle of an image"):
        data.samples[0].read()


@pytest.mark.parametrize("written", ["{}", "{}.0"])
def test_whole_numbers_are_positions_however_they_are_written(written: str, tmp_path: Path) -> None:
    """A table of pandas has them as 1.0 if one value is missing."""
    rows = [("a.png", written.format(1)), ("b.png", written.format(0))]
    path = write_csv(tmp_path / "set.csv", ("path", "label"), rows)
    with pytest.raises(DataError, match="labels that are numbers, such as"):
        open_data(path)
    (tmp_path / "words.txt").write_text("a star\na moon\n")
    data = open_data(path, DataOptions(labels=tmp_path / "words.txt"))
    assert [sample.labels for sample in data.samples] == [(1,), (0,)]


def test_floats_that_are_whole_numbers_are_labels(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a star\na moon\n")
    rows = [{"path": "a.png", "label": 1.0}, {"path": "b.png", "label": 0}]
    data = open_data(write_json_lines(tmp_path / "x.jsonl", rows), DataOptions(labels=tmp_path / "words.txt"))
    assert [sample.labels for sample in data.samples] == [(1,), (0,)]
    rows[0]["label"] = 0.5
    with pytest.raises(DataError, match=r"has the label 0\.5; expected a word, a number, or a list of them"):
        open_data(write_json_lines(tmp_path / "x.jsonl", rows))
