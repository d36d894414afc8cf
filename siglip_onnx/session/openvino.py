"""Run graphs with OpenVINO on the CPU: the only module that imports openvino, and only where it is requested.

Source: OpenVINO 2026.4. Its results are those of onnxruntime, fp32 in fp32, because ``INFERENCE_PRECISION_HINT`` is
``f32`` by default: OpenVINO's own default is bf16 or fp16 where the CPU has that.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, ProviderError
from ..system.extras import extra
from ..system.files import open_regular
from ..system.fork import OneProcess
from ..system.protobuf import read_values
from ..system.telemetry import OPENVINO_TOOLS, without_openvino_tools

with extra("openvino", "The provider OpenVINO"), without_openvino_tools():
    import openvino
    from openvino import frontend, opset13

DEVICE = "CPU"
_user = OneProcess()
_MEMORY_ADDRESS = b"_ORT_MEM_ADDR_"  # the file name of weights that are read from an address in this process's memory
_DEQUANTIZE = b"DequantizeLinear"
_EXACT = {"LP_TRANSFORMS_MODE": "NO"}  # dequantizes int8 and computes in f32
_METADATA = 14  # of ModelProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto


class OpenVinoSession:
    """A compiled graph, for any number of threads; it has as many infer requests as runs at the same time."""

    def __init__(
        self, path: Path, threads: int, workers: int, settings: Mapping[str, str], *, exact_int8: bool | None
    ) -> None:
        """Compile a graph.

        Args:
            path: the graph; its weights are beside it.
            threads: those of one run.
            workers: the number of runs at the same time that have threads of their own.
            settings: properties of OpenVINO's CPU device, which replace those that are chosen here.
            exact_int8: whether to compute the int8 products of qdq in f32; None where the CPU's int8 saturates.

        Raises:
            BundleError: the graph cannot be loaded, or its weights lie outside its folder.
            ProviderError: OpenVINO does not know one of the settings, or refuses its value; or it was used in the
                parent of this process before the fork.
        """
        _check_process()
        self._idle: list[Any] = []
        try:
            self._metadata, is_static_int8 = _inspect(path)
            # The other frontends, which openvino would try too, read formats that no model here has.
            reader = frontend.FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(str(path)))
        except Exception as error:  # openvino's exceptions share no other root
            raise _cannot_load(path, error) from error
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(threads * workers),
            "NUM_STREAMS": str(workers),
            "ENABLE_CPU_PINNING": "NO",  # processes side by side would all be pinned to the same CPUs
        }
        if is_static_int8 and (int8_saturates() if exact_int8 is None else exact_int8):
            properties |= _EXACT
        try:
            self._compiled = _core().compile_model(model, DEVICE, properties | dict(settings))
        except Exception as error:
            if not settings:
                raise _cannot_load(path, error) from error
            raise ProviderError(
                f"OpenVINO {version()} cannot run {path} with {dict(settings)}: {_reason(error)} Expected properties "
                'of its CPU device, such as {"INFERENCE_PRECISION_HINT": "bf16"}.'
            ) from error

    def metadata(self) -> dict[str, str]:
        """Return the graph's own metadata entries."""
        return dict(self._metadata)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs of these names.

        Raises:
            RuntimeError: OpenVINO fails.
            KeyError: there is no such output.
        """
        try:
            request = self._idle.pop()
        except IndexError:  # all are in use
            request = self._compiled.create_infer_request()
        results = request.infer(dict(inputs))
        values = [np.array(results[name]) for name in outputs]
        self._idle.append(request)
        return values


@cache
def _core() -> Any:
    """Return the one runtime of this process.

    Each sets up a stack for signals in its thread, and takes it down at its end. Two that end in the order of their
    start would leave the freed stack of the first one in use, on which the next Ctrl-C crashes.
    """
    return openvino.Core()


@cache
def int8_saturates() -> bool:
    """Measure whether OpenVINO's products of int8 are wrong on this CPU, as those of x86 without VNNI are."""
    rows, depth = 4, 64
    x = opset13.parameter([rows, depth], np.float32)
    levels = opset13.fake_quantize(x, *map(np.float32, (-128 / 127, 1, -128 / 127, 1)), 256)
    int8 = opset13.convert(opset13.constant(np.full((depth, depth), 127, np.int8)), "f32")
    weight = opset13.multiply(int8, opset13.constant(np.full((1, depth), 1 / 127, np.float32)))
    model = openvino.Model([opset13.matmul(levels, weight, False, False)], [x])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    request = _core().compile_model(model, DEVICE, settings).create_infer_request()
    sums = request.infer([np.ones((rows, depth), np.float32)])[0]
    return not np.allclose(sums, depth, rtol=0.05)


def version() -> str:
    """Return the version of OpenVINO, without its build."""
    return str(openvino.get_version()).partition("-")[0]


def devices() -> list[str]:
    """Return the devices that OpenVINO has drivers for; models run on the CPU."""
    return list(_core().available_devices)


def _check_process() -> None:
    if not _user.is_usable():
        raise ProviderError(
            "OpenVINO does not work in this process, which was forked from one that had used it: its threads do not "
            "survive a fork. Start processes with multiprocessing's methods spawn or forkserver, fork before the first "
            "use, or take another provider."
        )


def _inspect(path: Path) -> tuple[dict[str, str], bool]:
    """Return a graph's metadata entries, and whether it has static int8.

    Raises:
        BundleError: its weights are addresses in memory, which OpenVINO would read.
        OSError, ValueError: not a file with a graph.
    """
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_MEMORY_ADDRESS) >= 0:
            raise BundleError("its weights are addresses in memory")
        pairs = [(*read_values(entry, _KEY), *read_values(entry, _VALUE)) for entry in read_values(content, _METADATA)]
        metadata = {pair[0].decode(): pair[1].decode() for pair in pairs if len(pair) == 2}
        return metadata, content.find(_DEQUANTIZE) >= 0


def _cannot_load(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{path} cannot be loaded with OpenVINO {version()}: {_reason(error)} Check the model with: siglip-onnx models "
        "check; the variants fp32 and qdq have only operators of the standard."
    )


def _reason(error: Exception) -> str:
    """Return the last line of an error that says more than the operator's name; OpenVINO names its source first."""
    lines = [line.strip() for line in str(error).partition("Summary:")[0].splitlines() if line.strip()]
    return f"{lines[-1].rstrip('.')}." if lines else f"{type(error).__name__}."


def _convert_model(*arguments: Any, **keywords: Any) -> Any:
    return import_module(OPENVINO_TOOLS).convert_model(*arguments, **keywords)


if not hasattr(openvino, "convert_model"):  # it was left out above; others in this process may call it
    openvino.convert_model = _convert_model
