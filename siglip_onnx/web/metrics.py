"""Counters and histograms in Prometheus's text format."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "siglip_request_count": "Requests that were answered.",
    "siglip_request_success": "Requests that were answered with a result.",
    "siglip_request_failure": "Requests that were refused or failed.",
    "siglip_request_duration": "Seconds from a request's header to its answer.",
    "siglip_request_queue_duration": "Seconds that a request waited for a worker.",
    "siglip_request_decode_duration": "Seconds to decode one picture.",
    "siglip_request_inference_duration": "Seconds to resize and embed one picture, or to embed one text.",
}


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def lines(self, name: str, labels: str) -> Iterator[str]:
        seen = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {seen}'
        braced = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braced} {self.total_s:.6f}"
        yield f"{name}_count{braced} {seen}"


class Metrics:
    """What the server did; safe for all threads. Label values are the server's own words, never a client's."""

    def __init__(self, queue_size: Callable[[], int] = lambda: 0) -> None:
        self._queue_size = queue_size
        self._counters: dict[tuple[str, str], int] = {}
        self._histograms: dict[tuple[str, str], _Histogram] = {}
        self._lock = threading.Lock()

    def count(self, name: str, **labels: str) -> None:
        """Add one."""
        key = (name, _labels(labels))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + 1

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration."""
        bucket = next((number for number, bound in enumerate(BUCKETS_S) if seconds <= bound), len(BUCKETS_S))
        with self._lock:
            histogram = self._histograms.setdefault((name, _labels(labels)), _Histogram())
            histogram.counts[bucket] += 1
            histogram.total_s += seconds

    def text(self) -> str:
        """Return everything in Prometheus's text format."""
        lines = [
            "# HELP siglip_queue_size Requests being read, waiting or worked on.",
            "# TYPE siglip_queue_size gauge",
        ]
        lines.append(f"siglip_queue_size {self._queue_size()}")
        with self._lock:
            for name, help_text in _HELP.items():
                found = [f"{key[0]}{{{key[1]}}} {value}" for key, value in self._counters.items() if key[0] == name]
                kind = "counter"
                for (histogram_name, labels), histogram in self._histograms.items():
                    if histogram_name == name:
                        kind = "histogram"
                        found += histogram.lines(name, labels)
                if found:
                    lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *found]
        return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
