"""Write everything that the documents say of measured figures, from benchmarks/results/: run it with `make report`.

Fills the tables between `<!-- NAME -->` and `<!-- end of NAME -->` in README.md and docs/*.md, and writes
docs/benchmarks.md and the plots in docs/plots/.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from bulk_jobs.report import cost_table, results_table
from page import INT8, benchmarks_page, main_rows
from result_files import RESULTS, ROOT, read_results

from siglip_onnx.bench.machine import describe_busy
from siglip_onnx.bench.run import PYTORCH_FP32, engine_name
from siglip_onnx.bench.schema import VISION, Document, read_document
from siglip_onnx.bench.tables import format_measurement, markdown, start_memory_mb, start_seconds
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.system.files import write_atomic

PAGE, PLOTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots"
SUITE = RESULTS / "base_multilingual.json"
SUMMARIZED = (INT8, "OpenVINO int8 weights", "optimum-onnx int8", engine_name("fp32"), PYTORCH_FP32)


@click.command(help=__doc__)
def main() -> None:
    """Write everything."""
    from plots import draw_plots  # noqa: PLC0415 - tables need no matplotlib

    for path, text in documents().items():
        write_atomic(path, text.encode())
        click.echo(path, err=True)
    for path in draw_plots(read_document(SUITE), PLOTS):
        click.echo(path, err=True)


def documents() -> dict[Path, str]:
    """Return every document that shows results, as it must be.

    Raises:
        BenchmarkError: a table has no place in any document.
    """
    texts = {
        path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    }
    texts[PAGE] = benchmarks_page(read_document(SUITE), read_results(RESULTS / "base_multilingual_no_vnni.json"))
    changed = {PAGE}
    for name, table in tables().items():
        paths = [path for path, text in texts.items() if f"<!-- {name} -->" in text]
        if not paths:
            raise BenchmarkError(f"No document has the marks <!-- {name} --> and <!-- end of {name} -->; add them.")
        for path in paths:
            texts[path] = fill(texts[path], name, table)
        changed.update(paths)
    return {path: text for path, text in texts.items() if path in changed}


def tables() -> dict[str, str]:
    """Return the table of each mark."""
    bulk = read_results(RESULTS / "bulk.json")
    return {
        "benchmarks": summary(read_document(SUITE)),
        "quantization": quantization_table(read_results(RESULTS / "quantization.json")),
        "cost": cost_table(bulk),
        "bulk": results_table(bulk),
    }


def fill(text: str, name: str, table: str) -> str:
    """Return a text with the table between its marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def summary(document: Document) -> str:
    """Return the table of the README: five backends, the fastest vision tower first."""
    rows = sorted(
        (row for row in main_rows(document) if row.name in SUMMARIZED), key=lambda row: row.summary(VISION).min
    )
    lines = [
        [row.name, format_measurement(row.summary(VISION).min), f"{row.fidelity.cosine_min:.4f}",
         f"{start_seconds(row):.1f}", f"{start_memory_mb(row):.0f}"]
        for row in rows
    ]  # fmt: skip
    header = ("", "one image, ms", "worst cosine", "start, s", "peak memory, MB")
    machine = document.machine
    return (
        f"{markdown((header, lines))}\n\nFastest call of the vision tower on {document.settings['images']} distinct "
        f"images; worst cosine of any embedding to {PYTORCH_FP32}; process start to the first answer of both towers, "
        f"and peak memory by then. {machine['cpu']}, {machine['threads']} cores.{describe_busy(machine)}"
    )


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return the loss of each variant on each kind of weights."""
    kinds = results["weights"]
    lines = []
    for variant in ("int8", "int8, not equalized", "fp16", "q4"):
        size = kinds["plain"][variant].get("megabytes")
        cells = [
            f"{measured[variant]['vision_cosine_min']:.4f} / {measured[variant]['text_cosine_min']:.4f}"
            for measured in kinds.values()
        ]
        lines.append([variant, "" if size is None else f"{size:.0f}", *cells])
    return markdown((("smallest cosine to fp32, vision / text", "MB", *kinds), lines))


if __name__ == "__main__":
    main()
