"""Write the results of bulk jobs as the tables of docs/bulk.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siglip_onnx.bench.tables import markdown
from siglip_onnx.cli.progress import human_seconds

DOLLARS = 0.03  # per CPU hour, about the price of idle machines of large clouds


def cost_table(results: Mapping[str, Any], dollars: float = DOLLARS) -> str:
    """Return the cost of many images at the rate per CPU of a whole job, as Markdown."""
    throughput = results["throughput"]
    machine = throughput["machine"]
    both = [throughput[name]["images_per_second"] for name in ("local", "local again")]
    rate = sum(both) / len(both) / machine["threads"]
    lines = []
    for count, name in ((10**6, "a million"), (10**8, "a hundred million"), (10**9, "a billion")):
        hours = count / rate / 3600
        lines.append([
            name, f"{hours:,.0f}", human_seconds(hours * 3600 / 16), human_seconds(hours * 3.6),
            f"{hours * dollars:,.0f}", f"{count * throughput['embedding_dim'] * 2 / 1e9:,.1f} GB",
        ])  # fmt: skip
    header = ("small images", "CPU hours", "on 16 CPUs", "on 1,000 CPUs", "dollars", "float16 vectors")
    closing = (
        f"At {rate:.1f} images per second and CPU, measured with {throughput['shapes']}, int8, on {machine['cpu']} "
        f"({', '.join(machine['cpu_flags'])}), and {dollars:g} dollars per CPU hour."
    )
    return f"{markdown((header, lines))}\n\n{closing}"


def results_table(results: Mapping[str, Any]) -> str:
    """Return the other results as Markdown."""
    kills, faults, memory = (results[name] for name in ("kills", "faults", "memory"))
    throughput, search = results["throughput"], results["search"]
    few, many = (facts["sum_of_processes_mb"] for name, facts in memory.items() if name.endswith(" images"))
    planted = "exactly the planted" if faults["errors are exactly the planted"] else "not exactly the planted"
    again, threads = memory["up-to-date run"], search["machine"]["threads"]
    seconds = search[f"{threads} threads, min / median seconds"]
    rows = [
        ["killed at random moments, then run again: same bytes", f"{kills['identical trees']} of {kills['kills']}"],
        ["inputs with 1 % planted faults of ten kinds; rows; errors",
         f"{faults['inputs']:,}; {faults['rows']:,}; {planted}"],
        ["peak memory of all processes, 1,000 and 100,000 images, MB", f"{few:.0f}, {many:.0f}"],
        ["a run over 100,000 with nothing to do, whole process; listing alone, s",
         f"{again['whole_process_seconds']:.1f}; {again['scan_seconds']:.1f}"],
        ["a whole job on small JPEGs, as a share of the vision tower's rate", f"{throughput['local / tower']:.2f}"],
        ["Ray on the same CPUs, as a share of that; its start, s",
         f"{throughput['ray / local']:.2f}; {throughput['ray']['start_seconds']:.1f}"],
        ["exact top 10 of 1,000,000 x 768 float16, warm, min / median s", f"{seconds[0]:.2f} / {seconds[1]:.2f}"],
        ["only reading the same bytes, s", f"{1.536 / search['reading the mapped files, all threads, GB/s']:.2f}"],
    ]  # fmt: skip
    return markdown((("what", "result"), rows))
