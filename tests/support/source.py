"""Read the code of the package itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import siglip_onnx

PACKAGE = Path(siglip_onnx.__file__).parent


def nodes_of_package() -> Iterator[tuple[str, ast.AST]]:
    """Yield all nodes of all modules, each with the name of its file."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path.relative_to(PACKAGE).as_posix(), node


def imports_of(node: ast.AST) -> set[str]:
    """Return the modules that a node imports absolutely, and the dotted names of what it takes from them."""
    if isinstance(node, ast.Import):
        return {name.name for name in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return set()


def libraries_of(node: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imports_of(node)}
