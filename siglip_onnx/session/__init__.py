"""Run ONNX graphs with onnxruntime, or with OpenVINO where that provider is requested.

This is the only module that imports onnxruntime, and :mod:`.openvino` the only one that imports openvino.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..bundle import Bundle, graph_path
from ..bundle.integrity import OpenedFiles
from ..bundle.manifest import POOLED, data_path
from ..errors import BundleError, OptionError, ProviderError, SiglipOnnxError, first_line
from ..head import Floats, l2_normalize
from ..options import Provider, RuntimeOptions, provider_names
from ..system.files import open_regular
from ..system.fork import call_after_fork, renewed_lock, weak_call
from ..system.telemetry import ONNXRUNTIME_CAME_FIRST
from ..system.threads import MAX_THREADS, available_threads
from .int8_graph import ZERO_POINT, parse_int8_graph

CPU_PROVIDER, OPENVINO = "CPUExecutionProvider", "OpenVINO"
FP32, _INT8_VARIANTS = "fp32", ("int8", "qdq")
# Kernels of int8 products, the fastest first, with the session options that select them.
FAST, EXACT, WITHOUT_KLEIDIAI = "fast", "exact", "exact, without KleidiAI"
_KERNELS = {
    FAST: {"session.x64quantprecision": "0"},
    EXACT: {"session.x64quantprecision": "1"},
    WITHOUT_KLEIDIAI: {"session.x64quantprecision": "1", "mlas.disable_kleidiai": "1"},
}
_MAX_GRAPH_BYTES = 20_000_000  # of a graph whose weights are beside it
_X86 = ("x86_64", "amd64")
_log = logging.getLogger(__name__)
_LOG_FATAL_ONLY = 4  # failures are raised; onnxruntime must not print them too
INT8_PROBE = Path(__file__).parents[1] / "system" / "int8_probe.onnx"  # made by scripts/make_int8_probe.py

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
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        workers: int = 1,
        exact_int8: bool | None = None,
        few_runs: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep the arguments; nothing is read before the first use.

        Args:
            path: the graph; its weights are beside it and are mapped, not copied.
            providers: execution providers in onnxruntime's spelling, or ``["OpenVINO"]`` alone, each as a name or a
                pair of name and options; the CPU by default.
            threads: intra-op threads; by default what the process may use, see :func:`.available_threads`.
            workers: runs at the same time that are expected; OpenVINO has threads for that many.
            exact_int8: whether to use exact, slower int8 kernels; by default where this CPU's fast ones saturate, see
                :func:`int8_saturates`. Weights within 7 bits never saturate and do not need them.
            few_runs: whether to load an int8 graph in the way of :mod:`.int8_graph`: sooner, for runs that take 5 to
                30 % longer, with the same results.
            check: called before the graph is read, each time; raises if it is not to be read.
        """
        self._path = path
        self._providers = providers
        self._threads = threads
        self._workers = workers
        self._exact_int8 = exact_int8
        self._few_runs, self.check_files = few_runs, check
        self._num_bulk_users = 0  # in blocks of `one_thread_per_run`
        self._quick_weights: dict[str, Any] | None = None  # inputs of a graph that is loaded for few runs
        self._loaded: Any = None
        self._closed = False
        self._lock = renewed_lock(self)
        call_after_fork(self, weak_call(self._abandon))

    @property
    def providers(self) -> list[str]:
        """The execution providers in use: those requested, or the CPU; never silently replaced."""
        return [CPU_PROVIDER] if self._providers is None else provider_names(self._providers)

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the graph runs on the CPU alone, one input at a time; other providers may run batches."""
        return runs_on_cpu(self.providers)

    @property
    def copies_weights(self) -> bool:
        """Whether loading the graph takes memory for its weights; otherwise only running it does."""
        quickly = self._few_runs and not self._num_bulk_users and platform.machine().lower() in _X86
        return not quickly or self.providers != [CPU_PROVIDER]

    @property
    def metadata(self) -> dict[str, str]:
        """The graph's own metadata entries; the graph is loaded for them, see :meth:`load` for errors."""
        session = self.load()
        return dict(session.metadata() if OPENVINO in self.providers else session.get_modelmeta().custom_metadata_map)

    @property
    def is_loaded(self) -> bool:
        """Whether the graph is in memory."""
        return self._loaded is not None

    def load(self) -> Any:
        """Load the graph unless it is loaded; return the session of onnxruntime or OpenVINO.

        Raises:
            ProviderError: a provider is not part of this onnxruntime, or refuses its options.
            MissingExtraError: OpenVINO is requested, but not installed.
            SiglipOnnxError: ``threads`` is out of range.
            BundleError: the graph cannot be loaded, its weights lie outside its folder, or the model was replaced.
            SiglipOnnxError: the session was closed.
        """
        with self._lock:
            return self._load_once()

    def preload(self) -> None:
        """Start loading in the background; an error is raised at the first use, not here."""

        def load() -> None:
            with contextlib.suppress(Exception):  # the first use raises it again
                self.load()

        if self.is_loaded:
            return
        # Not a daemon: an interpreter that exits while onnxruntime works in a daemon thread aborts.
        with contextlib.suppress(RuntimeError):  # no further thread is allowed: the first use loads the graph
            threading.Thread(target=load).start()

    def unload(self) -> None:
        """Free the graph's memory, after the runs in progress; it loads again when needed."""
        with self._lock:
            self._loaded = self._quick_weights = None
        return_free_memory()

    def close(self) -> None:
        """Free the graph's memory for good; runs in progress in other threads finish. Closing again does nothing."""
        with self._lock:
            self._closed = True
        self.unload()

    @contextlib.contextmanager
    def one_thread_per_run(self) -> Iterator[None]:
        """Within the block each run uses one thread, so that several threads may run the graph at full speed.

        The graph is loaded again for that, in place of the loaded one, and again when it is needed after the block.
        """
        self._count_bulk_users(1)
        try:
            yield
        finally:
            self._count_bulk_users(-1)

    def run_many(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs of these names, arrays of the graph's shapes, for inputs by name.

        Raises:
            BundleError: the graph cannot be loaded or run; see :meth:`load` for further errors.
        """
        with self._lock:
            session, weights = self._load_once(), self._quick_weights or {}
        try:
            results: list[NDArray[np.float32]] = session.run(list(outputs), {**inputs, **weights})
        except Exception as error:  # the exceptions of onnxruntime and of OpenVINO share no other root
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
        return self.check_finite(l2_normalize(self.run(POOLED, inputs)))

    def check_finite(self, values: Floats) -> Floats:
        """Return values that were computed from outputs of this graph.

        Raises:
            BundleError: there is NaN or infinity among them.
        """
        if not np.isfinite(values).all():
            raise BundleError(
                f"{self._path} returned NaN or infinity. Export or download the model again, or try another variant or "
                "provider."
            )
        return values

    def _count_bulk_users(self, change: int) -> None:
        with self._lock:
            self._num_bulk_users += change
            if self._num_bulk_users == max(change, 0):  # the first one came, or the last one left
                self._loaded = self._quick_weights = None
        return_free_memory()

    def _load_once(self) -> Any:
        """Load the graph unless it is loaded; the caller holds the lock."""
        if self._closed:
            raise SiglipOnnxError("This model is closed. Load it again: siglip_onnx.load(...)")
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        self.check_files()
        providers = _check_providers(self._providers)
        threads = 1 if self._num_bulk_users else _check_threads(self._threads)
        if OPENVINO in self.providers:
            return self._load_openvino(threads)
        kernels = _choose_kernels(self._exact_int8)
        options = _options(threads, kernels)
        if not self.copies_weights:
            with contextlib.suppress(Exception):  # raised again by loading it in the usual way
                session, self._quick_weights = _load_quickly(self._path, threads, kernels)
                return session
        names = provider_names(providers)
        if CPU_PROVIDER not in names:
            # Otherwise onnxruntime quietly computes on the CPU what the provider cannot.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            open_regular(self._path).close()  # onnxruntime would wait for the writer of a pipe
            # Without enable_fallback=0 onnxruntime would print to stdout and retry on other providers.
            return onnxruntime.InferenceSession(str(self._path), options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no other root
            problem = f"{self._path} cannot be loaded with {', '.join(names)}: {first_line(error)}."
            if names == [CPU_PROVIDER]:
                raise BundleError(f"{problem} Check the model with: siglip-onnx models check") from error
            raise ProviderError(
                f"{problem} Try {CPU_PROVIDER}, or add it as the last provider, or try variant fp32 or fp16: int8 and "
                "q4 use operators that few providers have."
            ) from error

    def _load_openvino(self, threads: int) -> Any:
        (provider,) = self._providers or ()
        settings = {} if isinstance(provider, str) else provider[1]
        session = import_openvino().OpenVinoSession
        return session(self._path, threads, self._workers, settings, exact_int8=self._exact_int8)

    def _abandon(self) -> None:
        """Leak a session that a child process inherited: destroying it would wait for threads that no longer exist."""
        if self._loaded is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
            self._loaded = None


def _load_quickly(path: Path, threads: int, kernels: str) -> tuple[Any, dict[str, NDArray[np.uint8]]]:
    """Return the session of an int8 graph that copies no weights, and its inputs beside those of the graph.

    Raises:
        Exception: it is another graph, or cannot be loaded.
    """
    with open_regular(path) as file:
        model = file.read(_MAX_GRAPH_BYTES)
    graph = parse_int8_graph(model, data_path(path.name))
    weights = {}
    if kernels == EXACT:
        with open_regular(path.with_name(data_path(path.name))) as file:
            for name, weight in graph.weights.items():
                weights[name] = np.empty(weight.shape, np.uint8)
                file.seek(weight.offset)
                if file.readinto(weights[name].data) != weight.length:
                    raise ValueError("its weights are damaged")
                weights[name] ^= np.uint8(ZERO_POINT)  # adds it to an int8
    options = _options(threads, kernels)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    content = graph.serialize(unsigned=kernels == EXACT)
    return onnxruntime.InferenceSession(content, options, providers=[CPU_PROVIDER], enable_fallback=0), weights


def open_tower(bundle: Bundle, tower: str, variant: str, options: RuntimeOptions) -> LazySession:
    """Return the session of one tower, :data:`.VISION` or :data:`.TEXT`; its graph loads at first use."""
    exact_int8, files = options.exact_int8, bundle.manifest.variants[variant].files
    if exact_int8 is None and bundle.manifest.variants[variant].within_7_bits(tower):
        exact_int8 = False
    return LazySession(
        bundle.path / graph_path(tower, variant),
        providers=options.providers,
        threads=options.session_threads,
        workers=options.workers,
        exact_int8=exact_int8,
        few_runs=options.few_runs and options.workers == 1,
        check=OpenedFiles(bundle.path, {**bundle.manifest.files, **files}).check,
    )


def choose_variant(bundle: Bundle, options: RuntimeOptions) -> str:
    """Return the variant to run: the one named, or the bundle's best one that this CPU computes correctly.

    Raises:
        BundleError: the bundle does not have the variant.
        ProviderError: no int8 kernel is correct on this CPU, and int8 was named or there is no fp32.
    """
    variant = bundle.choose_variant(options.variant)
    try:
        check_int8(variant, options)
    except ProviderError:
        if options.variant is not None or FP32 not in bundle.manifest.variants:
            raise
        _log.warning(
            "onnxruntime computes int8 incorrectly on this CPU with every kernel; variant fp32 is used instead."
        )
        variant = bundle.choose_variant(FP32)
        bundle.check_unchanged(variant)
    return variant


def check_int8(variant: str, options: RuntimeOptions) -> None:
    """Check that this CPU computes a variant correctly.

    Raises:
        ProviderError: it is an int8 variant, the CPU runs it, and no kernel is correct.
    """
    on_cpu = options.providers is None or CPU_PROVIDER in provider_names(options.providers)
    if variant in _INT8_VARIANTS and on_cpu and int8_kernels() is None:
        raise ProviderError(
            "onnxruntime computes int8 incorrectly on this CPU with every kernel. Use the variant fp32, and report "
            "this with the output of: siglip-onnx doctor --json"
        )


def int8_saturates() -> bool:
    """Say whether this CPU's fast int8 instructions are wrong, as those of x86 without VNNI, which saturate, are.

    They add two products in 16 bits, and so return about half of a sum of large products. onnxruntime's slower kernels
    are exact there, but take twice the time where the fast ones would be exact too.
    """
    return int8_kernels() != FAST


@cache
def int8_kernels() -> str | None:
    """Measure which of onnxruntime's int8 kernels are correct on this CPU; return the fastest, None if none is."""
    return next((kernels for kernels in _KERNELS if _is_correct(kernels)), None)


def _is_correct(kernels: str) -> bool:
    rows, depth = 4, 32
    probe = onnxruntime.InferenceSession(
        str(INT8_PROBE), _options(1, kernels), providers=[CPU_PROVIDER], enable_fallback=0
    )
    (sums,) = probe.run(["product"], {"x": np.ones((rows, depth), np.float32)})
    return bool(np.allclose(sums, depth, rtol=0.05))


def _choose_kernels(exact_int8: bool | None) -> str:
    if int8_kernels() == WITHOUT_KLEIDIAI:
        return WITHOUT_KLEIDIAI
    return EXACT if (int8_saturates() if exact_int8 is None else exact_int8) else FAST


def return_free_memory() -> None:
    """Give memory freed by an unloaded session back to the operating system, which glibc would otherwise keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has no such function, and returns memory by itself
        trim(0)


def import_openvino() -> Any:
    """Return the module :mod:`.openvino`, whose library takes longer to import than all the rest.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    return import_module(".openvino", __package__)


def runs_on_cpu(providers: Sequence[str]) -> bool:
    """Say whether all of these providers, by name, compute on the CPU."""
    return set(providers) <= {CPU_PROVIDER, OPENVINO}


def available_providers() -> list[str]:
    """Return the execution providers of the installed onnxruntime."""
    return list(onnxruntime.get_available_providers())


def runtime_path() -> Path:
    """Return the folder that onnxruntime was imported from."""
    return Path(onnxruntime.__file__).parent


def runtime_version() -> str:
    """Return the version of onnxruntime."""
    return str(onnxruntime.__version__)


def _check_providers(providers: Sequence[Provider] | None) -> list[Provider]:
    if providers is None:
        return [CPU_PROVIDER]
    if isinstance(providers, str):
        raise ProviderError(f"providers must be a list of str, not one str: [{providers!r}].")
    names = provider_names(providers)
    if names == [OPENVINO]:
        return list(providers)
    if OPENVINO in names:
        raise ProviderError(
            f"OpenVINO runs a whole model, and was requested with other providers: {', '.join(names)}. Name it alone."
        )
    missing = [name for name in names if name not in available_providers()]
    if missing or not providers:
        raise ProviderError(
            f"Execution provider {', '.join(missing) or '(none named)'} is not available; this onnxruntime "
            f"{runtime_version()} has {', '.join(available_providers())}. Install the onnxruntime wheel for that "
            f"provider, or choose another, or {OPENVINO}. What is installed: siglip-onnx doctor"
        )
    return list(providers)


def _check_threads(threads: int | None) -> int:
    if threads is None:
        return available_threads()
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise OptionError(f"threads is {threads!r}, expected a number from 1 to {MAX_THREADS}.")
    return threads


def _options(threads: int, kernels: str) -> Any:
    """Return options for a session with its own pool of ``threads``.

    The threads spin while they wait during a run, and stop when it ends: threads of one tower that went on spinning
    would take the CPUs from the other tower.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in _KERNELS[kernels].items():
        options.add_session_config_entry(name, value)
    return options
