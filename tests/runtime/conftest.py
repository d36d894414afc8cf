"""The runtime's tests run on a random checkpoint, or on the demo model where the exporter is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from siglip_onnx import demo


@pytest.fixture(scope="session")
def small_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of fp32 and int8, or the demo model, which has int8 alone."""
    if find_spec("torch") is None or find_spec("onnx_ir") is None:
        return demo.BUNDLE_PATH
    from siglip_onnx.export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "small"
    export_bundle(request.getfixturevalue("small_checkpoint"), out)
    return out
