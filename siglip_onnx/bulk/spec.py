"""Describe the model of a bulk job by name and options, small enough to send to any worker."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..hub.loading import open_model
from ..image.convert import name_background
from ..model import SigLIP
from ..options import DEFAULTS, RuntimeOptions
from .records import MAX_SHARD_SIZE, JobFacts


@dataclass(frozen=True)
class ModelSpec:
    """A model by name, with the options that decide its vectors; see :func:`siglip_onnx.load`."""

    name: str
    options: RuntimeOptions = DEFAULTS

    def open(self) -> SigLIP:
        """Load the model for one thread."""
        return SigLIP(open_model(self.name, self.options.variant), self.options, threads=1, workers=1)

    def absolute(self) -> ModelSpec:
        """Return the same model with an absolute path, valid in any working directory."""
        return replace(self, name=os.path.abspath(self.name)) if Path(self.name).is_dir() else self  # noqa: PTH100

    def for_job(self, facts: JobFacts) -> ModelSpec:
        """Return the same model with the background that the vectors of a job were embedded with."""
        return replace(self, options=replace(self.options, background=facts.background))

    def job_facts(self, *, layout: str = "npy", dtype: str = "float32", shard_size: int = MAX_SHARD_SIZE) -> JobFacts:
        """Return the facts that all vectors of a job with this model share."""
        model = self.open()
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
        )
