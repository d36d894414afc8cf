"""Zero-shot image classification and search with SigLIP on onnxruntime, without PyTorch.

    import siglip_onnx

    model = siglip_onnx.load("demo")
    for match in model.classify("image.png", ["a red circle", "青い星"]):
        print(match.text, match.probability)

load            open a model by name: embedded, a folder, or on the Hugging Face Hub
SigLIP          the model: classify, encode_images, encode_texts, logits; its towers are vision and text
Match           a text's logit, probability and relative share
sigmoid         logits to probabilities, each text independently
softmax         logits to shares, which sum to 1
open_collection open a folder of vectors that `siglip-onnx embed` wrote, to search it
freeze_support  for programs that PyInstaller makes: call it first
RuntimeOptions  how a model runs: variant, providers, threads, workers
ImageLimits     limits of pixels, sides and bytes of an image
SiglipOnnxError the root of all errors of this package
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__
from .errors import AccuracyError as AccuracyError
from .errors import BenchmarkError as BenchmarkError
from .errors import BundleError as BundleError
from .errors import CacheError as CacheError
from .errors import CheckpointError as CheckpointError
from .errors import DataError as DataError
from .errors import DownloadError as DownloadError
from .errors import ImageError as ImageError
from .errors import JobError as JobError
from .errors import MissingExtraError as MissingExtraError
from .errors import ModelNotFoundError as ModelNotFoundError
from .errors import OptionError as OptionError
from .errors import ProviderError as ProviderError
from .errors import SiglipOnnxError as SiglipOnnxError
from .errors import TextError as TextError
from .errors import UploadError as UploadError
from .system import telemetry as _telemetry  # noqa: F401 - switched off before onnxruntime is imported

if TYPE_CHECKING:
    from .bulk.search import open_collection as open_collection
    from .head import Match as Match
    from .head import sigmoid as sigmoid
    from .head import softmax as softmax
    from .hub.loading import load as load
    from .image.decoder_pool import freeze_support as freeze_support
    from .model import SigLIP as SigLIP
    from .options import ImageLimits as ImageLimits
    from .options import RuntimeOptions as RuntimeOptions

# Imported at first use, so that `siglip-onnx --help` does not load numpy, and Ctrl-C is handled soon.
_LAZY = {
    "load": "hub.loading", "SigLIP": "model", "Match": "head", "sigmoid": "head", "softmax": "head",
    "open_collection": "bulk.search", "freeze_support": "image.decoder_pool", "ImageLimits": "options",
    "RuntimeOptions": "options",
}  # fmt: skip
__all__ = [*_LAZY, *(name for name in globals() if name.endswith("Error"))]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*sorted(__all__), "__version__"]
