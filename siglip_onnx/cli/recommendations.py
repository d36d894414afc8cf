"""Print the recommended checkpoints as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..hub.names import OWNER
from ..hub.published import OPEN_CLIP
from ..hub.recommend import Limits, Recommendation, measured_on
from .output import format_table, print_json, report

_SHOWN = 5


def print_recommendations(found: Sequence[Recommendation], limits: Limits, *, multilingual: bool) -> None:
    """Print the best five, and on stderr what the columns mean and what to type next."""
    header = ("model", "XM3600" if multilingual else "INet", "image ms", "text ms", "RAM MB", "disk MB")
    shown = found[:_SHOWN]
    click.echo(format_table(header, [_cells(each, multilingual) for each in shown]))
    report("")
    if len(found) > _SHOWN:
        within = f" within {limits}" if any(limits) else ""
        report(f"The first {_SHOWN} of {len(found)}{within}; all: --json")
    for line in _explain(shown, multilingual):
        report(line)
    report(f"Next: siglip-onnx models pull {found[0].checkpoint.name}")


def print_recommendations_json(found: Sequence[Recommendation], limits: Limits, *, multilingual: bool) -> None:
    """Print all that fit as one JSON document."""
    print_json(
        {
            "multilingual": multilingual,
            "limits": limits._asdict(),
            "measured_on": measured_on(),
            "models": [_describe(each) for each in found],
        }
    )


def _describe(each: Recommendation) -> dict[str, Any]:
    checkpoint = each.checkpoint
    return {
        "model": checkpoint.name,
        "repository": f"{OWNER}/{checkpoint.name}",
        "languages": checkpoint.languages,
        "accuracy": checkpoint.accuracy and checkpoint.accuracy._asdict(),
        "ranked_by": each.accuracy,
        **each.cost._asdict(),
    }


def _cells(each: Recommendation, multilingual: bool) -> tuple[str, ...]:
    cost, about = each.cost, "~" if each.cost.estimated else ""
    mark = "" if multilingual or each.checkpoint.accuracy is None else _mark(each.checkpoint.accuracy.protocol)
    return (
        each.checkpoint.name,
        "" if each.accuracy is None else f"{each.accuracy}{mark}",
        f"{about}{cost.image_ms:.0f}",
        f"{about}{cost.text_ms:.0f}",
        f"{about}{cost.memory_mb}",
        f"{cost.disk_mb}",
    )


def _mark(protocol: str) -> str:
    return "*" if protocol == OPEN_CLIP else ""


def _explain(shown: Sequence[Recommendation], multilingual: bool) -> Iterator[str]:
    if multilingual:
        yield "XM3600: recall@1 of text to image in percent, 36 languages, SigLIP 2 paper."
        if shown[-1].accuracy is None:
            yield "Without a figure: none was published that can be compared."
    else:
        yield "INet: ImageNet top-1 in percent, SigLIP 2 paper; * from open_clip."
    yield "Time and memory of int8; yours will differ. Measured on"
    yield f"{measured_on()}."
    if any(each.cost.estimated for each in shown):
        yield "~: not measured, but estimated from the nearest measured shape by operations;"
        yield "may be a third off."
