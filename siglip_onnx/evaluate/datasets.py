"""Read labelled or captioned images: a folder per class, CSV, JSON lines, COCO's JSON, webdataset archives, Parquet."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import normalize

from ..bulk.listing import Listing, is_left_out, status_of
from ..bulk.parquet import ParquetFile
from ..errors import DataError
from ..system.json_files import read_json_object
from .classes import Key, number_folders, number_labels, number_names, position_of, read_labels, split_lines
from .sources import Sample, file_sample, is_image_name, read_parquet, read_webdataset
from .tables import read_csv, read_json_lines

PATHS = ("path", "image", "file_name", "filename", "file", "filepath", "image_path", "image/key")
LABELS = ("label", "labels", "class", "cls")
CAPTIONS = ("captions", "caption", "text", "title", "txt")
LANGUAGES = ("language", "lang")
SEPARATOR = "|"  # between the labels of one image in CSV
ANY_LANGUAGE = ""
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")  # folders of class folders
_CLASS_NAMES = "classnames.txt"  # beside the archives of CLIP_benchmark
_MAX_JSON_BYTES = 500_000_000  # that of COCO has 144 MB
_MAX_LANGUAGES = 200  # of captions; each has a list for each image
_log = logging.getLogger(__name__)
Keyed = tuple[Sample, tuple[Key, ...]]


@dataclass(frozen=True)
class LabeledImages:
    """Images with the classes that each belongs to.

    ``texts`` says in words what each class is, ``numbers`` which one the data mean by a folder, a word or a number.
    """

    path: Path
    samples: list[Sample]
    texts: list[str]
    multi_label: bool
    numbers: Mapping[Key, int]

    def take(self, limit: int | None) -> LabeledImages:
        """Return this with at most ``limit`` images, evenly spaced.

        Raises:
            DataError: none of them has a label.
        """
        samples = [self.samples[index] for index in evenly_spaced(len(self.samples), limit)]
        if not any(sample.labels for sample in samples):
            raise DataError(f"None of {len(samples)} images of {self.path} has a label; give a higher --limit.")
        return replace(self, samples=samples)

    def numbered_like(self, other: LabeledImages) -> LabeledImages:
        """Return this with its classes in the order of another set, which has as many and the same labels for them.

        Raises:
            DataError: classes of this are one class there, or the other way around.
        """
        common = self.numbers.keys() & other.numbers.keys()
        pairs = {(self.numbers[label], other.numbers[label]) for label in common}
        order = dict(pairs)
        if not len(pairs) == len(order) == len(set(order.values())):
            raise DataError(f"{self.path} has labels that mean other classes with other words; see --labels.")
        rest = iter(sorted(set(range(len(self.texts))) - set(order.values())))
        order |= {number: next(rest) for number in range(len(self.texts)) if number not in order}
        texts = [self.texts[number] for number in sorted(order, key=order.__getitem__)]
        samples = [replace(each, labels=tuple(sorted(order[label] for label in each.labels))) for each in self.samples]
        numbers = {label: order[number] for label, number in self.numbers.items()}
        return replace(self, samples=samples, texts=texts, numbers=numbers)

    def only(self, languages: Sequence[str]) -> LabeledImages:
        """Refuse languages, which labels do not have.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.path} has labels, not captions in {', '.join(languages)}; leave out --language.")


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions: per language, those of each image that has some, by its number.

    Attributes:
        all_languages: those of the whole data set, where ``captions`` are those of some; empty if they are all.
    """

    path: Path
    samples: list[Sample]
    captions: dict[str, dict[int, list[str]]]
    all_languages: tuple[str, ...] = ()

    @property
    def is_multilingual(self) -> bool:
        """Whether the whole data set has several languages."""
        return len(self.all_languages or self.captions) > 1

    def take(self, limit: int | None) -> CaptionedImages:
        """Return this with at most ``limit`` images, evenly spaced."""
        chosen = evenly_spaced(len(self.samples), limit)
        captions = {
            language: {number: rows[index] for number, index in enumerate(chosen) if index in rows}
            for language, rows in self.captions.items()
        }
        return replace(self, samples=[self.samples[index] for index in chosen], captions=captions)

    def only(self, languages: Sequence[str]) -> CaptionedImages:
        """Return this with the captions of some languages.

        Raises:
            DataError: a language has no captions.
        """
        for language in languages:
            if language not in self.captions:
                known = ", ".join(name for name in self.captions if name) or "captions without a language"
                raise DataError(f"{self.path} has no captions in {language!r}; it has {known}.")
        chosen = {language: self.captions[language] for language in languages}
        return replace(self, captions=chosen, all_languages=tuple(self.captions))


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read.

    Attributes:
        labels: a file with the words for the classes, see :func:`read_labels`.
        images: the folder of the images, by default that of the data set's file.
        split: the split of COCO's JSON, all if empty.
        multi_label: an image may belong to any number of classes, even if none in the set belongs to several.
    """

    labels: Path | None = None
    images: Path | None = None
    split: str = "test"
    multi_label: bool = False


def names_images(path: Path) -> bool:
    """Say whether a data set names the files of its images, which may lie elsewhere, instead of holding them."""
    return not path.is_dir() and path.suffix not in (".tar", ".parquet")


def open_data(path: Path, options: DataOptions | None = None) -> LabeledImages | CaptionedImages:
    """Read a data set; its form follows from its suffix and from what it holds.

    Raises:
        DataError: it cannot be read, has no images, fewer than two classes, or labels without a class.
        MissingExtraError: a Parquet file, and the extra [parquet] is not installed.
    """
    options = options or DataOptions()
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder with a folder per class, or a .csv, .jsonl, .json, .tar "
                        "or .parquet file.")  # fmt: skip
    archives = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
    tables = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if path.is_dir():
        _check_one_form(path, archives, tables)
    if archives:
        return _from_archives(path, archives, options)
    if tables:
        return _from_parquet(path, tables, options)
    if path.is_dir():
        return _from_folders(path, options)
    readers: dict[str, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
        ".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines,
    }  # fmt: skip
    if path.suffix == ".json":
        return _from_karpathy(path, options)
    if path.suffix not in readers:
        raise DataError(
            f"{path} has the suffix {path.suffix!r}; expected a folder, or .csv, .jsonl, .json, .tar, .parquet."
        )
    return _from_rows(path, readers[path.suffix](path), options)


def _check_one_form(path: Path, archives: Sequence[Path], tables: Sequence[Path]) -> None:
    """Refuse a folder that may be several data sets: archives, Parquet files, and folders of images.

    Raises:
        DataError: it may.
    """
    forms = [files[0].name for files in (archives, tables) if files]
    if forms and (folders := sorted(_class_folders(path))) and not Listing(folders).is_empty():
        forms.append(f"images in the folder {folders[0].name}")
    if len(forms) > 1:
        raise DataError(
            f"{path} has {' and '.join(forms)}; expected one of them. Give the file, or move the others elsewhere."
        )


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of ``count`` positions, evenly spaced."""
    if limit is None or limit >= count:
        return list(range(count))
    return [number * count // limit for number in range(limit)]


def _from_folders(path: Path, options: DataOptions) -> LabeledImages:
    folders = sorted(_class_folders(path), key=lambda folder: _sort_key(_composed(folder.name)))
    listing = Listing(folders)
    names_below = (os.path.relpath(image.path, path) for image in listing)
    keyed: list[Keyed] = [(file_sample(path, name), (_composed(name.partition(os.sep)[0]),)) for name in names_below]
    loose = sum(is_image_name(entry.name) for entry in path.iterdir())
    if loose and not keyed:
        raise DataError(
            f"{path} has images, but no folder per class; move the images of each class to one of its name."
        )
    for count, what in ((loose, "images beside the folders of classes"),
                        (listing.linked_folders, "links to folders in them")):  # fmt: skip
        if count:
            _log.warning("%s: %s were left out: %d.", path, what, count)
    if listing.left_out:
        _log.warning("%s: left out of the folders of classes: %s.", path, listing.describe_left_out())
    if folders and all(folder.name.lower() in _SPLITS for folder in folders) and not any(map(_is_in_class, keyed)):
        raise DataError(
            f"{path} has the folders {', '.join(folder.name for folder in folders)}, which have no images of their own "
            f"and seem to be splits rather than classes. Give one of them, such as {folders[0]}."
        )
    names = list(dict.fromkeys(_composed(folder.name) for folder in folders))
    if options.labels is None:
        texts = [name.replace("_", " ") for name in names]
        return _labeled(path, keyed, {name: number for number, name in enumerate(names)}, texts, options)
    numbers, texts = number_folders(path, names, options.labels)
    return _labeled(path, keyed, numbers, texts, options)


def _is_in_class(keyed: Keyed) -> bool:
    """Say whether an image lies in the folder of its class itself, not in one below."""
    return keyed[0].name.count(os.sep) == 1


def _composed(name: str) -> str:
    """Return a name with composed letters, which macOS takes apart."""
    return normalize("NFC", name)


def _class_folders(path: Path) -> Iterator[Path]:
    for entry in path.iterdir():
        if entry.is_dir() and not is_left_out(entry.name, status_of(str(entry))):
            yield entry


def _sort_key(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)


def _from_rows(
    path: Path, rows: Iterator[Mapping[str, Any]], options: DataOptions
) -> LabeledImages | CaptionedImages:  # fmt: skip
    base, first = options.images or path.parent, next(rows, None)
    if first is None:
        raise DataError(f"{path} has no rows; expected one per image.")
    path_column = _column(first, PATHS)
    if path_column is None:
        raise DataError(f"{path} has the columns {_names(first)}; expected one of {', '.join(PATHS)}.")
    rows = chain([first], rows)
    if "image/key" in first:
        return _from_crossmodal(path, rows, base)
    named = _named(path, rows, path_column)
    label_column, caption_column = _column(first, LABELS), _column(first, CAPTIONS)
    if label_column is not None:
        keys: dict[str, list[Key]] = {}  # an image may have several rows
        same: dict[Key, Key] = {}  # each label once in memory
        for name, row in named:
            found = _label_keys(row.get(label_column), path, name)
            keys.setdefault(name, []).extend(same.setdefault(key, key) for key in found)
        return _label(path, [(file_sample(base, name), tuple(own)) for name, own in keys.items()], None, options)
    if caption_column is None:
        raise DataError(
            f"{path} has the columns {_names(first)}; expected labels ({', '.join(LABELS)}) or captions "
            f"({', '.join(CAPTIONS)})."
        )
    texts: dict[str, list[tuple[str, object]]] = {}
    for name, row in named:
        language_column = _column(row, LANGUAGES)  # in JSON, rows may be without it
        language = ANY_LANGUAGE if language_column is None else str(row.get(language_column) or "")
        texts.setdefault(name, []).append((language, row.get(caption_column)))
    captions = _Captions()
    for name, own in texts.items():
        captions.add(file_sample(base, name))
        for language, text in own:
            captions.extend(language, text)
    return captions.finish(path)


def _named(path: Path, rows: Iterable[Mapping[str, Any]], column: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield rows with the name of their image."""
    for number, row in enumerate(rows, 1):
        name = row.get(column)
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}, row {number}: {column} is {name!r:.100}, expected the path of an image.")
        yield name, row


class _Captions:
    """Collects captions by language, image by image."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._captions: dict[str, dict[int, list[str]]] = {}

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    def extend(self, language: str, captions: object) -> None:
        """Add captions to the last image: a str, or a list of them."""
        texts = [captions] if isinstance(captions, str) else captions
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{self._samples[-1].name} has the caption {captions!r:.100}; expected a string or strings."
            )
        if language not in self._captions and len(self._captions) >= _MAX_LANGUAGES:
            raise DataError(
                f"The captions are in more than {_MAX_LANGUAGES} languages, such as {language!r:.50}; a column "
                f"called {' or '.join(LANGUAGES)} is taken for their language. Rename it if it says something else."
            )
        rows = self._captions.setdefault(language, {})
        if kept := [text for text in texts if text.strip()]:
            rows.setdefault(len(self._samples) - 1, []).extend(kept)

    def finish(self, path: Path) -> CaptionedImages:
        if not any(self._captions.values()):
            raise DataError(f"{path} has no captions; expected at least one for an image.")
        return CaptionedImages(path, self._samples, self._captions)


def _from_crossmodal(path: Path, rows: Iterable[Mapping[str, Any]], base: Path) -> CaptionedImages:
    """Read ``captions.jsonl`` of Crossmodal-3600: each line an image's key, and per language ``{"caption": [...]}``."""
    captions = _Captions()
    for number, row in enumerate(rows, 1):
        key = row.get("image/key")
        if not isinstance(key, str) or not key:
            raise DataError(f"{path}, row {number}: image/key is {key!r:.100}, expected the key of an image.")
        captions.add(replace(file_sample(base, f"{key}.jpg"), name=key))
        for language, value in row.items():
            if isinstance(value, dict) and "caption" in value:
                captions.extend(language, value["caption"])
    return captions.finish(path)


def _from_karpathy(path: Path, options: DataOptions) -> CaptionedImages:
    """Read the JSON of Karpathy's splits of COCO and Flickr30k."""
    try:
        document = read_json_object(path, _MAX_JSON_BYTES)
        entries = [
            (str(Path(entry.get("filepath", "")) / entry["filename"]), [each["raw"] for each in entry["sentences"]])
            for entry in document["images"]
            if options.split in ("", entry["split"])
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as a captions file of Karpathy's splits: {error!r:.200}. Expected images with "
            "filename, split and sentences."
        ) from error
    if not entries:
        raise DataError(f"{path} has no images of the split {options.split!r}; choose another one with --split.")
    captions = _Captions()
    for name, texts in entries:
        captions.add(file_sample(options.images or path.parent, name))
        captions.extend(ANY_LANGUAGE, texts)
    return captions.finish(path)


def _from_archives(path: Path, archives: Iterable[Path], options: DataOptions) -> LabeledImages | CaptionedImages:
    pairs = [pair for archive in archives for pair in read_webdataset(archive)]
    if pairs and "cls" in pairs[0][1]:
        keyed = [(sample, _label_keys(_text(rest.get("cls"), sample), path, sample.name)) for sample, rest in pairs]
        home = path if path.is_dir() else path.parent
        names = [folder / _CLASS_NAMES for folder in (home, home.parent) if (folder / _CLASS_NAMES).is_file()]
        if names and options.labels is None:
            options = replace(options, labels=names[0])
        return _label(path, keyed, None, options, are_positions=True)
    captions = _Captions()
    for sample, rest in pairs:
        captions.add(sample)
        captions.extend(ANY_LANGUAGE, split_lines(_text(rest.get("txt"), sample)))
    return captions.finish(path)


def _text(content: bytes | None, sample: Sample) -> str:
    if content is None:
        raise DataError(f"{sample.name} has neither a label (.cls) nor a caption (.txt) beside it, as others have.")
    return content.decode("utf-8", "replace").strip()


def _from_parquet(path: Path, tables: Sequence[Path], options: DataOptions) -> LabeledImages | CaptionedImages:
    pairs = [pair for table in tables for pair in read_parquet(table, (*LABELS, *CAPTIONS, *LANGUAGES))]
    first: Mapping[str, Any] = {key: None for _, row in pairs for key in row}
    label_column, caption_column = _column(first, LABELS), _column(first, CAPTIONS)
    if label_column is not None:
        keyed = [(sample, _label_keys(row.get(label_column), path, sample.name)) for sample, row in pairs]
        names = _class_names(tables, label_column)
        return _label(path, keyed, names, options, are_positions=names is not None)
    if caption_column is None:
        raise DataError(
            f"{path} has rows of {_names(first) or 'nothing'}; expected labels ({', '.join(LABELS)}) or captions "
            f"({', '.join(CAPTIONS)})."
        )
    language_column = _column(first, LANGUAGES)
    captions = _Captions()
    for sample, row in pairs:
        captions.add(sample)
        language = ANY_LANGUAGE if language_column is None else str(row.get(language_column) or "")
        captions.extend(language, row.get(caption_column))
    return captions.finish(path)


def _class_names(tables: Sequence[Path], column: str) -> list[str] | None:
    """Return the names of classes that the files record, which number the labels of all of them."""
    recorded = {table: names for table in tables if (names := ParquetFile(table).class_names(column)) is not None}
    first = next(iter(recorded), None)
    for table, names in recorded.items():
        if first is not None and names != recorded[first]:
            raise DataError(
                f"{first} and {table} record other names, or another order, of the classes of {column}, so that "
                "their numbers mean other classes. Evaluate each file by itself."
            )
    return None if first is None else recorded[first]


def _label(
    path: Path, keyed: list[Keyed], names: list[str] | None, options: DataOptions, *, are_positions: bool = False
) -> LabeledImages:
    """Give the classes numbers and words: of the labels file, of the recorded names, or the labels themselves.

    ``are_positions`` says that labels that are numbers are positions among the classes, and never their names.
    """
    labels: list[str] | dict[str, str] | None = None if options.labels is None else read_labels(options.labels)
    keys = {key for _, row in keyed for key in row}
    if isinstance(labels, dict):
        return _labeled(path, keyed, number_names(path, keys, list(labels)), list(labels.values()), options)
    texts = labels or names
    if texts is None:
        if any(position_of(key) is not None for key in keys):
            raise DataError(
                f"{path} has labels that are numbers, such as {min(map(str, keys)):.100}; give their words with "
                "--labels FILE, one class per line, that of 0 first."
            )
        texts = sorted(map(str, keys))
    return _labeled(path, keyed, number_labels(path, keys, texts, are_positions=are_positions), texts, options)


def _labeled(
    path: Path, keyed: Sequence[Keyed], numbers: Mapping[Any, int], texts: Sequence[str], options: DataOptions
) -> LabeledImages:  # fmt: skip
    """Return the set with labels as numbers, after checking it."""
    if not keyed:
        raise DataError(f"{path} has no images; expected images in a folder per class, or a row for each image.")
    samples = []
    same: dict[tuple[int, ...], tuple[int, ...]] = {}  # each once in memory
    for sample, keys in keyed:
        unknown = next((key for key in keys if key not in numbers and str(key) not in numbers), None)
        if unknown is not None:
            raise DataError(
                f"{sample.name} has the label {unknown!r:.100}, which is not among the {len(texts)} known classes "
                f"({', '.join(texts[:3]):.300}{', ...' if len(texts) > 3 else ''}). Add it to the labels file, or "
                "remove the image."
            )
        chosen = {numbers[key] if key in numbers else numbers[str(key)] for key in keys}
        classes = tuple(sorted(chosen))
        samples.append(replace(sample, labels=same.setdefault(classes, classes)))
    if not any(sample.labels for sample in samples):
        raise DataError(f"{path} has {len(samples)} images without any label; expected a label for each, at least two.")
    if len(texts) < 2:
        only = f"one class, {texts[0]!r:.100}" if texts else "no labels"
        raise DataError(f"{path} has {only}; expected at least two, one folder or label for each.")
    multi_label = options.multi_label or any(len(sample.labels) > 1 for sample in samples)
    if not multi_label and (unlabelled := [sample.name for sample in samples if not sample.labels]):
        raise DataError(
            f"{path} has {len(unlabelled)} images without a label, such as {unlabelled[0]:.200}, and one label for "
            "each of the others. Remove them, or give --multi-label if an image may have any number of labels."
        )
    return LabeledImages(path, samples, list(texts), multi_label, numbers)


def _label_keys(value: object, path: Path, name: str) -> tuple[Key, ...]:
    """Return the labels of one image: a number, a word, words separated by ``|``, or a list of these."""
    return tuple(
        key for each in (value if isinstance(value, list | tuple) else [value]) for key in _keys(each, path, name)
    )


def _keys(value: object, path: Path, name: str) -> list[Key]:
    if isinstance(value, float) and value.is_integer():  # as pandas has whole numbers beside one missing value
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{path}: {name} has the label {value!r:.100}; expected a word, a number, or a list of them.")
    if isinstance(value, int):
        return [value]
    return [_composed(word) for each in value.split(SEPARATOR) if (word := each.strip())]


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _names(row: Mapping[str, Any]) -> str:
    return f"{', '.join(map(str, row)):.300}"
