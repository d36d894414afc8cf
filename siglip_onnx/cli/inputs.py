"""Inputs of the commands: files of texts; images by path, folder, glob, list, URL and on stdin."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

import click

from ..bulk.listing import JXL, KIND_NAMES, RAW, Listing, read_names
from ..errors import ImageError, SiglipOnnxError, TextError
from ..hub.download import OFFLINE_VARIABLE, is_offline
from ..image.decode import ImageReader, ImageSource
from ..image.decoder_pool import DecoderPool
from ..options import ImageLimits
from ..system.extras import extra
from ..system.files import is_open_descriptor, open_list, read_up_to
from .options import ModelChoice
from .output import format_count, warn

STDIN = "-"
LIST_MARK = "@"
_MAX_TEXTS_CHARACTERS = 200_000_000
# Reads all data of an image, but decodes a large JPEG at an eighth of its size: enough to know that it can be read.
_CHECK = ImageReader(draft_size=(1, 1), counts_file=True)
_OPTIONS = ", or raise the limit with "  # of other commands
_SEPARATORS = re.escape(os.sep + (os.altsep or ""))
_ANY_DEPTH = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))\*\*(?:[{_SEPARATORS}]+|$)")  # as a whole part of a pattern
_URL = re.compile(r"https?://", re.I)
Result = TypeVar("Result")


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
            content = file.read(_MAX_TEXTS_CHARACTERS + 1)
        if len(content) > _MAX_TEXTS_CHARACTERS:
            raise SiglipOnnxError(f"{texts_file} has more than {_MAX_TEXTS_CHARACTERS:,} characters; split it.")
        lines = content.split("\n")
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


def list_images(arguments: Sequence[str]) -> list[str]:
    """Return the names of the images that arguments stand for: paths, URLs, and ``-`` for stdin.

    A folder stands for its images at any depth, ``@FILE`` for the names in a list, a pattern for the paths that match.

    Raises:
        SiglipOnnxError: a list cannot be read, or a folder or pattern stands for no image.
        click.UsageError: stdin is given twice.
    """
    if list(arguments).count(STDIN) > 1:
        raise click.UsageError("- is given twice, but stdin has one image.")
    return [name for argument in arguments for name in _expand(argument)]


def is_url(name: str) -> bool:
    """Say whether an image is named by a URL."""
    return _URL.match(name) is not None


def is_pattern(argument: str) -> bool:
    """Say whether an argument is a pattern such as ``photos/*.jpg`` rather than the path of a file."""
    return glob.has_magic(argument) and not is_url(argument) and not os.path.lexists(argument)


def find_missing(names: Sequence[str]) -> list[ImageError]:
    """Return the errors of images if none of them exists, so that nobody waits for a model in vain."""
    if any(name == STDIN or is_url(name) or os.path.lexists(name) for name in names):
        return []
    return [ImageError(f"{name} does not exist; give an image, or a folder of images.", status="io_error")
            for name in names]  # fmt: skip


def open_names(path: Path) -> list[str]:
    """Return the names in a list, one per line.

    Raises:
        SiglipOnnxError: the list cannot be read, or names stdin, which only the user may.
    """
    try:
        with open_list(path) as file:
            names = [_name_of_file(name) for name in read_names(file)]
    except OSError as error:
        raise SiglipOnnxError(
            f"The list {path} cannot be read: {error.strerror or error}; give a file with one path per line."
        ) from error
    if unread := [name for name in names if is_open_descriptor(Path(name))]:
        raise SiglipOnnxError(
            f"The list {path} names {unread[0]}, expected paths of files; give {unread[0]} as an argument."
        )
    return names


def _name_of_file(name: str) -> str:
    """Return a name that a list or a folder gives so that it is not taken for stdin."""
    return os.path.join(os.curdir, name) if name == STDIN else name  # noqa: PTH118 - Path drops "."


def _expand(argument: str) -> list[str]:
    if argument == STDIN or is_url(argument):
        return [argument]
    if os.path.isdir(argument):  # noqa: PTH112 - is_dir() raises for long names
        return _list_folder(argument)
    if os.path.lexists(argument):
        return [argument]
    if argument.startswith(LIST_MARK):
        return open_names(Path(argument.removeprefix(LIST_MARK)))
    if is_pattern(argument):
        matches = sorted(_find_matches(argument))
        if not matches:
            raise SiglipOnnxError(f"No file matches {argument!r}; give an image, a folder, or another pattern.")
        # Each once: a folder and the images in it may both match.
        return list(dict.fromkeys(name for match in matches for name in _expand(_name_of_file(match))))
    return [argument]


def isolate_many(choice: ModelChoice, arguments: Iterable[str]) -> ModelChoice:
    """Return a choice that decodes all images in processes of their own if an argument stands for many images."""
    if choice.isolate_decoding is not None or not any(map(_stands_for_many, arguments)):
        return choice
    return replace(choice, isolate_decoding=True)


def _stands_for_many(argument: str) -> bool:
    """Say whether an argument is a folder, a list or a pattern, whose images its user need not know one by one."""
    if os.path.lexists(argument):
        return os.path.isdir(argument)  # noqa: PTH112 - is_dir() raises for long names
    return argument.startswith(LIST_MARK) or is_pattern(argument)


def _find_matches(pattern: str) -> list[str]:
    """Return the paths that match a pattern; ``**`` stands for folders at any depth, but not for links to folders.

    ``glob`` would follow these, so that two links to the folder that they are in lead to a trillion paths.
    """
    top, *below = _ANY_DEPTH.split(pattern, maxsplit=1)
    if not below:
        return glob.glob(pattern)  # noqa: PTH207 - keeps the names as they are given
    matches = []
    for start in glob.glob(top) if top else [""]:  # noqa: PTH207
        for folder, names, _ in os.walk(start or os.curdir):
            names[:] = [name for name in names if not name.startswith(".")]
            shown = folder if start else os.path.relpath(folder, os.curdir).removeprefix(os.curdir)
            found = _find_matches(os.path.join(glob.escape(shown), below[0] or "*"))  # noqa: PTH118
            matches += found if below[0] else [match for match in found if not os.path.isdir(match)]  # noqa: PTH112
    return matches


def _list_folder(folder: str) -> list[str]:
    listing = Listing([Path(folder)])
    start = os.path.abspath(folder)  # noqa: PTH100 - as the listing does, without following links
    names = [os.path.join(folder, os.path.relpath(item.path, start)) for item in listing]  # noqa: PTH118
    if not names:
        raise SiglipOnnxError(f"{folder} contains no images; give a folder that has some.")
    report_left_out(listing, folder)
    return names


def report_left_out(listing: Listing, folder: str | Path | None = None) -> None:
    """Say what a listing left out; with ``folder``, for commands that have no options to take it."""
    kinds = listing.left_out_kinds
    if kinds:
        unread = " and ".join(KIND_NAMES[kind] for kind in (RAW, JXL) if kinds[kind])
        advice = f" Convert {unread} files to JPEG or PNG to embed them." if unread else ""
        place = "; use --all-files to try them" if folder is None else f" in {folder}"
        warn(f"skipped {listing.describe_left_out()}{place}.{advice}")
    if listing.linked_folders:
        links = format_count(listing.linked_folders, "link")
        warn(f"did not follow {links} to folders{'; use --follow-links' if folder is None else f' in {folder}'}.")


@dataclass(frozen=True)
class InputReader:
    """Reads images that are not files: from stdin, and from public addresses by URL unless ``offline``.

    The environment may forbid these too, see :func:`.is_offline`.
    """

    limits: ImageLimits
    offline: bool

    def embed(
        self, names: Iterable[str], embed: Callable[[Iterable[ImageSource]], Iterator[Result | ImageError]]
    ) -> Iterator[tuple[str, Result | ImageError]]:
        """Yield each name with its result of ``embed``, which maps images to results or errors in order."""
        errors: deque[tuple[str, ImageError | None]] = deque()  # of images that `embed` has not returned yet

        def sources() -> Iterator[ImageSource]:
            for name in names:
                source = self.open(name)
                if isinstance(source, ImageError):
                    errors.append((name, source))
                else:
                    errors.append((name, None))
                    yield source

        for result in embed(sources()):
            while (unread := errors.popleft())[1] is not None:
                yield unread[0], unread[1]
            yield unread[0], _named(unread[0], result) if isinstance(result, ImageError) else result
        yield from ((name, error) for name, error in errors if error is not None)

    def open(self, name: str) -> ImageSource | ImageError:
        """Return the path of a file, or the bytes of another image, or the error that kept them from being read."""
        try:
            if name == STDIN:
                content = read_up_to(sys.stdin.buffer, self.limits.max_bytes + 1)
                self.limits.check_bytes(len(content), "the image on stdin")
                return content
            return self._fetch(name) if is_url(name) else name
        except ImageError as error:
            return error

    def _fetch(self, url: str) -> bytes:
        if self.offline or is_offline():
            cause = "--offline" if self.offline else OFFLINE_VARIABLE
            raise ImageError(f"{url} is not fetched, because of {cause}.", status="io_error")
        with extra("web", "An image by URL"):
            from ..web.fetch import fetch_image  # noqa: PLC0415 - an optional extra
        return fetch_image(url, self.limits)


def _named(name: str, error: ImageError) -> ImageError:
    """Return an error that names the image, also where only its bytes were decoded."""
    if name == STDIN or is_url(name):
        return ImageError(f"{'stdin' if name == STDIN else name}: {error}", status=error.status)
    return error


def find_images(folder: Path, option: str, *, at_most: int | None = None) -> list[Path]:
    """Return the images in a folder, at any depth; report and skip the files that cannot be read as images.

    If the folder has more than ``at_most`` files, use a sample of evenly spaced ones and report it.

    Raises:
        SiglipOnnxError: not a folder, or no file in it can be read as an image.
    """
    if not folder.is_dir():
        raise SiglipOnnxError(f"{folder} is not a folder; {option} expects a folder of images.")
    listing = Listing([folder], all_files=True)
    listed = [os.path.relpath(item.path, folder) for item in listing if item.size_bytes is not None]
    files = [folder / path for path in listed]
    if at_most is not None and len(files) > at_most:
        warn(f"using {at_most} of the {len(files):,} files in {folder}.")
        files = [files[number * len(files) // at_most] for number in range(at_most)]
    with closing(DecoderPool(_CHECK)) as pool:
        images = [path for path in files if _is_readable(path, pool)]
    if not images:
        raise SiglipOnnxError(f"{folder} contains no readable image; {option} expects a folder of images.")
    return images


def _is_readable(path: Path, pool: DecoderPool) -> bool:
    try:
        pool.read(path)
    except ImageError as error:
        problem, has_options, _ = str(error).partition(_OPTIONS)
        warn(f"skipped: {problem}{'.' if has_options else ''}")
        return False
    return True
