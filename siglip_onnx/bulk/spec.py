"""How a worker opens the model and the pictures: what a job says of them, small enough to be sent anywhere."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..hub.loading import load
from ..image.decode import DEFAULT_LIMITS, ImageLimits
from ..model import SigLIP
from .facts import MAX_SHARD_SIZE, JobFacts


@dataclass(frozen=True)
class ModelSpec:
    """A model by name with the options that decide its vectors; see :func:`siglip_onnx.load`."""

    name: str
    variant: str | None = None
    providers: tuple[str, ...] | None = None
    fast_decode: bool = False
    max_num_patches: int | None = None
    image_limits: ImageLimits = DEFAULT_LIMITS
    allow_truncated: bool = False

    def open(self) -> SigLIP:
        """Load the model for one thread."""
        return load(
            self.name,
            variant=self.variant,
            providers=self.providers,
            threads=1,
            fast_decode=self.fast_decode,
            max_num_patches=self.max_num_patches,
            image_limits=self.image_limits,
            allow_truncated=self.allow_truncated,
        )

    def absolute(self) -> ModelSpec:
        """Return the same model, found from any working directory."""
        return replace(self, name=os.path.abspath(self.name)) if Path(self.name).is_dir() else self  # noqa: PTH100

    def job_facts(self, *, layout: str = "npy", dtype: str = "float32", shard_size: int = MAX_SHARD_SIZE) -> JobFacts:
        """Return what all vectors of a job with this model have in common."""
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
                "fast_decode": self.fast_decode,
                "allow_truncated": self.allow_truncated,
                "image_limits": asdict(self.image_limits),
            },
            layout=layout,
            dtype=dtype,
            shard_size=shard_size,
        )
