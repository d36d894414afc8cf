"""Everything that documents say of measured figures, from benchmarks/results/: run it with `make report`.

Writes the README's tables between their marks, docs/benchmarks.md and the plots in docs/plots/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from details import details
from fresh import RESULTS, ROOT
from verdicts import describe_commands, is_ours, main_rows, verdicts

from siglip_onnx.bench.schema import END_TO_END, TEXT, VISION, Document, Row, read_document
from siglip_onnx.bench.tables import Table, explain, markdown, start_memory_mb, start_seconds, three_digits

README, DETAILS, PLOTS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots"
SUITE, NO_VNNI, QUANTIZATION = (RESULTS / f"{name}.json" for name in ("base_multilingual", "base_multilingual_no_vnni",
                                                                      "quantization"))  # fmt: skip


@click.command(help=__doc__)
def main() -> None:
    """Write everything."""
    from siglip_onnx.bench.plots import draw_plots  # noqa: PLC0415 - tables need no matplotlib

    document = read_document(SUITE)
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    DETAILS.write_text(details(document), encoding="utf-8")
    for path in draw_plots(document, PLOTS):
        click.echo(path, err=True)


def with_tables(text: str) -> str:
    """Return the README's text with every table as the results have it."""
    for mark, table in readme_parts().items():
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def readme_parts() -> dict[str, str]:
    """Return what stands between the README's marks."""
    return {
        "benchmarks": summary(read_document(SUITE)),
        "no_vnni": describe_no_vnni(json.loads(NO_VNNI.read_text(encoding="utf-8"))),
        "quantization": quantization_table(json.loads(QUANTIZATION.read_text(encoding="utf-8"))),
    }


def summary(document: Document) -> str:
    """Return the README's part: the table, who is ahead, and what whole commands take."""
    return "\n\n".join(
        [
            markdown(summary_table(document)),
            "\n".join(f"* {line}" for line in [*verdicts(document), *describe_commands(document)]),
            explain(document),
        ]
    )


def summary_table(document: Document) -> Table:
    """Return medians by configuration, the fastest vision tower first."""
    header = ("median", "vision ms", "text ms", "end to end ms", "cosine min, vision / text", "start s", "memory MB",
              "on disk MB")  # fmt: skip
    rows = sorted(main_rows(document), key=lambda row: row.summary(VISION).median)
    return header, [summary_cells(row) for row in rows]


def summary_cells(row: Row) -> list[str]:
    """Return a line of :func:`summary_table`; this engine's are bold."""
    times = (row.summary(stage) for stage in (VISION, TEXT, END_TO_END))
    fidelity = row.fidelity
    return [
        f"**{row.name}**" if is_ours(row) else row.name,
        *(f"{three_digits(time.median)}{' unstable' if time.unstable else ''}" for time in times),
        f"{fidelity.vision_cosine_min:.5f} / {fidelity.text_cosine_min:.5f}",
        f"{start_seconds(row):.2f}",
        f"{start_memory_mb(row):.0f}",
        f"{row.size_bytes / 1e6:.0f}",
    ]


def describe_no_vnni(results: Mapping[str, Any]) -> str:
    """Return what was measured on a CPU without VNNI, before the suite: this engine beside optimum's graphs."""
    towers, fidelity = results["towers"], results["fidelity"]
    lines = [
        [f"{tower} tower", *(f"{towers[f'{tower} {variant}{origin}']['median_ms']:.0f}" for variant, origin in
                             (("fp32", ""), ("int8", ""), ("fp32", " of optimum"), ("int8", " of optimum"))),
         f"{fidelity[f'{tower}_int8_min_cosine_to_fp32']:.5f}"]
        for tower in ("vision", "text")
    ]  # fmt: skip
    header = ("median ms", "fp32", "int8", "fp32, optimum's graph", "int8, optimum's graph", "int8: cosine min to fp32")
    return markdown((header, lines))


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return what each variant loses on each kind of weights."""
    kinds = results["weights"]
    lines = []
    for variant in ("int8", "int8, not equalized", "fp16", "q4"):
        size = kinds["plain"][variant].get("megabytes")
        cells = [
            f"{one[variant]['vision_cosine_min']:.4f} / {one[variant]['text_cosine_min']:.4f}" for one in kinds.values()
        ]
        lines.append([variant, "" if size is None else f"{size:.0f}", *cells])
    return markdown((("smallest cosine to fp32, vision / text", "MB", *kinds), lines))


if __name__ == "__main__":
    main()
