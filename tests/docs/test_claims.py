"""What the documents claim about figures, names and tests holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import siglip_onnx

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short_and_begins_with_measured_figures() -> None:
    from siglip_onnx.bench.schema import read_document
    from siglip_onnx.bench.tables import start_memory_mb, start_seconds

    rows = read_document(ROOT / "benchmarks/results/base_multilingual.json").rows
    row = next(row for row in rows if row.name == "siglip_onnx int8")
    fidelity = min(row.fidelity.vision_cosine_min, row.fidelity.text_cosine_min)
    assert f"{start_seconds(row):.1f} s after the process starts" in README
    assert f"in {round(start_memory_mb(row), -1):.0f} MB of memory" in README
    assert f"at least {int(fidelity * 1e4) / 1e4:.4f}" in README.replace("\n", " ")
    assert len(README.split()) < 900


def test_every_public_name_is_documented() -> None:
    api = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    members = {name for name in vars(siglip_onnx.SigLIP) if not name.startswith("_")}
    assert [name for name in {*siglip_onnx.__all__, *members} if not re.search(rf"\b{name}\b", api)] == []


def test_files_that_the_documents_name_exist() -> None:
    for document in ("SECURITY.md", "CONTRIBUTING.md"):
        for name in re.findall(r"`([\w/]+\.py)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / name).exists() or (ROOT / "siglip_onnx" / name).exists(), f"{document} names {name}"


def test_tests_are_collected_without_pytorch_and_the_exporter() -> None:
    """Modules that need them are skipped, as CONTRIBUTING.md says."""
    missing = ("torch", "transformers", "onnx", "onnx_ir", "ml_dtypes", "safetensors", "sentencepiece")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "tests/image", "tests/text", "tests/runtime"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for name in ("runtime/test_model.py", "text/test_tokenizer.py", "image/test_image.py"):
        assert f"tests/{name}::" in done.stdout
