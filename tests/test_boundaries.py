"""What may import what, and what the runtime must not need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import siglip_onnx

PACKAGE = Path(siglip_onnx.__file__).parent
# Each module may import those of its own layer's left.
LAYERS = (
    {"errors"},
    {"system", "cpu", "fork", "json_file", "image_limits", "image_warnings"},
    {"cache"},
    {"config", "pieces", "prompts", "streaming", "integrity", "image_headers"},
    {"external_data"},
    {"checkpoints", "bundle", "image", "preprocess", "tokenizer", "session", "head"},
    {"label_cache", "classifier"},
    {"model"},
    {"hub", "golden"},
    {"bulk", "doctor"},
    {"export"},
    {"bench", "web"},
    {"cli"},
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_runtime_imports_neither_torch_nor_the_exporter() -> None:
    heavy = {"torch", "transformers", "onnx", "onnx_ir", "safetensors", "sentencepiece", "siglip_onnx.export", "click"}
    code = f"""
import sys, siglip_onnx
picture = {str(PACKAGE / "demo" / "pictures" / "red_star.png")!r}
assert siglip_onnx.load("demo").classify(picture, ["a red star"])[0].probability > 0
print(sorted({heavy!r} & set(sys.modules)))
"""
    assert run(code) == "[]"


def test_help_loads_neither_numpy_nor_onnxruntime() -> None:
    code = """
import sys
from siglip_onnx.cli import main
main(["--help"], standalone_mode=False)
print(sorted({"numpy", "onnxruntime", "PIL", "tokenizers"} & set(sys.modules)))
"""
    assert run(code).splitlines()[-1] == "[]"


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = "import siglip_onnx, sys, os; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    assert run(code) == "1 False"


def test_imports_go_one_way() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room.startswith("__"):
            continue
        for imported in imports_of(path):
            assert level[imported] <= level[room], f"{path} imports {imported}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("onnxruntime", {"session.py"}),
        ("click", {"cli"}),
        ("tokenizers", {"tokenizer.py", "pieces.py", "export"}),
        ("huggingface_hub", {"hub"}),
        ("pyarrow", {"bulk"}),
        ("ray", {"bulk"}),
        ("usearch", {"bulk"}),
    ],
)
def test_a_library_has_one_room(library: str, rooms: set[str]) -> None:
    found = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if library in roots_of(path)}
    assert found == rooms


def test_every_public_name_can_be_imported() -> None:
    for name in siglip_onnx.__all__:
        assert getattr(siglip_onnx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = siglip_onnx.lod  # type: ignore[attr-defined]


def imports_of(path: Path) -> set[str]:
    """Return the package's own top-level modules that a file imports."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else set()
    return found


def roots_of(path: Path) -> set[str]:
    """Return the top-level packages that a file imports absolutely."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found
