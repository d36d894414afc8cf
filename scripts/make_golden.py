"""Store the demo model's answers for the self-test of ``siglip-onnx doctor``.

    python scripts/make_golden.py CHECKPOINT_OR_BUNDLE

A checkpoint is exported to fp32 first. Of a bundle the fp32 variant is taken; if it has none, its int8 variant with
onnxruntime's exact kernels, which the file then says of itself. Pictures are the demo's samples, texts those of
``demo/texts.txt``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import siglip_onnx
from siglip_onnx.bundle.folder import Bundle, open_bundle
from siglip_onnx.bundle.manifest import MANIFEST
from siglip_onnx.demo import BUNDLE_PATH as DEMO_PATH
from siglip_onnx.demo import GOLDEN_PATH, IMAGES_PATH
from siglip_onnx.demo.golden import Golden, write_golden
from siglip_onnx.export.pipeline import export_bundle
from siglip_onnx.model import SigLIP
from siglip_onnx.session import runtime_version


@click.command(help=__doc__)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=GOLDEN_PATH, show_default=True)
def main(source: Path, out: Path) -> None:
    """Write the file; see the module's docstring."""
    if (source / MANIFEST).exists():
        golden = make_golden(open_bundle(source))
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_bundle(source, Path(folder) / "fp32", precisions=["fp32"])
            golden = make_golden(open_bundle(Path(folder) / "fp32"))
    write_golden(golden, out)
    click.echo(f"{out}: {len(golden.images)} images, {len(golden.texts)} texts, from {golden.provenance}")


def make_golden(bundle: Bundle) -> Golden:
    """Run the most exact variant that the bundle has."""
    exact = "fp32" in bundle.manifest.variants
    variant = "fp32" if exact else bundle.choose_variant("int8")
    images = sorted(IMAGES_PATH.iterdir())
    texts = (DEMO_PATH.parent / "texts.txt").read_text(encoding="utf-8").splitlines()
    model = SigLIP(bundle, variant=variant, exact_int8=None if exact else True)
    provenance = {
        "variant": variant,
        "kernels": "fp32" if exact else "int8, exact",
        "weights_sha256": bundle.manifest.source.get("weights_sha256"),
        "siglip_onnx": siglip_onnx.__version__,
        "onnxruntime": runtime_version(),
    }
    names = tuple(path.name for path in images)
    return Golden(names, tuple(texts), model.encode_images(images), model.encode_texts(texts), provenance)


if __name__ == "__main__":
    main()
