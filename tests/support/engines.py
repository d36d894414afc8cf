"""The engines that run a model, as parameters of a test."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

Providers = tuple[str, ...] | None
OPENVINO = ("OpenVINO",)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
ENGINES = [pytest.param(None, id="onnxruntime"), pytest.param(OPENVINO, id="OpenVINO", marks=needs_openvino)]
