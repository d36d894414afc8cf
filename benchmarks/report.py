"""Write everything that the documents say of measured figures, from benchmarks/results/: run it with `make report`.

Fills the tables between `<!-- NAME -->` and `<!-- end of NAME -->` in README.md and docs/*.md, and writes
docs/benchmarks.md, the plots in docs/plots/ and siglip_onnx/hub/published_costs.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from bulk_jobs.report import cost_table, results_table
from checkpoint_costs import RESULTS_FILE, costs_text, packaged_costs
from lead import TARGETS, best_row, describe_unfaithful, find_lead, format_ratio, main_rows
from page import INT8, benchmarks_page
from result_files import RESULTS, ROOT, read_results

from siglip_onnx.bench.run import PYTORCH_FP32, engine_name
from siglip_onnx.bench.schema import VISION, Document, read_document
from siglip_onnx.bench.tables import describe_quiet, format_measurement, markdown, start_memory_mb, start_seconds
from siglip_onnx.errors import BenchmarkError
from siglip_onnx.system.files import write_atomic

PAGE, PLOTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "plots"
COSTS = ROOT / "siglip_onnx" / "hub" / "published_costs.json"
SUITE, SUITE_WITH_AMX = RESULTS / "base_multilingual.json", RESULTS / "base_multilingual_amx.json"
# The README's rows beside our best and the best peer: the first of these, as far as there is place.
SUMMARIZED = (INT8, PYTORCH_FP32, "optimum-onnx int8", "OpenVINO int8 weights", engine_name("fp32"))
NUM_SUMMARIZED = 5


@click.command(help=__doc__)
def main() -> None:
    """Write everything."""
    from plots import draw_models, draw_plots  # noqa: PLC0415 - tables need no matplotlib

    for path, text in documents().items():
        write_atomic(path, text.encode())
        click.echo(path, err=True)
    for path in [*draw_plots(read_document(SUITE), PLOTS), *draw_models(read_results(RESULTS_FILE), PLOTS)]:
        click.echo(path, err=True)


def documents() -> dict[Path, str]:
    """Return every document that shows results, as it must be, and the file of costs in the package.

    Raises:
        BenchmarkError: a table has no place in any document.
    """
    texts = {
        path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    }
    texts[PAGE] = benchmarks_page(read_document(SUITE), read_document(SUITE_WITH_AMX))
    changed = {PAGE}
    for name, table in tables().items():
        paths = [path for path, text in texts.items() if f"<!-- {name} -->" in text]
        if not paths:
            raise BenchmarkError(f"No document has the marks <!-- {name} --> and <!-- end of {name} -->; add them.")
        for path in paths:
            texts[path] = fill(texts[path], name, table)
        changed.update(paths)
    costs = json.dumps(packaged_costs(read_results(RESULTS_FILE)), indent=1) + "\n"
    return {path: text for path, text in texts.items() if path in changed} | {COSTS: costs}


def tables() -> dict[str, str]:
    """Return the table of each mark."""
    bulk = read_results(RESULTS / "bulk.json")
    return {
        "benchmarks": summary(read_document(SUITE)),
        "quantization": quantization_table(read_results(RESULTS / "quantization.json")),
        "cost": cost_table(bulk),
        "bulk": results_table(bulk),
        "models": costs_text(read_results(RESULTS_FILE)),
    }


def fill(text: str, name: str, table: str) -> str:
    """Return a text with the table between its marks."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def summary(document: Document) -> str:
    """Return the table of the README: our best row, the best faithful peer and others, the fastest vision first."""
    best = (best_row(document, VISION, ours=side).name for side in (True, False))
    rows = {row.name: row for row in main_rows(document)}
    names = [name for name in dict.fromkeys([*best, *SUMMARIZED]) if name in rows][:NUM_SUMMARIZED]
    lines = [
        [row.name, format_measurement(row.summary(VISION).min), f"{row.fidelity.cosine_min:.4f}",
         f"{start_seconds(row):.1f}", f"{start_memory_mb(row):.0f}"]
        for row in sorted((rows[name] for name in names), key=lambda row: row.summary(VISION).min)
    ]  # fmt: skip
    header = ("", "one image, ms", "worst cosine", "start, s", "peak memory, MB")
    machine = document.machine
    return (
        f"{markdown((header, lines))}\n\nFastest call of the vision tower on {document.settings['images']} distinct "
        f"images; worst cosine of any embedding to {PYTORCH_FP32}; start to the first answer of both towers, peak "
        f"memory by then. {machine['cpu']}, {machine['threads']} cores, onnxruntime "
        f"{machine['packages']['onnxruntime']}, OpenVINO {machine['packages']['openvino']}.{describe_quiet(document)}"
        f"{describe_unfaithful(document)}{lead_text(document)}"
    )


def lead_text(document: Document) -> str:
    """Return the README's sentence on this engine's leads, with their intervals."""
    if document.baseline is None:
        return ""
    leads = (
        f"{quantity} {format_ratio(find_lead(document, quantity).ratio).replace(' - ', '-')}" for quantity in TARGETS
    )
    return f"\n\nBest faithful peer over our best: {', '.join(leads)}."


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return the loss of each variant on each kind of weights."""
    kinds = results["weights"]
    lines = []
    for variant in ("int8", "int8, not equalized", "qdq", "fp16", "q4"):
        if variant not in kinds["plain"]:
            continue
        size = kinds["plain"][variant].get("megabytes")
        cells = [
            f"{measured[variant]['vision_cosine_min']:.4f} / {measured[variant]['text_cosine_min']:.4f}"
            for measured in kinds.values()
        ]
        lines.append([variant, "" if size is None else f"{size:.0f}", *cells])
    return markdown((("smallest cosine to fp32, vision / text", "MB", *kinds), lines))


if __name__ == "__main__":
    main()
