"""Describe the model of a bulk job by name and options, small enough to send to any worker."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from .. import demo
from ..bundle.folder import Bundle
from ..bundle.manifest import POOLED, graph_path
from ..classifier import make_model
from ..config import VISION
from ..hub.loading import open_model
from ..image.convert import name_background
from ..model import SigLIP
from ..options import DEFAULTS, RuntimeOptions
from .layouts import LAYOUTS
from .records import MAX_SHARD_SIZE, JobFacts

_COPIES = 2  # of the weights: in the mapped file, and arranged for the kernels


@dataclass(frozen=True)
class ModelSpec:
    """A model by name, with the options that decide its vectors; see :func:`siglip_onnx.load`."""

    name: str
    options: RuntimeOptions = DEFAULTS
    isolate_decoding: bool = True  # whatever ``options`` say: one image in millions must not cost a job its memory
    offline: bool = False  # do not download the model

    def open(self) -> SigLIP:
        """Load the model for one thread."""
        return make_model(self._open_bundle(), self.options, threads=1, workers=1,
                          isolate_decoding=self.isolate_decoding)  # fmt: skip

    def memory_bytes(self) -> int:
        """Return about how much memory the vision tower takes in each process that loads it."""
        bundle = self._open_bundle()
        variant = bundle.choose_variant(self.options.variant)
        graph, files = graph_path(VISION, variant), bundle.manifest.variants[variant].files
        return _COPIES * sum(facts.size_bytes for name, facts in files.items() if name.startswith(graph))

    def absolute(self) -> ModelSpec:
        """Return the same model with an absolute path, valid in any working directory."""
        return replace(self, name=os.path.abspath(self.name)) if Path(self.name).is_dir() else self  # noqa: PTH100

    def for_job(self, facts: JobFacts) -> ModelSpec:
        """Return the same model with the background that the vectors of a job were embedded with."""
        return replace(self, options=replace(self.options, background=facts.background))

    def job_facts(self, *, layout: str = "npy", dtype: str = "float32", shard_size: int = MAX_SHARD_SIZE) -> JobFacts:
        """Return the facts that all vectors of a job with this model share.

        Raises:
            BundleError: the model cannot embed images.
            MissingExtraError: the packages of the layout are not installed, or too old.
        """
        model = self.open()
        model.vision.check_output(POOLED)
        LAYOUTS[layout](model.embedding_dim, np.dtype(dtype))  # before there is a folder
        manifest = model.bundle.manifest
        return JobFacts(
            model_name=manifest.model_name,
            variant=model.variant,
            embedding_space=model.embedding_space,
            embedding_dim=model.embedding_dim,
            logit_scale=manifest.logit_scale,
            logit_bias=manifest.logit_bias,
            preprocessing={
                "fast_decode": self.options.fast_decode,
                "allow_truncated": self.options.allow_truncated,
                "image_limits": asdict(self.options.image_limits),
                "background": name_background(self.options.background),
            },
            layout=layout,
            dtype=dtype,
            shard_size=shard_size,
            model=self.name if self.name == demo.NAME else self.absolute().name,
        )

    def _open_bundle(self) -> Bundle:
        return open_model(self.name, self.options.variant, offline=self.offline)
