"""``siglip-onnx info``: the contents of a model, and what this machine runs it with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from .. import demo
from ..bundle.folder import open_bundle
from ..errors import BundleError
from ..hub.loading import find_model
from ..session import available_providers, runtime_version
from ..system.threads import available_threads
from .options import json_option
from .output import format_cosine, format_size, format_table, print_json, report


@click.command()
@click.option("--model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL", default=demo.NAME, show_default=True,
              show_envvar=True, help="Folder of an exported model, or its name on the Hugging Face Hub.")  # fmt: skip
@click.option("--verify-files", is_flag=True, hidden=True, help="The same as: siglip-onnx models check MODEL")
@json_option
def info(model: str, verify_files: bool, as_json: bool) -> None:
    """Show what a model contains, and what this machine runs it with."""
    bundle = open_bundle(find_model(model))
    manifest, config = bundle.manifest, bundle.config
    facts: dict[str, Any] = {
        "model": manifest.model_name,
        "folder": str(bundle.path),
        "description": manifest.description,
        "knows": manifest.description,  # the name in version 0.1
        "source": manifest.source,
        "picture": asdict(bundle.preprocessor),
        "patch_size": config.vision.patch_size,
        "vocab_size": config.text.vocab_size,
        "text_length": config.text.max_position_embeddings,
        "embedding_dim": manifest.embedding_dim,
        "logit_scale": manifest.logit_scale,
        "logit_bias": manifest.logit_bias,
        "default_variant": bundle.choose_variant(None),
        "variants": {
            name: {"size_bytes": variant.size_bytes} | asdict(variant) for name, variant in manifest.variants.items()
        },
        "onnxruntime": runtime_version(),
        "providers": available_providers(),
        "threads": available_threads(),
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(_describe(facts))
    if verify_files:
        problems = bundle.verify_files()
        if problems:
            raise BundleError(f"{bundle.path} is damaged: {'; '.join(problems)}. Export or download it again.")
        report("All files match the manifest.")


def _describe_input(facts: dict[str, Any]) -> str:
    image = facts["picture"]
    patches = f"patches of {facts['patch_size']} pixels"
    if "max_num_patches" in image:
        return f"any aspect ratio, at most {image['max_num_patches']} {patches}"
    return f"{image['width']} x {image['height']} pixels, {patches}"


def _describe(facts: dict[str, Any]) -> str:
    lines = [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        *([("description", facts["description"])] if facts["description"] else []),
        ("images", _describe_input(facts)),
        ("texts", f"{facts['text_length']} tokens, vocabulary of {facts['vocab_size']}"),
        ("embeddings", f"{facts['embedding_dim']} dimensions"),
        ("head", f"logit_scale {facts['logit_scale']:.4f}, logit_bias {facts['logit_bias']:.4f}"),
        ("onnxruntime", f"{facts['onnxruntime']} with {', '.join(facts['providers'])}"),
        ("threads", str(facts["threads"])),
    ]
    rows = [
        (
            name + (" (default)" if name == facts["default_variant"] else ""),
            format_size(variant["size_bytes"]),
            *(format_cosine(variant["accuracy"].get(f"{tower}_cosine_min", float("nan")))
              for tower in ("vision", "text")),
            variant["embedding_space"],
        )
        for name, variant in facts["variants"].items()
    ]  # fmt: skip
    header = ("variant", "size", "min cosine vision", "text", "embedding space")
    return "\n".join(f"{name:<12}{value}" for name, value in lines) + "\n\n" + format_table(header, rows)
