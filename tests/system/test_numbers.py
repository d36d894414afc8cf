"""Numbers as people read them."""

from __future__ import annotations

from siglip_onnx.system.numbers import format_measurement, format_probability


def test_measurements_have_three_significant_digits() -> None:
    assert [format_measurement(value) for value in (0.03124, 4.149, 43.06, 335.4)] == ["0.0312", "4.15", "43.1", "335"]


def test_probabilities_are_never_rounded_to_0_or_1() -> None:
    values = (0, 0.000_14, 0.5, 0.9871, 0.999_96, 1)
    assert [format_probability(value) for value in values] == [
        "0.00",
        "1.40e-04",
        "0.500",
        "0.987",
        "1-4.0e-05",
        "1.00",
    ]
