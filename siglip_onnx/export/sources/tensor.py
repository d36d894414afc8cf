"""Tensors of a checkpoint's files, described by shape and type, and read when they are used."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16, in which some checkpoints are saved, with numpy
import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # of weights, as in safetensors


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read on demand; the methods return tensors that change it when they are read.

    ``name`` is that in its file, for error messages; ``dtype`` is named as in safetensors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    def reshape(self, *shape: int) -> Tensor:
        """Give other dimensions, of which one may be -1; the elements keep their order."""
        known = math.prod(size for size in shape if size != -1)
        total = math.prod(self.shape)
        if -1 in shape and known and total % known == 0:
            shape = tuple(total // known if size == -1 else size for size in shape)
        if -1 in shape or math.prod(shape) != total:
            raise self._error(f"which cannot become {shape}")
        return self.change(shape, lambda array: array.reshape(shape))

    def transpose(self, *axes: int) -> Tensor:
        """Reorder the dimensions, by default reverse the two."""
        order = axes or (1, 0)
        if len(self.shape) != len(order):
            raise self._error(f"expected {len(order)} dimensions")
        return self.change(tuple(self.shape[axis] for axis in order), lambda array: array.transpose(order))

    def check_dimensions(self, *numbers: int) -> Tensor:
        """Return the tensor if it has one of these numbers of dimensions."""
        if len(self.shape) not in numbers:
            raise self._error(f"expected {' or '.join(map(str, numbers))} dimensions")
        return self

    def part(self, number: int, parts: int) -> Tensor:
        """Return one of ``parts`` equal parts of the rows."""
        if not self.shape or self.shape[0] % parts:
            raise self._error(f"expected a multiple of {parts} rows")
        rows = self.shape[0] // parts
        shape = (rows, *self.shape[1:])
        return self.change(shape, lambda array: array[number * rows : (number + 1) * rows])

    def row(self, number: int) -> Tensor:
        """Return one entry of the first dimension, which it drops."""
        if not self.shape or not 0 <= number < self.shape[0]:
            raise self._error(f"expected more than {number} rows")
        return self.change(self.shape[1:], lambda array: array[number])

    def change(self, shape: tuple[int, ...], change: Callable[[NDArray[Any]], NDArray[Any]]) -> Tensor:
        """Return the tensor with ``change`` applied, which gives ``shape``."""
        return Tensor(self.name, self.dtype, shape, lambda: change(self.read()))

    def equals(self, other: Tensor) -> bool:
        """Say whether another tensor has the same values, which are read."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return np.array_equal(self.read(), other.read())

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"Weight {self.name!r} has shape {self.shape}, {problem}. Download the checkpoint again."
        )


class Tensors(dict[str, Tensor]):
    """Tensors by name; a missing one is a CheckpointError. Names that were looked up are remembered."""

    def __init__(self, *tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        super().__init__(*tensors)
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self._used.add(name)
        return super().__getitem__(name)

    def check_all_used(self, path: Path, ignored: tuple[str, ...] = ()) -> None:
        """Check that the model has no weights besides those that were looked up: they would change the embeddings.

        Args:
            path: the file that the error names.
            ignored: ends of names that may be left over.

        Raises:
            CheckpointError: it has one.
        """
        unused = [name for name in self.unused() if not name.endswith(ignored)]
        if unused:
            raise CheckpointError(
                f"{path} has {len(unused)} weights that a SigLIP does not have, the first is {unused[0]!r}. They may "
                "change the embeddings; export the checkpoint in the layout of transformers."
            )

    def unused(self) -> list[str]:
        """Return the names that were not looked up."""
        return sorted(self.keys() - self._used)

    def __missing__(self, name: str) -> Tensor:
        raise CheckpointError(f"The checkpoint lacks the weight {name!r}. Download it again.")

    def without_prefix(self, *anchors: str) -> Tensors:
        """Remove what precedes the first of ``anchors`` that a name contains, such as ``module.``, from all names.

        Raises:
            CheckpointError: two weights would have the same name.
        """
        for anchor in anchors:
            for name in self:
                prefix, found, _ = name.partition(anchor)
                if found and (not prefix or prefix.endswith(".")):
                    renamed = Tensors({key.removeprefix(prefix): tensor for key, tensor in self.items()})
                    if len(renamed) < len(self):
                        raise _several([key for key in self if key.removeprefix(prefix) in self])
                    return renamed
        return self

    def below(self, start: str, new: str, parts: tuple[str, ...] = ("",)) -> Tensors:
        """Return only the tensors whose names begin with ``start`` and one of ``parts``; ``new`` replaces ``start``."""
        starts = tuple(start + part for part in parts)
        return Tensors({new + name.removeprefix(start): self[name] for name in self if name.startswith(starts)})

    def find(self, end: str) -> str | None:
        """Return the only name that is ``end`` or ends with it behind a dot, or None.

        A module that was registered twice, so that all its tensors have two names, counts once.

        Raises:
            CheckpointError: there are several, as in a file that holds two models.
        """
        names = sorted(name for name in self if f".{name}".endswith(f".{end}"))
        start = names[0].removesuffix(end) if names else ""
        if others := [name for name in names[1:] if not self._is_copy(name.removesuffix(end), start)]:
            raise _several([names[0], *others])
        return names[0] if names else None

    def _is_copy(self, start: str, other: str) -> bool:
        """Say whether the tensors below one name are those below another, and are not needed then."""
        names = {name.removeprefix(start): name for name in self if name.startswith(start)}
        others = {name.removeprefix(other): name for name in self if name.startswith(other)}
        read = super().__getitem__
        if names.keys() != others.keys() or not all(read(names[end]).equals(read(others[end])) for end in names):
            return False
        self._used |= set(names.values())
        return True


def _several(names: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint has {' and '.join(map(repr, names[:4]))}; expected one model. If it holds several, such as a "
        "teacher and a student, or a copy with averaged weights (EMA), save the one to export alone."
    )


def release_pages(array: NDArray[Any]) -> None:
    """Let the operating system take back the memory of a mapped file; pages are read again when they are used."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):  # Windows has no such call
        base.madvise(mmap.MADV_DONTNEED)


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors below each other."""
    first = tensors[0]
    if any(tensor.shape[1:] != first.shape[1:] or not tensor.shape for tensor in tensors):
        shapes = ", ".join(f"{tensor.name!r} {tensor.shape}" for tensor in tensors)
        raise CheckpointError(f"These weights must have the same width: {shapes}. Download the checkpoint again.")
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    return first.change(shape, lambda _rows: np.concatenate([tensor.read() for tensor in tensors]))


def identity_layer(layer: str, dim: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a linear layer that changes nothing, for towers without a projection."""
    yield f"{layer}.weight", Tensor(layer, "F32", (dim, dim), lambda: np.eye(dim, dtype=np.float32))
    yield f"{layer}.bias", zeros(layer, dim)


def zeros(name: str, dim: int) -> Tensor:
    """Return a bias that a layer does not have."""
    return Tensor(name, "F32", (dim,), lambda: np.zeros(dim, np.float32))
