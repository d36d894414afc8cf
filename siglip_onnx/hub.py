"""From a model's name to its folder: the embedded demo model, or a path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .bundle import open_bundle
from .errors import ModelNotFoundError
from .image_limits import ImageLimits
from .model import SigLIP

DEMO = "demo"
DEMO_PATH = Path(__file__).parent / "demo" / "bundle"
SAMPLE_PICTURES_PATH = Path(__file__).parent / "demo" / "pictures"


def load(
    name: str | os.PathLike[str] = DEMO,
    *,
    variant: str | None = None,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    workers: int = 1,
    fast_decode: bool = False,
    max_num_patches: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    image_limits: ImageLimits | None = None,
    allow_truncated: bool = False,
) -> SigLIP:
    """Open a model by name; its towers load when they are first used.

    Args:
        name: ``"demo"`` or the folder of a bundle.
        variant: ``"int8"`` (the default where present), ``"fp32"``, ...
        providers: execution providers in onnxruntime's spelling; the CPU by default.
        threads: intra-op threads; by default what the process may use.
        workers: 1 gives the soonest answer, all threads work on one picture. With more, so many pictures (or texts)
            are decoded and run at once, each by one thread: the most pictures per second.
        fast_decode: decode large JPEGs at a fraction of their size: faster, and not quite the same pixels.
        max_num_patches: NaFlex only: how many patches a picture may have, by default what the checkpoint says.
        cache: a folder in which embeddings of labels are kept for other runs.
        image_limits: pixels, sides and bytes that a picture may have, known from its header; by default 89 megapixels.
        allow_truncated: take pictures whose files end early as far as they go; refused otherwise.

    Raises:
        ModelNotFoundError: no such model.
        BundleError: the folder is no bundle, or is incomplete.
        ProviderError: a provider is not available.
    """
    return SigLIP(
        open_bundle(find_model(name)),
        variant=variant,
        providers=providers,
        threads=threads,
        workers=workers,
        fast_decode=fast_decode,
        max_num_patches=max_num_patches,
        cache=None if cache is None else Path(cache),
        image_limits=image_limits,
        allow_truncated=allow_truncated,
    )


def find_model(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: the embedded one for ``"demo"``, otherwise ``name`` as a path.

    Raises:
        ModelNotFoundError: no such model.
    """
    if str(name) == DEMO:
        return DEMO_PATH
    path = Path(name)
    if not path.is_dir():
        found = "is a file" if path.exists() else "was not found"
        raise ModelNotFoundError(
            f"Model {str(name)!r} {found}; expected {DEMO!r} or the folder of an exported model. "
            f"Make one with: siglip-onnx export CHECKPOINT {name}"
        )
    return path
