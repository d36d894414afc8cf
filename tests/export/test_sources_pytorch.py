"""Weight files of torch.save: read without PyTorch, mapped, and without executing anything."""

from __future__ import annotations

import collections
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import load_file
from support.layouts import assert_embeddings_of, write_json

from siglip_onnx.errors import CheckpointError
from siglip_onnx.export.checkpoint import open_checkpoint
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.export.sources.pytorch_file import open_pytorch

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(small_checkpoint: Path) -> Weights:
    return dict(load_file(small_checkpoint / "model.safetensors"))


@pytest.fixture
def folder(small_checkpoint: Path, tmp_path: Path) -> Path:
    """``small_checkpoint`` without its weights."""
    copy = Path(shutil.copytree(small_checkpoint, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    return copy


def test_pytorch_model_bin(folder: Path, small_checkpoint: Path, weights: Weights, tmp_path: Path,
                           image: Image.Image) -> None:  # fmt: skip
    ids = {"vision_model.embeddings.position_ids": torch.arange(16)[None]}
    torch.save(collections.OrderedDict(weights | ids), folder / "pytorch_model.bin")
    export_bundle(folder, tmp_path / "out", precisions=["fp32"])
    assert_embeddings_of(small_checkpoint, tmp_path / "out", image)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("epoch_3.pt", lambda w: {"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in w.items()},
                                  "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": (0.1, None, True)}}),
        ("last.pth", lambda w: {"model": {f"model.{k}": torch.nn.Parameter(v) for k, v in w.items()}}),
    ],
)  # fmt: skip
def test_wrapped_weights(folder: Path, weights: Weights, name: str, wrap: Callable[[Weights], Any]) -> None:
    torch.save(wrap(weights), folder / name)
    torch.save({}, folder / "optimizer.pt")
    with open_checkpoint(folder) as checkpoint:
        for key, tensor in weights.items():
            assert_array_equal(checkpoint.weights[key], tensor.numpy())


@pytest.mark.parametrize("name", ["ema", "state_dict_ema"])
def test_two_models_are_refused(folder: Path, weights: Weights, name: str) -> None:
    average = {key: tensor * 0.5 for key, tensor in weights.items()}
    for other in (average, {"state_dict": average}):
        torch.save({"model": dict(weights), name: other, "epoch": 3}, folder / "last.pt")
        with pytest.raises(CheckpointError, match=f"it holds two models, 'model' and '{name}'.*Save the weights alone"):
            open_checkpoint(folder)
    optimizer = {f"exp_avg_{key}": tensor for key, tensor in average.items()}
    for others in ({"state_dict": weights, name: None}, {name: dict(weights)}, {"optimizer": optimizer}):
        torch.save({"model": weights} | others, folder / "last.pt")
        open_checkpoint(folder).opened.close()


def test_kinds_of_tensors(tmp_path: Path) -> None:
    """Views, transposed tensors, shared storages and all types of weights."""
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {"view": matrix[1:, 1:3], "transposed": matrix.T, "scalar": torch.tensor(2.0), "empty": torch.empty(0, 3)}
    tensors |= {str(dtype): matrix.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)}
    torch.save(tensors, tmp_path / "w.pt")
    opened = open_pytorch(tmp_path / "w.pt")
    for name, tensor in tensors.items():
        assert opened[name].shape == tuple(tensor.shape)
        assert_array_equal(opened[name].read().astype("f8"), tensor.double().numpy(), err_msg=name)


def test_shards(folder: Path, weights: Weights) -> None:
    halves = [dict(list(weights.items())[:20]), dict(list(weights.items())[20:])]
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, folder / name)
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": index})
    with open_checkpoint(folder) as checkpoint:
        assert len(checkpoint.weight_files) == 2
        for key, tensor in weights.items():
            assert_array_equal(checkpoint.weights[key], tensor.numpy())


def test_pytorch_is_not_needed(tmp_path: Path, weights: Weights) -> None:
    torch.save(weights, tmp_path / "w.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from siglip_onnx.export.sources.pytorch_file import open_pytorch\n"
        f"print(sum(t.read().size for t in open_pytorch(Path({str(tmp_path / 'w.pt')!r})).values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == sum(tensor.numel() for tensor in weights.values())


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def pickled(content: bytes) -> bytes:
    """Return an archive as torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(64))
    return buffer.getvalue()


def storage(numel: int = 16, kind: bytes = b"torch\nFloatStorage", key: bytes = b"0") -> bytes:
    return (
        b"(X\x07\x00\x00\x00storagec" + kind + b"\nX" + len(key).to_bytes(4, "little") + key
        + b"X\x03\x00\x00\x00cpuJ" + numel.to_bytes(4, "little", signed=True) + b"tQ"
    )  # fmt: skip


def tensor(storage: bytes, offset: int = 0, size: int = 16, stride: int = 1) -> bytes:
    numbers = [number.to_bytes(4, "little", signed=True) for number in (offset, size, stride)]
    arguments = storage + b"J" + numbers[0] + b"J" + numbers[1] + b"\x85J" + numbers[2] + b"\x85\x89}"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def many_dimensions(count: int) -> bytes:
    """Return a tensor whose sizes have a product that takes minutes to compute, and whose strides are 0."""
    sizes = b"(\x8a\x08" + b"\xff" * 7 + b"\x7fq\x01" + b"h\x01" * (count - 1) + b"t"
    strides = b"(K\x00q\x02" + b"h\x02" * (count - 1) + b"t"
    arguments = storage() + b"K\x00" + sizes + strides + b"\x89}"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def nested_key() -> bytes:
    """Return a dictionary whose key takes 2^60 steps to hash."""
    return b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.", "it refers to os.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "it refers to builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "it refers to os.system"),
        (b"\x80\x02X\xff\0\0\0" + b"a" * 255 + b"q\0" + b"h\0h\0\x93" * 9 + b".", "a type with a very long name"),
        (b"\x80\x04NN\x93.", "a type with a very long name, or none"),
        (tensor(storage(key=b"0" * 201)), "a storage without a type or name"),
        (b"(S'x'\nios\nsystem\n.", "pickle operation STRING"),
        (b"\x80\x02(Nios\nsystem\n.", "pickle operation INST"),
        (b"\x80\x02cos\nsystem\n)\x81.", "pickle operation NEWOBJ"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}\x85R.", "it refers to torch._utils._rebuild_parameter"),
        (b"\x80\x02]N}b.", "it sets attributes"),
        (b"\x80\x02]}b.", "it sets attributes of something other than a dictionary"),
        (b"\x80\x02].", "does not hold a dictionary"),
        (b"\x80\x02}", ""),
        (b"", ""),
        (b"\x80\x02h\x07.", "7"),
        (b"\x80\x020.", "pickle operation POP"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "does not hold a dictionary"),
        (b"\x80\x02" + b"}" * 1_000_001, "its pickle has more than 1,000,000 operations"),
        (nested_key(), "neither texts nor whole numbers"),
        (tensor(storage(kind=b"torch\nQUInt8Storage")), "unknown type torch.QUInt8Storage"),
        (tensor(storage(numel=2**31 - 1)), "has another size than its 2147483647 elements"),
        (tensor(storage(key=b"../../etc/passwd")), "is missing or has another size"),
        (tensor(storage(), size=17), "reaches beyond its storage"),
        (tensor(storage(), offset=1), "reaches beyond its storage"),
        (tensor(storage(), offset=-4, size=1), "not described by a storage"),
        (tensor(storage(), stride=-1), "not described by a storage"),
        (tensor(b"N"), "not described by a storage"),
        (many_dimensions(20_000), "it has a tensor of 20,000 dimensions, expected at most 64"),
        (b"\x80\x02\x8a\x09" + bytes(8) + b"\x01.", "it has a whole number of more than 64 bits"),
    ],
)
def test_hostile_pickles_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.pt").write_bytes(pickled(content))
    with pytest.raises(
        CheckpointError, match=r"is not a plain weight file of PyTorch: .*Nothing in it was executed"
    ) as e:
        open_pytorch(tmp_path / "w.pt")
    assert reason in str(e.value)


def test_a_dictionary_inside_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickled(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."))
    assert open_pytorch(tmp_path / "w.pt") == {}


def test_expanded_and_tied_tensors_are_read(tmp_path: Path) -> None:
    """Strides of 0 are in real files where a dimension has one element; tied weights share a storage."""
    row, tied = torch.arange(6.0)[None], torch.ones(4, 3)
    tensors = {"row": row.expand(1, -1), "one": torch.ones(1).expand(1, 1, 1), "empty": torch.ones(1).expand(0, 5)}
    tensors |= {"input": tied, "output": tied, "transposed": tied.T}
    torch.save(tensors, tmp_path / "w.pt")
    opened = open_pytorch(tmp_path / "w.pt")
    assert {name: opened[name].read().tolist() for name in opened} == {k: t.tolist() for k, t in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"w": torch.ones(1).expand(50_000_000, 128)}, r"shape \(50000000, 128\), whose storage holds only 1[.]"),
        ({"w": torch.ones(100).expand(2, 100)}, r"shape \(2, 100\), whose storage holds only 100[.]"),
        ({"w": torch.ones(100).as_strided((30, 4), (3, 1))}, r"shape \(30, 4\), whose storage holds only 100[.]"),
        (dict.fromkeys("abcde", torch.ones(100)), "tensors of 2,000 bytes share storages of 400 bytes"),
    ],
)
def test_tensors_that_are_larger_than_the_file_are_refused(tmp_path: Path, tensors: Weights, problem: str) -> None:
    torch.save({"state_dict": tensors}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=problem):
        open_pytorch(tmp_path / "w.pt")


def test_nothing_is_executed_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    torch.save({"vision_model.x": Attack(tmp_path / "attacked")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"it refers to posix\.system"):
        export_bundle(folder, tmp_path / "out")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Attack(tmp_path / "attacked")}))
    with pytest.raises(CheckpointError, match="is not an archive of weights"):
        export_bundle(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_old_and_damaged_files_are_refused(folder: Path, weights: Weights, tmp_path: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is not an archive of weights"):
        export_bundle(folder, tmp_path / "out")
    torch.save(weights, file)
    content = file.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is not an archive of weights"):
            export_bundle(folder, tmp_path / "out")
    torch.save({name: tensor.to(torch.int8) for name, tensor in weights.items()}, file)
    with pytest.raises(CheckpointError, match="is of type I8, expected one of F32"):
        export_bundle(folder, tmp_path / "out")
    torch.save({name: tensor for name, tensor in weights.items() if "probe" not in name}, file)
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ weights"):
        export_bundle(folder, tmp_path / "out")
    for name in ("a.pt", "b.pth"):
        torch.save(weights, folder / name)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"has 2 weight files, a\.pt, b\.pth"):
        export_bundle(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
