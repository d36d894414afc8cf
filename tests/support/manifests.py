"""Write manifests that are consistent with themselves, as someone who knows the format can."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from siglip_onnx.bundle.integrity import file_facts
from siglip_onnx.bundle.manifest import Manifest, embedding_space, read_manifest, to_hashed_json


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest with the embedding spaces that its files give."""
    variants = {
        name: replace(variant, embedding_space=embedding_space(name, manifest.files, variant.files))
        for name, variant in manifest.variants.items()
    }
    (folder / "manifest.json").write_text(replace(manifest, variants=variants).to_json())


def write_document(folder: Path, document: dict[str, Any]) -> None:
    """Write the document of a manifest with its own hash."""
    (folder / "manifest.json").write_text(to_hashed_json(document))


def with_hashes(folder: Path) -> Manifest:
    """Return a folder's manifest with the sizes and hashes of the files as they are, and the old embedding spaces."""
    manifest = read_manifest(folder)
    return replace(
        manifest,
        files={name: file_facts(folder / name) for name in manifest.files},
        variants={
            name: replace(variant, files={file: file_facts(folder / file) for file in variant.files})
            for name, variant in manifest.variants.items()
        },
    )
