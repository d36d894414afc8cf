"""Run the graphs of an imported folder in a process of its own, under limits: ``python -m siglip_onnx.export.trial``.

Graphs of strangers may compute without end, or make huge arrays from small constants, as soon as they are loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..bundle.folder import Bundle, open_bundle
from ..bundle.manifest import graph_path
from ..config import CONFIG, TEXT, VISION
from ..errors import BundleError, SiglipOnnxError
from ..model import SigLIP
from ..system.records import read_record
from ..system.steps import limit_process, run_steps, write_error, write_step
from ..system.threads import available_threads
from ..verify.accuracy import REFERENCE, Accuracy, verify_variants
from ..verify.samples import SAMPLE_TEXTS, quiet_samples, sample_images

# A tower of an export takes three times its weights, and some hundred megabytes; threads reserve address space.
_MEMORY_BYTES, _BYTES_PER_WEIGHT_BYTE, _BYTES_PER_THREAD = 4_000_000_000, 5, 150_000_000
_CPU_SECONDS, _WEIGHT_BYTES_PER_SECOND = 600, 1_000_000


def try_graphs(folder: Path) -> dict[str, Accuracy]:
    """Run every variant on the sample images and texts; return how near it is to fp32, empty without fp32.

    Raises:
        BundleError: a graph cannot be run within the limits, or gives embeddings of another width than the config says.
    """
    outcome = run_steps("siglip_onnx.export.trial", [str(folder)], lambda _line: None)
    if outcome.exit_code == 0 and isinstance(outcome.result, dict):
        return {name: read_record(Accuracy, facts) for name, facts in outcome.result.items()}
    if outcome.error:
        raise BundleError(outcome.message)
    raise BundleError(
        f"The graphs cannot be run within the limits of memory and time (exit code {outcome.exit_code}): "
        f"{outcome.message:.300}. Nothing was written; take the model from a source that you trust."
    )


def main(folder: str) -> int:
    """Limit this process, run the graphs, and return the exit code."""
    bundle = open_bundle(Path(folder))
    size = max(variant.size_bytes for variant in bundle.manifest.variants.values())
    memory_bytes = _MEMORY_BYTES + _BYTES_PER_WEIGHT_BYTE * size + _BYTES_PER_THREAD * available_threads()
    limit_process(memory_bytes, _CPU_SECONDS + size // _WEIGHT_BYTES_PER_SECOND)
    try:
        for name in bundle.manifest.variants:
            _check_widths(bundle, name)
        known = REFERENCE in bundle.manifest.variants
        accuracies = verify_variants(bundle, sample_images(), SAMPLE_TEXTS) if known else {}
        result: dict[str, Any] = {name: accuracy.to_document() for name, accuracy in accuracies.items()}
    except SiglipOnnxError as error:
        return write_error(error)
    except MemoryError:
        return write_error(BundleError("The graphs take more memory than towers of their size do."))
    write_step(result=result)
    return 0


def _check_widths(bundle: Bundle, name: str) -> None:
    with SigLIP(bundle, variant=name) as model, quiet_samples(SAMPLE_TEXTS):
        pooled = {
            VISION: model.vision.session.run("pooler_output", model.vision.prepare(sample_images()[0])),
            TEXT: model.text.session.run("pooler_output", {"input_ids": model.tokenize(SAMPLE_TEXTS[:1])}),
        }
    for tower, array in pooled.items():
        if array.shape != (1, bundle.manifest.embedding_dim):
            raise BundleError(
                f"{graph_path(tower, name)} gives an output of shape {array.shape}, but {CONFIG} implies "
                f"{(1, bundle.manifest.embedding_dim)}. The files do not belong together."
            )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
