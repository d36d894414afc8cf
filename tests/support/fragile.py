"""A model that some images crash, for the tests of bulk jobs; worker processes import it."""

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_onnx.bulk.spec import ModelSpec


@dataclass(frozen=True)
class FragileSpec(ModelSpec):
    """A model that crashes at files with these hashes, each in its own way; with ``once``, a file's path, only once.

    ``at_open`` is the way in which a worker process crashes while it loads the model.
    """

    killers: tuple[tuple[str, str], ...] = ()
    once: str | None = None
    at_open: str | None = None

    def open(self) -> Any:
        if self.at_open and multiprocessing.parent_process() is not None:
            crash(self.at_open)
        return _Fragile(super().open(), dict(self.killers), self.once)


class _Fragile:
    def __init__(self, model: Any, killers: dict[str, str], once: str | None) -> None:
        self._model, self._killers, self._once = model, killers, once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def stream_embeddings(self, images: Iterable[bytes]) -> Iterator[Any]:
        for image in images:
            kind = self._killers.get(hashlib.sha256(image).hexdigest())
            if kind and not (self._once and Path(self._once).exists()):
                if self._once:
                    Path(self._once).touch()
                crash(kind)
            yield from self._model.stream_embeddings([image])


def crash(kind: str) -> None:
    if kind == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(7)
    if kind == "hang":
        time.sleep(600)
    raise RuntimeError("out of luck")
