"""``siglip-onnx info``: what a model folder holds, and what this machine runs it with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..errors import BundleError
from .options import human_size, to_json


@click.command()
@click.option("--model", envvar="SIGLIP_ONNX_MODEL", metavar="MODEL", help="Model; the demo model if none.")
@click.option("--verify-files", is_flag=True, help="Read every file and compare its hash with the manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def info(model: str | None, verify_files: bool, as_json: bool) -> None:
    """Show what a model holds: variants, sizes, accuracy; and the providers and threads of this machine."""
    from ..bundle.folder import open_bundle  # noqa: PLC0415 - keeps --help fast
    from ..demo import NAME as DEMO  # noqa: PLC0415
    from ..hub.loading import find_model  # noqa: PLC0415
    from ..session import available_providers, runtime_version  # noqa: PLC0415
    from ..system.threads import available_threads  # noqa: PLC0415

    bundle = open_bundle(find_model(model or DEMO))
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
    click.echo(to_json(facts, indent=2) if as_json else _describe(facts))
    if verify_files:
        problems = bundle.verify_files()
        if problems:
            raise BundleError(f"{bundle.path} is damaged: {'; '.join(problems)}. Export or download it again.")
        click.echo("All files are as the manifest says.", err=True)


def _describe_picture(facts: dict[str, Any]) -> str:
    picture = facts["picture"]
    patches = f"patches of {facts['patch_size']} pixels"
    if "max_num_patches" in picture:
        return f"any aspect, at most {picture['max_num_patches']} {patches}"
    return f"{picture['width']} x {picture['height']} pixels, {patches}"


def _describe(facts: dict[str, Any]) -> str:
    from .table import format_table  # noqa: PLC0415 - keeps --help fast

    lines = [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        *([("description", facts["description"])] if facts["description"] else []),
        ("pictures", _describe_picture(facts)),
        ("texts", f"{facts['text_length']} tokens of {facts['vocab_size']}"),
        ("embeddings", f"{facts['embedding_dim']} dimensions"),
        ("head", f"logit_scale {facts['logit_scale']:.4f}, logit_bias {facts['logit_bias']:.4f}"),
        ("onnxruntime", f"{facts['onnxruntime']} with {', '.join(facts['providers'])}"),
        ("threads", str(facts["threads"])),
    ]
    rows = [
        (
            name + (" (default)" if name == facts["default_variant"] else ""),
            human_size(variant["size_bytes"]),
            *(f"{variant['accuracy'].get(f'{tower}_cosine_min', float('nan')):.5f}" for tower in ("vision", "text")),
            variant["embedding_space"],
        )
        for name, variant in facts["variants"].items()
    ]
    header = ("variant", "size", "min cosine vision", "text", "embedding space")
    return "\n".join(f"{name:<12}{value}" for name, value in lines) + "\n\n" + format_table(header, rows)
