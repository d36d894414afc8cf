"""Decide which files a command may replace: those of its own kind, recognized by their content, never its inputs."""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import click

from ..errors import SiglipOnnxError
from ..system.files import open_regular
from .help import OUTPUT, section

_HEAD_BYTES = 1_000_000
overwrite_option = section(
    OUTPUT, click.option("--overwrite", is_flag=True, help="Replace an existing file, also one of another kind.")
)


class Kind(NamedTuple):
    """Files that a command writes: what they are called, how they begin, and what is found in their first bytes.

    A file of the user may hold such a file as a part, so what it is must follow from how it begins, where that is text.
    """

    name: str
    begin: bytes  # a regular expression
    mark: bytes = b""
    everywhere: bool = False  # the mark may stand anywhere in the file


def json_kind(name: str, format_: str) -> Kind:
    """Return the kind of JSON files whose first key is their format."""
    return Kind(name, rb'\s*\{\s*"format"\s*:\s*"' + re.escape(format_).encode() + b'"')


def check_output(
    path: Path, kind: Kind, inputs: Iterable[Path | str | None], *, overwrite: bool, option: str = "--out"
) -> None:
    """Refuse to replace a file that is not of the kind that is written, unless it is to be overwritten, or an input.

    A device or pipe is written to. Without a file there is nothing to replace, but a folder must be there: it is
    checked before work of hours whose result could not be kept.

    Raises:
        SiglipOnnxError: the file is of another kind, or is one of the inputs or in a folder that is one; or there is no
            folder for it, or one that cannot be written.
    """
    _check_parent(path, option)
    try:
        status = path.stat()
    except (OSError, ValueError):  # the writing reports why
        return
    if not stat.S_ISREG(status.st_mode):
        return
    own = _is_own(path, kind)
    for given in inputs:
        used = None if given is None else Path(given)
        if used is not None and _reads(used, path, own=own):
            raise SiglipOnnxError(f"{path} is one of the files that are read; choose another name for {option}.")
    if not own and not overwrite:
        raise SiglipOnnxError(
            f"{path} exists already and is not {kind.name}, so it is not replaced; choose another name for {option}, "
            "or replace it: --overwrite"
        )


def _check_parent(path: Path, option: str) -> None:
    """Refuse a file in a folder that does not exist, or in which none can be made.

    Raises:
        SiglipOnnxError: it is one of these.
    """
    parent = path.parent
    if not os.path.isdir(parent):  # noqa: PTH112 - is_dir() raises for long names
        raise SiglipOnnxError(
            f"{path} cannot be written: {parent} is not a folder; create it first, or choose another name for {option}."
        )
    if not os.path.lexists(path) and not os.access(parent, os.W_OK | os.X_OK):
        raise SiglipOnnxError(
            f"{path} cannot be written: files cannot be made in {parent}; choose another name for {option}."
        )


def _reads(used: Path, path: Path, *, own: bool) -> bool:
    """Say whether a path is an input, or a file in a folder that is one, other than an earlier output."""
    try:
        return used.samefile(path) or (not own and used.is_dir() and path.resolve().is_relative_to(used.resolve()))
    except (OSError, ValueError):  # a URL, a name on the Hub, or - for stdin
        return False


def _is_own(path: Path, kind: Kind) -> bool:
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
            if not re.match(kind.begin, head):
                return False
            if not kind.everywhere:
                return kind.mark in head
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(kind.mark) >= 0
    except (OSError, ValueError):
        return False
