"""``siglip-onnx info``: the contents of a model, and what this machine runs it with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from .. import demo
from ..bundle.folder import open_bundle
from ..bundle.manifest import FEATURES, POOLED
from ..config import CLASSIFIER, DUAL, TEXT, VISION
from ..errors import BundleError, printable
from ..hub.loading import find_model
from ..session import available_providers, runtime_version
from ..system.threads import available_threads
from .help import Command
from .options import json_option, named_model
from .output import format_cosine, format_size, format_table, print_json, report

KINDS = {DUAL: "vision and text tower", VISION: "vision tower", TEXT: "text tower", CLASSIFIER: "image classifier"}
SHOWN_LABELS = 5
COSINES = ("vision", "features", "text")


@click.command(cls=Command, examples=("siglip-onnx info", "siglip-onnx info siglip2-base-patch16-224 --json"))
@named_model(demo.NAME)
@click.option("--verify-files", is_flag=True, hidden=True, help="The same as: siglip-onnx models check MODEL")
@json_option
def info(model: str, verify_files: bool, as_json: bool) -> None:
    """Show what a model contains, and what this machine runs it with.

    MODEL is the folder of an exported model, or its name on the Hugging Face Hub; by default the demo model.
    """
    bundle = open_bundle(find_model(model))
    manifest, config = bundle.manifest, bundle.config
    image = None if bundle.preprocessor is None else asdict(bundle.preprocessor)
    facts: dict[str, Any] = {
        "model": manifest.model_name,
        "kind": manifest.kind,
        "folder": str(bundle.path),
        "description": manifest.description,
        "knows": manifest.description,  # the name in version 0.1
        "source": manifest.source,
        "picture": image,
        "patch_size": None if config.vision is None else config.vision.patch_size,
        "vocab_size": None if config.text is None else config.text.vocab_size,
        "text_length": None if config.text is None else config.text.max_position_embeddings,
        "embedding_dim": manifest.embedding_dim,
        "logit_scale": manifest.logit_scale,
        "logit_bias": manifest.logit_bias,
        "labels": list(manifest.labels),
        "problem_type": manifest.problem_type,
        "vision_outputs": list(manifest.vision_outputs) if config.vision is not None else [],
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


def _describe_labels(facts: dict[str, Any]) -> str:
    """Return the number of labels, what their logits mean, and the first ones."""
    labels = facts["labels"]
    shown = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
    return f"{len(labels)} ({facts['problem_type'].replace('_', ' ')}): {shown}"


def _describe(facts: dict[str, Any]) -> str:
    outputs = facts["vision_outputs"] or [POOLED]
    lines = [
        ("model", facts["model"]),
        ("folder", facts["folder"]),
        *([("description", facts["description"])] if facts["description"] else []),
        ("kind", KINDS[facts["kind"]]),
        *([("images", _describe_input(facts))] if facts["picture"] else []),
        *([("labels", _describe_labels(facts))] if facts["labels"] else []),
        *(
            [("texts", f"{facts['text_length']} tokens, vocabulary of {facts['vocab_size']}")]
            if facts["text_length"]
            else []
        ),
        ("embeddings", f"{facts['embedding_dim']} dimensions" if POOLED in outputs else "none, only features"),
        *(
            [("features", f"last_hidden_state, {facts['embedding_dim']} dimensions for each patch")]
            if FEATURES in outputs
            else []
        ),
        *(
            [("head", f"logit_scale {facts['logit_scale']:.4f}, logit_bias {facts['logit_bias']:.4f}")]
            if facts["logit_scale"] is not None
            else []
        ),
        ("onnxruntime", f"{facts['onnxruntime']} with {', '.join(facts['providers'])}"),
        ("threads", str(facts["threads"])),
    ]
    cards = [variant["accuracy"] for variant in facts["variants"].values()]
    columns = [name for name in COSINES if any(f"{name}_cosine_min" in card for card in cards)] or list(COSINES[::2])
    rows = [
        (
            name + (" (default)" if name == facts["default_variant"] else ""),
            format_size(variant["size_bytes"]),
            *(format_cosine(variant["accuracy"].get(f"{column}_cosine_min", float("nan"))) for column in columns),
            variant["embedding_space"],
        )
        for name, variant in facts["variants"].items()
    ]
    header = ("variant", "size", f"min cosine {columns[0]}", *columns[1:], "embedding space")
    return "\n".join(f"{name:<12}{printable(value)}" for name, value in lines) + "\n\n" + format_table(header, rows)
