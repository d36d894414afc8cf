"""Read Parquet files of other programs, which may be hostile: rows in order, and images one after another."""

from __future__ import annotations

import itertools
import json
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError, first_line
from ..system.extras import extra
from ..system.files import open_regular
from ..system.fork import renewed_lock
from ..system.lru_cache import LRUCache
from .parquet_pages import MAX_FOOTER_BYTES, Pages, read_footer, scan_column

_MAX_PARTS = 100_000  # row groups, or columns
_FEW_ROWS, _BYTES_PER_ROW = 10_000, 20  # a compressed image and its label have more
_BATCH_BYTES, _BATCH_ROWS = 32_000_000, 1024  # every value may be as large as a page: dictionaries repeat values
_GROWTH = 20  # bytes of values by bytes of the file: texts are compressed, and a dictionary repeats values
_FEW_TEXT_BYTES, _FEW_IMAGE_BYTES = 32_000_000, 256_000_000
# Of images, for threads that read them slightly out of order; of a small file, only the first number of bytes.
_KEPT_ROWS, _FEW_KEPT_BYTES, _KEPT_BYTES = 256, 32_000_000, 128_000_000
_RECENT_FILES = 2  # threads may still read one while the next is begun
_MAX_LEVELS = 3  # of a column: itself, its list, and the element of that
_BUFFER_BYTES = 1_000_000


class ParquetFile:
    """A Parquet file, opened; for any number of threads. Needs the extra [parquet].

    What is read is bounded by the bytes of the file: see :mod:`.parquet_pages`.
    """

    def __init__(self, path: Path) -> None:
        """Read the footer.

        Raises:
            DataError: the file cannot be read, or is not a Parquet file.
            MissingExtraError: pyarrow is not installed.
        """
        with extra("parquet", "A Parquet file"):
            import pyarrow.parquet  # noqa: PLC0415 - an optional package
        self.path = path
        # What pyarrow raises for damaged files: its own errors, and those of Python that it translates them to.
        self._errors = (OSError, ValueError, LookupError, TypeError, NotImplementedError, MemoryError, OverflowError,
                        pyarrow.ArrowException)  # fmt: skip
        try:
            with open_regular(path) as file:  # the library would wait for a pipe
                self._footer = read_footer(file)
            self.size_bytes = self._footer.size_bytes
            counts = [group.num_rows for group in self._footer.row_groups]
            self._check_rows(counts)
            self._open_library = partial(
                pyarrow.parquet.ParquetFile, path, buffer_size=_BUFFER_BYTES,
                thrift_string_size_limit=MAX_FOOTER_BYTES, thrift_container_size_limit=_MAX_PARTS,
            )  # fmt: skip
            self._file: Any = self._open_library()
            self.columns = list(self._file.schema_arrow.names)
            if repeated := [name for name, count in Counter(self.columns).items() if count > 1]:
                raise ValueError(f"it has several columns {repeated[0]!r:.100}")
        except self._errors as error:
            raise self._unreadable(error) from error
        self._starts = list(itertools.accumulate(counts, initial=0))
        self._kept = self._new_cache()
        self._next_row = 0
        self._ends: dict[int, tuple[int, DataError]] = {}  # of damaged row groups: the first unreadable row, and why
        self._num_counted = 0  # rows whose images were counted
        self._image_bytes_left = max(_FEW_IMAGE_BYTES, _GROWTH * self.size_bytes)
        self._ahead: Iterator[Any] | None = None  # the values from the next row on
        self._checked: dict[tuple[int, int], Pages] = {}
        self._lock = renewed_lock(self)
        _recent.use(self)

    def class_names(self, column: str) -> list[str] | None:
        """Return the names of a column's classes, if the library datasets recorded them."""
        with self._lock:
            metadata = self._opened().schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"][column]
            names = features["names"] if "names" in features else features["feature"]["names"]
            return [str(name) for name in names] if isinstance(names, list) else None
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    def rows(self, columns: Collection[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of some columns, of texts or numbers, as dictionaries.

        Raises:
            DataError: the file is damaged, or the columns have far more bytes than the file.
        """
        names = [name for name in self.columns if name in columns]
        if not names:
            yield from ({} for _ in range(self._starts[-1]))
            return
        for column in self._footer.columns:
            if column.names[0] in names and len(column.names) > _MAX_LEVELS:
                raise self._unreadable(
                    ValueError(f"the column {column.names[0]:.100} is nested; expected values or lists")
                )
        allowed = num_bytes = max(_FEW_TEXT_BYTES, _GROWTH * self.size_bytes)
        try:
            for group in range(len(self._starts) - 1):
                for batch in self._batches(group, names):
                    num_bytes -= sum(map(_size_bytes, batch.columns))
                    if num_bytes < 0:
                        raise ValueError(f"the columns {', '.join(names):.100} have more than {allowed:,} bytes, in a "
                                         f"file of {self.size_bytes:,} bytes")  # fmt: skip
                    yield from batch.to_pylist()
        except self._errors as error:
            raise self._unreadable(error) from error

    def value(self, column: str, row: int) -> Any:
        """Return one value of the column of images, which is meant to be read in the order of its rows.

        The last rows are kept, for threads that read them slightly out of order, but only of the files used last.

        Raises:
            DataError: the file is damaged.
        """
        _recent.use(self)
        with self._lock:
            try:
                return self._read_value(column, row)
            finally:
                if not _recent.keeps(self):  # other threads have used other files meanwhile, and released this one
                    self._forget()

    def _read_value(self, column: str, row: int) -> Any:
        kept = self._kept.get(row)
        if kept is not None:
            return kept[0]
        end, problem = self._ends.get(self._group(row), (row + 1, None))
        if problem is not None and row >= end:
            raise problem
        try:
            if self._ahead is None or not self._is_ahead(row):
                self._next_row, self._ahead = row, self._read_from(column, row)
            while True:
                value = next(self._ahead)
                size_bytes = len(value) if isinstance(value, bytes) else 0
                self._count(column, self._next_row, size_bytes)
                self._kept.put(self._next_row, (value,), size_bytes)
                self._next_row += 1
                if self._next_row > row:
                    return value
        except (*self._errors, StopIteration) as error:
            self._ahead = None
            problem = self._unreadable(error)
            self._ends[self._group(self._next_row)] = self._next_row, problem
            raise problem from error

    def release(self) -> None:
        """Close the file, and forget what was read of it; what is used again is read again."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._file, self._ahead, self._kept = None, None, self._new_cache()

    def _opened(self) -> Any:
        """Return the file of the library, whose footer must still be the one that was checked."""
        opened = self._file
        if opened is None:
            with open_regular(self.path) as file:
                if read_footer(file) != self._footer:
                    raise ValueError("it was changed while it was read")
            opened = self._file = self._open_library()
        return opened

    def _new_cache(self) -> LRUCache[int, tuple[Any]]:
        return LRUCache(_KEPT_ROWS, min(_KEPT_BYTES, max(_FEW_KEPT_BYTES, self.size_bytes)))

    def _count(self, column: str, row: int, size_bytes: int) -> None:
        """Count the bytes of an image, once."""
        if row < self._num_counted:
            return
        self._num_counted = row + 1
        self._image_bytes_left -= size_bytes
        if self._image_bytes_left < 0:
            raise ValueError(f"the images of the column {column:.100} have more than {_GROWTH} times the "
                             f"{self.size_bytes:,} bytes of the file")  # fmt: skip

    def _is_ahead(self, row: int) -> bool:
        """Say whether a row comes later in the row group that is being read."""
        return bool(self._next_row <= row < self._starts[self._group(self._next_row) + 1])

    def _group(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _read_from(self, column: str, row: int) -> Iterator[Any]:
        """Yield the values of a column from a row on; of ``{bytes, path}``, as the library datasets has, the bytes."""
        for group in range(self._group(row), len(self._starts) - 1):
            place = self._starts[group]
            for batch in self._batches(group, [column]):
                values = batch.column(0)
                for number in range(max(0, row - place), len(values)):
                    value = values[number].as_py()
                    yield value.get("bytes") if isinstance(value, dict) else value
                place += len(values)

    def _batches(self, group: int, names: list[str]) -> Iterator[Any]:
        """Yield some columns of a row group, in batches that are small enough, after its pages were checked."""
        if not self._footer.row_groups[group].num_rows:  # it need not have pages
            return iter(())
        paths, largest = [], 1
        for number, column in enumerate(self._footer.columns):
            if column.names[0] in names and column.names[1:] != ("path",):  # that of an image is not used
                paths.append(".".join(column.names))
                largest = max(largest, column.value_bytes, self._check_column(group, number).largest_bytes)
        if not paths:
            raise ValueError(f"the columns {', '.join(names):.100} hold nothing")
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // largest))
        return iter(self._opened().iter_batches(rows, row_groups=[group], columns=paths, use_threads=False))

    def _check_column(self, group: int, number: int) -> Pages:
        if (group, number) in self._checked:
            return self._checked[group, number]
        with open_regular(self.path) as file:
            pages = scan_column(file, self._footer, group, number)
        self._checked[group, number] = pages
        return pages

    def _check_rows(self, counts: list[int]) -> None:
        allowed = _FEW_ROWS + self.size_bytes // _BYTES_PER_ROW
        if min(counts, default=0) < 0 or sum(counts) > allowed:
            raise ValueError(f"it has {sum(counts):,} rows in {self.size_bytes:,} bytes, at most {allowed:,} are "
                             "allowed")  # fmt: skip

    def _unreadable(self, error: Exception) -> DataError:
        problem = first_line(error) or type(error).__name__
        return DataError(f"{self.path} cannot be read as Parquet: {problem:.300}. Expected an undamaged Parquet file.")


class _Recent:
    """The files that were used last: the others are released, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self._files: list[weakref.ref[ParquetFile]] = []
        self._lock = renewed_lock(self)

    def keeps(self, file: ParquetFile) -> bool:
        """Say whether a file is among those that were used last."""
        return any(each() is file for each in self._files)

    def use(self, file: ParquetFile) -> None:
        """Make a file the one used last."""
        if self._files and self._files[-1]() is file:
            return
        with self._lock:
            self._files = [each for each in self._files if each() not in (None, file)] + [weakref.ref(file)]
            released, self._files = self._files[:-_RECENT_FILES], self._files[-_RECENT_FILES:]
        for reference in released:
            if (old := reference()) is not None:
                old.release()


_recent = _Recent()


def _size_bytes(column: Any) -> int:
    """Return the bytes of a column of a batch, with a value that a dictionary repeats as often as it occurs."""
    return int((column.dictionary_decode() if hasattr(column, "dictionary_decode") else column).nbytes)
