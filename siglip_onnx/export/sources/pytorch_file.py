"""Weight files of ``torch.save``, read without PyTorch: their pickle is interpreted, and nothing in it is executed.

The interpreter knows only the operations and the few names of which such a file consists; see
``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch 2.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import CheckpointError
from ...system.sizes import MAX_DIMENSIONS
from .archive import Archive
from .tensor import DTYPES, Tensor, Tensors

_MAX_PICKLE_BYTES = 50_000_000
_MAX_OPERATIONS = 1_000_000  # of the pickle: about 20 for a tensor
_MAX_INT = 2**63 - 1
_MAX_NAME = 200  # characters of a type's or a storage's name; others may be long, since they are not joined
_MAX_SHARING = 4  # bytes of the tensors by bytes of their storages; tied weights are in the file once
_STORAGES = {
    "torch.FloatStorage": ("F32", 4), "torch.HalfStorage": ("F16", 2), "torch.BFloat16Storage": ("BF16", 2),
    "torch.DoubleStorage": ("F64", 8), "torch.LongStorage": ("I64", 8), "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2), "torch.CharStorage": ("I8", 1), "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}  # fmt: skip
_ITEMSIZES = dict(_STORAGES.values())
_DICT, _TENSOR, _PARAMETER = (
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_OPTIMIZER = "optim"  # in the names of what keeps tensors of its own for each weight
_NESTED, _MAX_NESTING = ("state_dict", "model_state_dict", "model"), 3


@dataclass(frozen=True)
class _Name:
    """A name that the pickle refers to; it is never imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    member: str
    numel: int


class _Mark:
    """The start of a group of items on the stack."""


def open_pytorch(path: Path) -> Tensors:
    """Return the tensors of a file of ``torch.save``, which may wrap them as ``state_dict`` or ``model``.

    Raises:
        CheckpointError: the file is damaged, older than PyTorch 1.6, or holds more than tensors and plain values.
    """
    archive = Archive(path)
    pickles = [name for name in archive.members if name == "data.pkl" or name.endswith("/data.pkl")]
    try:
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl, expected one")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive and archive.read(order).tobytes() != b"little":
            raise ValueError("its bytes are not in little-endian order")
        if archive.size(pickles[0]) > _MAX_PICKLE_BYTES:
            raise ValueError("its data.pkl is too large")
        document = _Interpreter(archive, root).run(archive.read(pickles[0]).tobytes())
        return _find_tensors(document, archive)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is not a plain weight file of PyTorch: {error}. Nothing in it was executed. Save the weights "
            "alone, with torch.save(model.state_dict(), ...) or as safetensors."
        ) from error


def _find_tensors(document: Any, archive: Archive) -> Tensors:
    for _depth in range(_MAX_NESTING):
        if not isinstance(document, dict):
            raise ValueError("it does not hold a dictionary")
        wrapped = [name for name in _NESTED if isinstance(document.get(name), dict)]
        if not wrapped:
            break
        model = document[wrapped[0]]
        own = _places(model)
        for name, item in document.items():
            other = {} if item is model or _OPTIMIZER in str(name) else _places(item)
            if own and len(other) >= len(own) and other != own:
                raise ValueError(f"it holds two models, {wrapped[0]!r} and {name!r:.60}")
        document = model
    tensors = {name: item for name, item in document.items() if isinstance(name, str) and isinstance(item, Tensor)}
    _check_sharing(tensors.values(), archive)
    return Tensors((name, Tensor(name, item.dtype, item.shape, item.read)) for name, item in tensors.items())


def _places(item: Any) -> dict[object, tuple[str, tuple[int, ...]]]:
    """Return storages and shapes of the tensors in a dictionary, or in the one that it wraps; none of anything else."""
    for _depth in range(_MAX_NESTING):
        if not isinstance(item, dict):
            return {}
        item = next((item[name] for name in _NESTED if isinstance(item.get(name), dict)), item)
    return {name: (value.name, value.shape) for name, value in item.items() if isinstance(value, Tensor)}


def _check_sharing(tensors: Collection[Tensor], archive: Archive) -> None:
    """Check that tensors, each named by its storage, together are not much larger than these storages.

    Raises:
        ValueError: they are, so that a small file would take much memory.
    """
    size_bytes = sum(math.prod(tensor.shape) * _ITEMSIZES[tensor.dtype] for tensor in tensors)
    stored_bytes = sum(archive.size(member) for member in {tensor.name for tensor in tensors})
    if size_bytes > _MAX_SHARING * stored_bytes:
        raise ValueError(f"its tensors of {size_bytes:,} bytes share storages of {stored_bytes:,} bytes")


def _type_name(*parts: object) -> _Name:
    """Return the name of a type; a pickle may join a long text with itself again and again."""
    module, name = parts
    if any(type(part) is not str or len(part) > _MAX_NAME for part in parts):
        raise ValueError("it has a type with a very long name, or none")
    return _Name(f"{module}.{name}")


class _Interpreter:
    """A stack machine for the subset of pickle that describes dictionaries of tensors."""

    def __init__(self, archive: Archive, root: str) -> None:
        self._archive, self._root = archive, root
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._operations: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _arg: None,
            "FRAME": lambda _arg: None,
            "MARK": lambda _arg: self._stack.append(_Mark()),
            "EMPTY_DICT": lambda _arg: self._stack.append({}),
            "EMPTY_LIST": lambda _arg: self._stack.append([]),
            "EMPTY_TUPLE": lambda _arg: self._stack.append(()),
            "TUPLE": lambda _arg: self._stack.append(tuple(self._pop_group())),
            "TUPLE1": lambda _arg: self._stack.append(tuple(self._pop_last(1))),
            "TUPLE2": lambda _arg: self._stack.append(tuple(self._pop_last(2))),
            "TUPLE3": lambda _arg: self._stack.append(tuple(self._pop_last(3))),
            "APPEND": lambda _arg: self._extend(self._pop_last(1)),
            "APPENDS": lambda _arg: self._extend(self._pop_group()),
            "SETITEM": lambda _arg: self._set_items(self._pop_last(2)),
            "SETITEMS": lambda _arg: self._set_items(self._pop_group()),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _arg: self._put(len(self._memo)),
            "BINGET": lambda arg: self._stack.append(self._memo[arg]),
            "LONG_BINGET": lambda arg: self._stack.append(self._memo[arg]),
            "GLOBAL": lambda arg: self._stack.append(_type_name(*arg.split(" ", 1))),
            "STACK_GLOBAL": lambda _arg: self._stack.append(_type_name(*self._pop_last(2))),
            "REDUCE": lambda _arg: self._stack.append(self._reduce(*self._pop_last(2))),
            "BUILD": lambda _arg: self._build(),
            "BINPERSID": lambda _arg: self._stack.append(self._storage(*self._stack.pop())),
        }

    def run(self, content: bytes) -> Any:
        """Return the object that the pickle describes."""
        for number, (opcode, argument, _position) in enumerate(pickletools.genops(content)):
            if number >= _MAX_OPERATIONS:
                raise ValueError(f"its pickle has more than {_MAX_OPERATIONS:,} operations")
            if opcode.name == "STOP":
                (document,) = self._stack
                return document
            if opcode.name in _VALUES:
                if type(argument) is int and abs(argument) > _MAX_INT:
                    raise ValueError("it has a whole number of more than 64 bits")
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in self._operations:
                self._operations[opcode.name](argument)
            else:
                raise ValueError(f"it uses the pickle operation {opcode.name}")
        raise ValueError("it is truncated")

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _pop_last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("it is damaged")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _pop_group(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("it appends to something other than a list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        keys = items[::2]
        if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in keys):
            raise ValueError("it has a dictionary whose keys are neither texts nor whole numbers")
        target.update(zip(keys, items[1::2], strict=True))

    def _reduce(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Name) else type(function).__name__
        if name == _DICT and arguments == ():
            return {}
        if name == _TENSOR:
            return self._tensor(*arguments[:4])
        if name == _PARAMETER and isinstance(arguments[0], Tensor):
            return arguments[0]
        raise ValueError(f"it refers to {name}, which is not a part of tensors")

    def _build(self) -> None:
        """Ignore the attributes of a dictionary, which PyTorch uses for versions of modules."""
        target, _state = self._pop_last(2)
        if type(target) is not dict:
            raise ValueError("it sets attributes of something other than a dictionary")
        self._stack.append(target)

    def _storage(self, kind: Any, storage: Any, key: Any, _device: Any, numel: Any) -> _Storage:
        if kind != "storage" or not isinstance(storage, _Name) or type(key) is not str or len(key) > _MAX_NAME:
            raise ValueError("it has a storage without a type or name")
        if storage.name not in _STORAGES:
            raise ValueError(f"it has a storage of the unknown type {storage.name}")
        dtype, itemsize = _STORAGES[storage.name]
        member = f"{self._root}data/{key}"
        if member not in self._archive or type(numel) is not int or self._archive.size(member) != numel * itemsize:
            raise ValueError(f"its member {member} is missing or has another size than its {numel} elements")
        return _Storage(dtype, member, numel)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("it has a tensor that is not described by a storage, sizes and strides")
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"it has a tensor of {len(shape):,} dimensions, expected at most {MAX_DIMENSIONS}")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.numel:
            raise ValueError("it has a tensor that reaches beyond its storage")
        if math.prod(shape) > storage.numel:
            raise ValueError(f"it has a tensor of shape {shape!r:.80}, whose storage holds only {storage.numel:,}")

        def read() -> NDArray[Any]:
            array = self._archive.read(storage.member).view(np.dtype(DTYPES[storage.dtype]))[offset:]
            return np.lib.stride_tricks.as_strided(
                array, shape, [stride * array.itemsize for stride in strides], writeable=False
            )

        return Tensor(storage.member, storage.dtype, tuple(shape), read)
