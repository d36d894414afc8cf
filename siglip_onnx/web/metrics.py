"""Counters and histograms in Prometheus's text format."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "siglip_request_count": "Requests, by route and status.",
    "siglip_request_success": "Requests answered with a result.",
    "siglip_request_failure": "Requests refused or failed.",
    "siglip_request_duration": "Seconds from a request's header to its reply.",
    "siglip_request_queue_duration": "Seconds that a request waited for a worker.",
    "siglip_request_decode_duration": "Seconds to decode one image.",
    "siglip_request_inference_duration": "Seconds to resize and embed one image, or to embed one text.",
}


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    def lines(self, name: str, labels: str) -> Iterator[str]:
        cumulative = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            cumulative += count
            yield f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {cumulative}'
        braced = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braced} {self.total_s:.6f}"
        yield f"{name}_count{braced} {cumulative}"


class Metrics:
    """Counters and histograms; thread-safe. Label values are the server's own words, never a client's."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str], int] = {}
        self._histograms: dict[tuple[str, str], _Histogram] = {}
        self._lock = threading.Lock()

    def count(self, name: str, **labels: str) -> None:
        """Increment a counter."""
        key = (name, _labels(labels))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + 1

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        bucket = next((number for number, bound in enumerate(BUCKETS_S) if seconds <= bound), len(BUCKETS_S))
        with self._lock:
            histogram = self._histograms.setdefault((name, _labels(labels)), _Histogram())
            histogram.counts[bucket] += 1
            histogram.total_s += seconds

    def text(self, queue_size: int) -> str:
        """Return all metrics in Prometheus's text format."""
        lines = [
            "# HELP siglip_queue_size Requests being received, queued or processed.",
            "# TYPE siglip_queue_size gauge",
            f"siglip_queue_size {queue_size}",
        ]
        with self._lock:
            for name, help_text in _HELP.items():
                counters = [f"{key[0]}{{{key[1]}}} {value}" for key, value in self._counters.items() if key[0] == name]
                histograms = [
                    line
                    for (histogram_name, labels), histogram in self._histograms.items()
                    if histogram_name == name
                    for line in histogram.lines(name, labels)
                ]
                if counters or histograms:
                    kind = "histogram" if histograms else "counter"
                    lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *counters, *histograms]
        return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
