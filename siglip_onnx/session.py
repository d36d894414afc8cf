"""The only place that imports onnxruntime: threads, execution providers, and running a graph by name."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .errors import BundleError, ProviderError
from .system.fork import call_after_fork, renewed_lock
from .system.telemetry import ONNXRUNTIME_CAME_FIRST
from .system.threads import MAX_THREADS, available_threads

CPU_PROVIDER = "CPUExecutionProvider"
_LOG_FATAL_ONLY = 4  # what fails is raised; onnxruntime need not print it as well
_INT8_PROBE = Path(__file__).parent / "system" / "int8_probe.onnx"  # made by scripts/make_int8_probe.py

if ONNXRUNTIME_CAME_FIRST:  # too late for its first message, in time for the others
    onnxruntime.disable_telemetry_events()


class Session:
    """One ONNX graph, loaded."""

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        saturation_safe: bool = False,
    ) -> None:
        """Load ``path``.

        Args:
            path: the graph; its weights lie beside it and are mapped, not copied.
            providers: execution providers in onnxruntime's spelling; the CPU by default.
            threads: intra-op threads; by default what the process may use, see :func:`available_threads`.
            saturation_safe: its int8 weights are within 7 bits, so that no CPU's fast int8 instructions saturate;
                otherwise slower, exact ones are used where they would, see :func:`int8_saturates`.

        Raises:
            ProviderError: a provider is not part of this onnxruntime, or ``threads`` is no number above 0.
            BundleError: onnxruntime cannot load the graph, or its weights lie outside its folder.
        """
        self.providers = _check_providers(providers)
        self.threads = available_threads() if threads is None else threads
        self._path = path
        self._saturation_safe = saturation_safe
        self._lock = renewed_lock(self)
        self._loaded: Any = self._load()
        call_after_fork(self, _Abandon(self))

    def _load(self) -> Any:
        options = _options(self.threads, exact_int8=not self._saturation_safe and int8_saturates())
        if CPU_PROVIDER not in self.providers:
            # Otherwise onnxruntime quietly computes on the CPU what the provider cannot.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            # Without enable_fallback=0 onnxruntime would print to stdout and retry on other providers.
            session = onnxruntime.InferenceSession(
                str(self._path), options, providers=self.providers, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no other root
            problem = f"{self._path} cannot be loaded with {', '.join(self.providers)}: {_first_line(error)}."
            if self.providers == [CPU_PROVIDER]:
                raise BundleError(f"{problem} Check the model with: siglip-onnx info --verify-files") from error
            raise ProviderError(
                f"{problem} Try {CPU_PROVIDER}, or add it as the last provider, or try variant fp32 or fp16: int8 and "
                "q4 use operators that few providers have."
            ) from error
        return session

    def _session(self) -> Any:
        """Return onnxruntime's session; in a child process, whose parent's threads did not come along, a new one."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def abandon(self) -> None:
        """Give up a session that a child process inherited: to destroy it would wait for its threads for ever."""
        if self._loaded is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
            self._loaded = None

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's own metadata entries."""
        return dict(self._session().get_modelmeta().custom_metadata_map)

    def run_many(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs of those names."""
        session = self._session()
        try:
            results: list[NDArray[np.float32]] = session.run(list(outputs), dict(inputs))
        except Exception as error:  # onnxruntime's exceptions share no other root
            raise BundleError(
                f"{self._path} failed to run: {_first_line(error)}. Check that there is memory enough, and the model "
                "with: siglip-onnx info --verify-files"
            ) from error
        return results

    def run(self, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the output of that name."""
        return self.run_many([output], inputs)[0]


class _Abandon:
    """Gives a session up in a child process, without keeping it alive until then."""

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)

    def __call__(self) -> None:
        session = self._session()
        if session is not None:
            session.abandon()


@cache
def int8_saturates() -> bool:
    """Say whether this CPU's fast int8 instructions saturate, as those of x86 without VNNI do; measured, not looked up.

    They add two products in 16 bits, and so give about half of a sum of large ones. onnxruntime's slower kernels are
    exact everywhere, but take twice the time where the fast ones would have been exact too.
    """
    rows, depth = 4, 32
    probe = onnxruntime.InferenceSession(
        str(_INT8_PROBE), _options(1, exact_int8=False), providers=[CPU_PROVIDER], enable_fallback=0
    )
    (sums,) = probe.run(["product"], {"x": np.ones((rows, depth), np.float32)})
    return not np.allclose(sums, depth, rtol=0.05)


def return_free_memory() -> None:
    """Give memory that a closed session freed back to the system, which glibc otherwise keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none, and needs none
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
        raise ProviderError(f"Providers cannot be one str; give a list: [{providers!r}].")
    missing = [name for name in providers if name not in available_providers()]
    if missing or not providers:
        raise ProviderError(
            f"Execution provider {', '.join(missing) or '(none named)'} is not available; this onnxruntime "
            f"{runtime_version()} has {', '.join(available_providers())}. Install the onnxruntime wheel for that "
            "provider, or ask for another."
        )
    return list(providers)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")


def _options(threads: int, *, exact_int8: bool) -> Any:
    """Return options for a session with so many threads of its own.

    They wait for each other spinning while the session runs, and stop when it ends: spinning on, one tower's threads
    would take the CPUs from the other tower's.
    """
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise ProviderError(f"threads is {threads!r}, expected a number from 1 to {MAX_THREADS}.")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", "1" if exact_int8 else "0")
    return options
