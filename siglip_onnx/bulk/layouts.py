"""Store a shard's vectors as ``.npy``, in the layout of clip-retrieval, or as Parquet."""

from __future__ import annotations

import functools
import io
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import JobError, MissingExtraError, first_line
from ..system.extras import extra, install_command
from ..system.files import open_regular
from ..system.npy_files import NPY_ERRORS
from .parquet_pages import read_footer, scan_column
from .records import MAX_SHARD_SIZE, OK, Row

_HEADER_BYTES = 128  # what numpy writes before small arrays
_OLDEST_ARROW = 26
_MAX_VALUE_BYTES = 8  # of a number in Parquet


class Layout:
    """One ``vectors/NNNNNN.npy`` per shard; the base class of the other layouts."""

    names: ClassVar[tuple[str, ...]] = ("vectors/{:06}.npy",)  # of a shard's files, apart from its rows

    def __init__(self, embedding_dim: int, dtype: np.dtype[Any]) -> None:
        """Store vectors of ``embedding_dim`` dimensions as float32 or float16."""
        self.embedding_dim = embedding_dim
        self.dtype = dtype

    def file_names(self, shard: int) -> list[str]:
        """Return the names of a shard's files, apart from its rows."""
        return [name.format(shard) for name in self.names]

    def to_files(self, shard: int, rows: Sequence[Row], vectors: NDArray[Any]) -> dict[str, bytes]:
        """Return a shard's files by name; ``vectors`` has one vector for each row whose status is ``ok``."""
        del rows
        return {self.file_names(shard)[0]: _to_npy(vectors.astype(self.dtype, copy=False))}

    def read(self, folder: Path, shard: int) -> NDArray[Any]:
        """Return a shard's vectors, memory-mapped.

        Raises:
            JobError: the file is missing, damaged, or of another shape.
        """
        path = folder / self.file_names(shard)[0]
        try:
            return self._check(path, _map_npy(path))
        except NPY_ERRORS as error:
            raise _unreadable(path, first_line(error) or type(error).__name__) from error

    def _check(self, path: Path, vectors: NDArray[Any]) -> NDArray[Any]:
        if vectors.dtype != self.dtype or vectors.shape[1:] != (self.embedding_dim,):
            raise _unreadable(path, f"{vectors.dtype} of shape {vectors.shape}")
        return vectors


class _ArrowLayout(Layout):
    """A layout with Parquet files; needs the extra [parquet]."""

    def __init__(self, embedding_dim: int, dtype: np.dtype[Any]) -> None:
        super().__init__(embedding_dim, dtype)
        with extra("parquet", "A Parquet file"):
            import pyarrow.parquet  # noqa: PLC0415 - an optional package
        self._arrow: Any = pyarrow

    def _to_parquet(self, table: Any) -> bytes:
        buffer = io.BytesIO()
        # Embeddings do not compress, and dictionaries would only make the file larger.
        self._arrow.parquet.write_table(table, buffer, compression="zstd", use_dictionary=False)
        return buffer.getvalue()


class ClipRetrievalLayout(_ArrowLayout):
    """Two files per shard with one row per readable image: what clip-retrieval writes and autofaiss reads."""

    names = ("img_emb/img_emb_{:06}.npy", "metadata/metadata_{:06}.parquet")

    def to_files(self, shard: int, rows: Sequence[Row], vectors: NDArray[Any]) -> dict[str, bytes]:
        """Return both files; images without a vector are in neither."""
        arrow = self._arrow
        readable = [row for row in rows if row.status == OK]
        columns = {
            "image_path": arrow.array([_as_text(row.path) for row in readable], arrow.string()),
            "width": arrow.array([row.width for row in readable], arrow.int32()),
            "height": arrow.array([row.height for row in readable], arrow.int32()),
            "sha256": arrow.array([row.sha256 for row in readable], arrow.string()),
        }
        _, metadata = self.file_names(shard)
        return super().to_files(shard, rows, vectors) | {metadata: self._to_parquet(arrow.table(columns))}


class ParquetLayout(_ArrowLayout):
    """One Parquet file per shard with every row; ``embedding`` is a fixed-size list, null where there is no vector."""

    names = ("parquet/{:06}.parquet",)

    def __init__(self, embedding_dim: int, dtype: np.dtype[Any]) -> None:
        super().__init__(embedding_dim, dtype)
        version: str = self._arrow.__version__
        if int(version.partition(".")[0]) < _OLDEST_ARROW:
            raise MissingExtraError(
                f"A layout with every row needs pyarrow {_OLDEST_ARROW} or later, which stores lists of fixed size "
                f"that are null; {version} is installed. Run: {install_command('parquet')}"
            )

    def to_files(self, shard: int, rows: Sequence[Row], vectors: NDArray[Any]) -> dict[str, bytes]:
        """Return the one file."""
        arrow = self._arrow
        lines = [asdict(row) | {"path": _as_text(row.path), "message": _as_text(row.message)} for row in rows]
        table = arrow.Table.from_pylist(lines, schema=_row_schema(arrow))
        filled = np.zeros((len(rows), self.embedding_dim), self.dtype)
        missing = np.array([row.row is None for row in rows], bool)
        filled[~missing] = vectors
        embedding = arrow.FixedSizeListArray.from_arrays(
            arrow.array(filled.reshape(-1)), self.embedding_dim, mask=arrow.array(missing)
        )
        return {self.file_names(shard)[0]: self._to_parquet(table.append_column("embedding", embedding))}

    def read(self, folder: Path, shard: int) -> NDArray[Any]:
        """Return a shard's vectors, decoded; see :class:`Layout`."""
        path = folder / self.file_names(shard)[0]
        try:
            with open_regular(path) as file:
                table = self._read_vectors(path, file)
            column = table["embedding"].combine_chunks().drop_null()
            values = column.flatten().to_numpy(zero_copy_only=False)
            values = values.reshape(len(column), -1) if len(column) else np.empty((0, self.embedding_dim), self.dtype)
        except (*NPY_ERRORS, LookupError, AttributeError, NotImplementedError, self._arrow.ArrowException) as error:
            raise _unreadable(path, first_line(error)) from error
        return self._check(path, values)

    def _read_vectors(self, path: Path, file: BufferedReader) -> Any:
        """Return the table of vectors, after its pages were checked: the folder may come from elsewhere."""
        footer = read_footer(file)
        columns = [number for number, column in enumerate(footer.columns) if column.names[0] == "embedding"]
        value_bytes = max((footer.columns[number].value_bytes for number in columns), default=0)
        if value_bytes > _MAX_VALUE_BYTES:
            raise ValueError(f"it has values of {value_bytes:,} bytes, expected numbers")
        num_values = sum(
            scan_column(file, footer, group, number).num_values
            for group in range(len(footer.row_groups))
            for number in columns
        )
        if num_values > MAX_SHARD_SIZE * self.embedding_dim:
            raise ValueError(f"it has {num_values:,} values, more than {MAX_SHARD_SIZE:,} vectors have")
        # Mapped by pyarrow: a thread of it that releases memory of Python while the interpreter ends aborts it.
        with self._arrow.memory_map(os.fsencode(path)) as mapped:
            return self._arrow.parquet.read_table(mapped, columns=["embedding"])


LAYOUTS: dict[str, type[Layout]] = {"npy": Layout, "clip-retrieval": ClipRetrievalLayout, "parquet": ParquetLayout}


def _map_npy(path: Path) -> NDArray[Any]:
    """Map a two-dimensional ``.npy`` file; ``np.load`` takes longer than scoring the vectors of a shard."""
    with open_regular(path) as file:
        header = file.read(_HEADER_BYTES)
        shape, dtype = _read_header(header)
        if 0 in shape:
            return np.empty(shape, dtype)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = shape[0] * shape[1]
    return np.frombuffer(mapped, dtype, count, offset=_HEADER_BYTES).reshape(shape)


@functools.lru_cache(64)  # full shards have the same header
def _read_header(header: bytes) -> tuple[tuple[int, int], np.dtype[Any]]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of the .npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    is_shard = len(shape) == 2 and 0 <= shape[0] <= MAX_SHARD_SIZE
    if fortran_order or not is_shard or file.tell() != _HEADER_BYTES or dtype.hasobject:
        raise ValueError(f"shape {shape!s:.100} of {dtype}, expected at most {MAX_SHARD_SIZE:,} rows of a shard")
    return (shape[0], shape[1]), dtype


def _to_npy(vectors: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return buffer.getvalue()


def _row_schema(arrow: Any) -> Any:
    text, large, small = arrow.string(), arrow.int64(), arrow.int32()
    kinds = {
        "path": text, "size_bytes": large, "mtime_ns": large, "status": text, "row": small, "width": small,
        "height": small, "sha256": text, "truncated": arrow.bool_(), "message": text,
    }  # fmt: skip
    return arrow.schema(list(kinds.items()))


def _as_text(name: str) -> str:
    """Return a name as valid Unicode with invalid bytes escaped; the JSON lines keep the original bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unreadable(path: Path, problem: object) -> JobError:
    return JobError(f"{path} cannot be read: {problem}. Run the embed command again; it rewrites damaged shards.")
