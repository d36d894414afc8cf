"""Measure the limit: how fast this machine's arithmetic could run the towers, from counted operations.

Two peaks are measured: that of the instructions, from registers alone (``peak.c``, which needs a C compiler and x86),
and that of one large matrix product through onnxruntime's kernels. A tower's limit is its linear layers at the int8 (or
f32) peak plus its attention and patch embedding at the f32 peak; its share is that time over the measured one. A
multiply-add counts as two operations. Only necessary operations are counted: the text tower pools the last position, so
its last layer needs only that one.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fresh_process import in_fresh_process
from onnx import TensorProto, helper
from operations import count_operations

from siglip_onnx.bundle.folder import Bundle
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.session import LazySession

SOURCE = Path(__file__).parent / "peak.c"
GEMM_SIZE = 1536  # all three sides; 7 GOP, so that packing and threads cost little
GEMM_SECONDS = 1.5


def measure_limit(bundle: Bundle, threads: int) -> dict[str, Any]:
    """Return both peaks in operations per second, on one thread and on all, and the limit of each tower."""
    gemm = in_fresh_process(measure_gemm, threads)
    peaks = measure_instructions(threads)
    best = {kind: max(peaks.get(kind, 0.0), gemm[kind]) for kind in gemm}
    return {
        "instructions": peaks,
        "instructions_one_thread": measure_instructions(1),
        "large_gemm": gemm,
        "towers": {
            tower: operations | {
                "int8_ms": 1000 * (operations["linear"] / best["int8"] + operations["other"] / best["fp32"]),
                "fp32_ms": 1000 * (operations["linear"] + operations["other"]) / best["fp32"],
            }
            for tower, operations in count_operations(bundle.config).items()
        },
    }  # fmt: skip


def measure_instructions(threads: int) -> dict[str, float]:
    """Return the peak of int8 and f32 instructions; empty without a C compiler or x86.

    Raises:
        BenchmarkError: the program cannot be compiled or run.
    """
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None or platform.machine() not in ("x86_64", "AMD64"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "peak")
        try:
            subprocess.run([compiler, "-O2", "-pthread", "-o", program, str(SOURCE)], check=True, capture_output=True)  # noqa: S603
            output = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout  # noqa: S603
        except subprocess.CalledProcessError as error:
            raise BenchmarkError(
                f"{SOURCE.name} cannot be compiled or run: {error.stderr!r}. Check {compiler}."
            ) from error
    int8, fp32 = map(float, output.split())
    return {"int8": int8, "fp32": fp32}


def measure_gemm(threads: int) -> dict[str, float]:
    """Return operations per second of one large product by onnxruntime: u8 x s8 (MatMulInteger), and f32."""
    rng = np.random.default_rng(0)
    shape = (GEMM_SIZE, GEMM_SIZE)
    operands: dict[str, tuple[str, Any, Any]] = {
        "int8": ("MatMulInteger", rng.integers(0, 255, shape, np.uint8), rng.integers(-127, 127, shape, np.int8)),
        "fp32": ("MatMul", rng.random(shape, np.float32), rng.random(shape, np.float32)),
    }
    return {kind: time_gemm(*operand, threads) for kind, operand in operands.items()}


def time_gemm(operator: str, left: Any, right: Any, threads: int) -> float:
    """Return the best operations per second of ``left @ right``, whose right operand is constant, as weights are."""
    out = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])], "gemm",
        [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("product", out, left.shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemm.onnx"
        onnx.save(model, path)
        session = LazySession(path, threads=threads)
        session.load()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < GEMM_SECONDS:
        before = time.perf_counter()
        session.run("product", {"left": left})
        best = min(best, time.perf_counter() - before)
    return float(2 * left.shape[0] * left.shape[1] * right.shape[1] / best)
