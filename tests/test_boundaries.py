"""What may import what, and what the runtime must not need."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.source import PACKAGE, libraries_of, nodes_of_package

import siglip_onnx

# Each room imports only rooms before it.
ROOMS = (
    "_version", "errors", "system", "options", "config", "layouts", "head", "bundle", "image", "text", "session",
    "vision_tower", "text_tower", "model", "classifier", "demo", "hub", "doctor", "verify", "export", "bulk",
    "evaluate", "heads", "explain", "bench", "web", "cli", "__init__", "__main__",
)  # fmt: skip


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_runtime_imports_neither_torch_nor_the_exporter() -> None:
    heavy = {"torch", "transformers", "onnx", "onnx_ir", "safetensors", "sentencepiece", "siglip_onnx.export", "click"}
    code = f"""
import sys, siglip_onnx
image = {str(PACKAGE / "demo" / "images" / "red_star.png")!r}
assert siglip_onnx.load("demo").classify(image, ["a red star"])[0].probability > 0
print(sorted({heavy!r} & set(sys.modules)))
"""
    assert run(code) == "[]"


def test_package_has_at_most_20_imports_inside_functions() -> None:
    """Optional packages, and what most runs need not load."""
    functions = [node for _, node in nodes_of_package() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = {node for function in functions for node in ast.walk(function)}
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert 0 < len(imports) <= 20


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("from siglip_onnx.cli import main; main(['--help'], standalone_mode=False)", {"numpy", "PIL", "tokenizers"}),
        ("from siglip_onnx.cli import main; main(['models', 'list'], standalone_mode=False)", {"numpy", "PIL"}),
        (
            "from siglip_onnx.cli import main; main(['models', 'list', '--known'], standalone_mode=False)",
            {"numpy", "PIL"},
        ),
        ("from siglip_onnx.system.threads import available_threads; available_threads()", {"numpy"}),
        ("import siglip_onnx.hub.published, siglip_onnx.hub.names", {"numpy"}),
    ],
)
def test_light_entries_load_neither_numpy_nor_onnxruntime(code: str, heavy: set[str]) -> None:
    loaded = f"import sys; {code}\nprint(sorted({heavy | {'onnxruntime'}!r} & set(sys.modules)))"
    assert run(loaded).splitlines()[-1] == "[]"


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = "import siglip_onnx, sys, os; print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    assert run(code) == "1 False"


def test_every_room_has_its_place() -> None:
    found = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert found == set(ROOMS)


def test_imports_go_one_way() -> None:
    level = {name: number for number, name in enumerate(ROOMS)}
    upward = [
        f"{path.relative_to(PACKAGE)} imports {imported}"
        for path in PACKAGE.rglob("*.py")
        for imported in rooms_imported_by(path)
        if level[imported] > level[room_of(path)]
    ]
    assert upward == []


def test_the_face_is_imported_by_no_room() -> None:
    importing = {room_of(path) for path in PACKAGE.rglob("*.py") if "__init__" in rooms_imported_by(path)}
    assert importing <= {"__init__"}


def test_package_has_at_most_29_top_level_names() -> None:
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert len(names) <= 29


@pytest.mark.parametrize(
    ("library", "rooms"),
    [("onnxruntime", {"session"}), ("openvino", {"session"}), ("click", {"cli"}), ("tokenizers", {"text", "export"}),
     ("huggingface_hub", {"hub"}), ("pyarrow", {"bulk"}), ("ray", {"bulk"})],
)  # fmt: skip
def test_a_library_has_one_room(library: str, rooms: set[str]) -> None:
    found = {name.split("/")[0] for name, node in nodes_of_package() if library in libraries_of(node)}
    assert found == rooms


def test_every_public_name_can_be_imported() -> None:
    for name in siglip_onnx.__all__:
        assert getattr(siglip_onnx, name) is not None
    assert {"load", "SigLIP", "Match", "sigmoid", "softmax", "ImageError"} <= set(dir(siglip_onnx))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = siglip_onnx.lod  # type: ignore[attr-defined]


def test_help_shows_the_public_names() -> None:
    text = run("import siglip_onnx; help(siglip_onnx)")
    assert "class SigLIP" in text
    assert "load(name" in text


def test_every_form_of_import_is_seen() -> None:
    forms = ["from . import model", "from .model import x", "import siglip_onnx.model", "from siglip_onnx import model",
             "from siglip_onnx.model import x", "def f():\n    from . import model"]  # fmt: skip
    for form in forms:
        assert {module[1] for module in imported_modules(ast.parse(form), ("siglip_onnx",))} == {"model"}, form
    assert list(imported_modules(ast.parse("from ..image import decode"), ("siglip_onnx", "bulk"))) == [
        ("siglip_onnx", "image", "decode")
    ]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported_by(path: Path) -> set[str]:
    """Return the rooms that a file imports, its own left out; ``__init__`` is the package's public face."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    package = ("siglip_onnx", *parts[:-1])
    rooms = set()
    for module in imported_modules(ast.parse(path.read_text(encoding="utf-8")), package):
        known = len(module) > 1 and ((PACKAGE / module[1]).is_dir() or (PACKAGE / f"{module[1]}.py").is_file())
        rooms.add(module[1] if known else "__init__")
    return rooms - {room_of(path)}


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the dotted names below ``siglip_onnx`` that code in ``package`` imports, names of attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names if name.name.startswith("siglip_onnx"))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            if module and module[0] == "siglip_onnx":
                yield from ((*module, name.name) for name in node.names)
