"""Inputs of the commands: files of texts, and folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from ..errors import ImageError, SiglipOnnxError, TextError
from ..image.decode import ImageReader
from ..system.files import open_list
from .output import warn

# Reads all data of an image, but decodes a large JPEG at an eighth of its size: enough to know that it can be read.
_CHECK = ImageReader(draft_size=(1, 1))


def read_texts(texts: Sequence[str], texts_file: Path | None) -> list[str]:
    """Return the texts given as arguments, then those of the file, one per line; blank lines are skipped.

    Raises:
        SiglipOnnxError: the file cannot be read, or is not UTF-8.
        TextError: the file contains no text.
    """
    if texts_file is None:
        return list(texts)
    try:
        with TextIOWrapper(open_list(texts_file), encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except FileNotFoundError as error:
        raise SiglipOnnxError(f"{texts_file} does not exist; give a UTF-8 file with one text per line.") from error
    except UnicodeDecodeError as error:
        raise SiglipOnnxError(f"{texts_file} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise SiglipOnnxError(
            f"{texts_file} cannot be read: {error.strerror or error}; give a UTF-8 file with one text per line."
        ) from error
    file_texts = [line.strip() for line in lines if line.strip()]
    if not file_texts:
        raise TextError(f"{texts_file} contains no text; expected one text per line.")
    return [*texts, *file_texts]


def find_images(folder: Path, option: str, *, at_most: int | None = None) -> list[Path]:
    """Return the images in a folder, at any depth; report and skip the files that cannot be read as images.

    If the folder has more than ``at_most`` files, use a sample of evenly spaced ones and report it.

    Raises:
        SiglipOnnxError: not a folder, or no file in it can be read as an image.
    """
    if not folder.is_dir():
        raise SiglipOnnxError(f"{folder} is not a folder; {option} expects a folder of images.")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if at_most is not None and len(files) > at_most:
        warn(f"using {at_most} of the {len(files):,} files in {folder}.")
        files = [files[number * len(files) // at_most] for number in range(at_most)]
    images = [path for path in files if _is_readable(path)]
    if not images:
        raise SiglipOnnxError(f"{folder} contains no readable image; {option} expects a folder of images.")
    return images


def _is_readable(path: Path) -> bool:
    try:
        _CHECK.read(path)
    except ImageError as error:
        warn(f"skipped: {error}")
        return False
    return True
