"""Numbers as people read them: measurements and probabilities with three significant digits."""

from __future__ import annotations


def format_measurement(value: float) -> str:
    """Return a positive value with about three significant digits: ``0.0312``, ``4.15``, ``43.1``, ``335``."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.{2 if value < 10 else 1}f}"


def format_probability(value: float) -> str:
    """Return a probability with three significant digits, never rounded to 0 or 1: ``0.987``, ``1.40e-04``."""
    if 0 < value < 0.001:
        return f"{value:.2e}"
    if 0.9995 <= value < 1:
        return f"1-{1 - value:.1e}"
    return f"{value:#.3g}"
