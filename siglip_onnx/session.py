"""Run ONNX graphs: the only module that imports onnxruntime."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .bundle import Bundle, graph_path
from .errors import BundleError, ProviderError, SiglipOnnxError, first_line
from .head import Floats, l2_normalize
from .options import RuntimeOptions
from .system.files import open_regular
from .system.fork import call_after_fork, renewed_lock, weak_call
from .system.telemetry import ONNXRUNTIME_CAME_FIRST
from .system.threads import MAX_THREADS, available_threads

CPU_PROVIDER = "CPUExecutionProvider"
_LOG_FATAL_ONLY = 4  # failures are raised; onnxruntime must not print them too
INT8_PROBE = Path(__file__).parent / "system" / "int8_probe.onnx"  # made by scripts/make_int8_probe.py

if ONNXRUNTIME_CAME_FIRST:  # too late for its first event, in time for the others
    onnxruntime.disable_telemetry_events()


class LazySession:
    """One ONNX graph, loaded at first use, for any number of threads.

    It can be unloaded, after which it loads again when needed, or closed for good. A child process that inherits it by
    fork loads the graph for itself.
    """

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        exact_int8: bool | None = None,
    ) -> None:
        """Keep the arguments; nothing is read before the first use.

        Args:
            path: the graph; its weights are beside it and are mapped, not copied.
            providers: execution providers in onnxruntime's spelling; the CPU by default.
            threads: intra-op threads; by default what the process may use, see :func:`.available_threads`.
            exact_int8: whether to use onnxruntime's exact, slower int8 kernels; by default where this CPU's fast ones
                saturate, see :func:`int8_saturates`. Weights within 7 bits never saturate and do not need them.
        """
        self._path = path
        self._providers = providers
        self._threads = threads
        self._exact_int8 = exact_int8
        self._loaded: Any = None
        self._closed = False
        self._lock = renewed_lock(self)
        call_after_fork(self, weak_call(self._abandon))

    @property
    def providers(self) -> list[str]:
        """The execution providers in use: those requested, or the CPU; never silently replaced."""
        return [CPU_PROVIDER] if self._providers is None else list(self._providers)

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's own metadata entries; the graph is loaded for them, see :meth:`load` for errors."""
        return dict(self.load().get_modelmeta().custom_metadata_map)

    @property
    def is_loaded(self) -> bool:
        """Whether the graph is in memory."""
        return self._loaded is not None

    def load(self) -> Any:
        """Load the graph unless it is loaded; return onnxruntime's session.

        Raises:
            ProviderError: a provider is not part of this onnxruntime.
            SiglipOnnxError: ``threads`` is out of range.
            BundleError: onnxruntime cannot load the graph, or its weights lie outside its folder.
            SiglipOnnxError: the session was closed.
        """
        with self._lock:
            if self._closed:
                raise SiglipOnnxError("This model is closed. Load it again: siglip_onnx.load(...)")
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def preload(self) -> None:
        """Start loading in the background; an error is raised at the first use, not here."""

        def load() -> None:
            with contextlib.suppress(SiglipOnnxError):  # the first use raises it again
                self.load()

        # Not a daemon: an interpreter that exits while onnxruntime works in a daemon thread aborts.
        threading.Thread(target=load).start()

    def unload(self) -> None:
        """Free the graph's memory, after the runs in progress; it loads again when needed."""
        with self._lock:
            self._loaded = None
        return_free_memory()

    def close(self) -> None:
        """Free the graph's memory for good; runs in progress in other threads finish. Closing again does nothing."""
        with self._lock:
            self._closed = True
        self.unload()

    def run_many(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs of these names, arrays of the graph's shapes, for inputs by name.

        Raises:
            BundleError: the graph cannot be loaded or run; see :meth:`load` for further errors.
        """
        session = self.load()
        try:
            results: list[NDArray[np.float32]] = session.run(list(outputs), dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no other root
            raise BundleError(
                f"{self._path} failed to run: {first_line(error)}. Check that there is enough memory, and the model "
                "with: siglip-onnx models check"
            ) from error
        return results

    def run(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the output of this name; see :meth:`run_many`."""
        return self.run_many([output], inputs)[0]

    def embed(self, inputs: Mapping[str, NDArray[Any]]) -> Floats:
        """Return the unit embeddings f32 ``(N, D)`` of one run of a tower.

        Raises:
            BundleError: the graph returned NaN or infinity; see :meth:`run_many` for further errors.
        """
        embeddings = l2_normalize(self.run("pooler_output", inputs))
        if not np.isfinite(embeddings).all():
            raise BundleError(
                f"{self._path} returned NaN or infinity. Export or download the model again, or try another variant or "
                "provider."
            )
        return embeddings

    def _load(self) -> Any:
        providers = _check_providers(self._providers)
        threads = available_threads() if self._threads is None else self._threads
        options = _options(threads, exact_int8=int8_saturates() if self._exact_int8 is None else self._exact_int8)
        if CPU_PROVIDER not in providers:
            # Otherwise onnxruntime quietly computes on the CPU what the provider cannot.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            open_regular(self._path).close()  # onnxruntime would wait for the writer of a pipe
            # Without enable_fallback=0 onnxruntime would print to stdout and retry on other providers.
            return onnxruntime.InferenceSession(str(self._path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no other root
            problem = f"{self._path} cannot be loaded with {', '.join(providers)}: {first_line(error)}."
            if providers == [CPU_PROVIDER]:
                raise BundleError(f"{problem} Check the model with: siglip-onnx models check") from error
            raise ProviderError(
                f"{problem} Try {CPU_PROVIDER}, or add it as the last provider, or try variant fp32 or fp16: int8 and "
                "q4 use operators that few providers have."
            ) from error

    def _abandon(self) -> None:
        """Leak a session that a child process inherited: destroying it would wait for threads that no longer exist."""
        if self._loaded is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
            self._loaded = None


def open_tower(bundle: Bundle, tower: str, variant: str, options: RuntimeOptions) -> LazySession:
    """Return the session of one tower, :data:`.VISION` or :data:`.TEXT`; its graph loads at first use."""
    exact_int8 = options.exact_int8
    if exact_int8 is None and bundle.manifest.variants[variant].within_7_bits(tower):
        exact_int8 = False
    return LazySession(
        bundle.path / graph_path(tower, variant),
        providers=options.providers,
        threads=options.session_threads,
        exact_int8=exact_int8,
    )


@cache
def int8_saturates() -> bool:
    """Measure whether this CPU's fast int8 instructions saturate, as those of x86 without VNNI do.

    They add two products in 16 bits, and so return about half of a sum of large products. onnxruntime's slower kernels
    are exact everywhere, but take twice the time where the fast ones would be exact too.
    """
    rows, depth = 4, 32
    probe = onnxruntime.InferenceSession(
        str(INT8_PROBE), _options(1, exact_int8=False), providers=[CPU_PROVIDER], enable_fallback=0
    )
    (sums,) = probe.run(["product"], {"x": np.ones((rows, depth), np.float32)})
    return not np.allclose(sums, depth, rtol=0.05)


def return_free_memory() -> None:
    """Give memory freed by an unloaded session back to the operating system, which glibc would otherwise keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has no such function, and returns memory by itself
        trim(0)


def available_providers() -> list[str]:
    """Return the execution providers of the installed onnxruntime."""
    return list(onnxruntime.get_available_providers())


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(onnxruntime.__version__)


def _check_providers(providers: Sequence[str] | None) -> list[str]:
    if providers is None:
        return [CPU_PROVIDER]
    if isinstance(providers, str):
        raise ProviderError(f"providers must be a list of str, not one str: [{providers!r}].")
    missing = [name for name in providers if name not in available_providers()]
    if missing or not providers:
        raise ProviderError(
            f"Execution provider {', '.join(missing) or '(none named)'} is not available; this onnxruntime "
            f"{runtime_version()} has {', '.join(available_providers())}. Install the onnxruntime wheel for that "
            "provider, or choose another."
        )
    return list(providers)


def _options(threads: int, *, exact_int8: bool) -> Any:
    """Return options for a session with its own pool of ``threads``.

    The threads spin while they wait during a run, and stop when it ends: threads of one tower that went on spinning
    would take the CPUs from the other tower.
    """
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise SiglipOnnxError(f"threads is {threads!r}, expected a number from 1 to {MAX_THREADS}.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", "1" if exact_int8 else "0")
    return options
