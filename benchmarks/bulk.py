"""Measure bulk jobs: what they promise when killed or fed bad files, memory, rates, Ray, and search.

    python benchmarks/bulk.py kills faults memory search
    python benchmarks/bulk.py throughput --bundle BUNDLE --shapes NAME    # of true shapes, see checkpoint.py
    python benchmarks/bulk.py cost                                        # the tables of docs/bulk.md

Promises are checked with a small random bundle that is made here, rates with the bundle given. Every part writes its
figures to benchmarks/results/bulk.json and leaves the others there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from fresh import in_fresh_process
from PIL import Image

import siglip_onnx
from siglip_onnx.bench.machine import describe_machine
from siglip_onnx.bulk.facts import JobFacts, Receipt
from siglip_onnx.bulk.job import begin_job
from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.records import Input, Row
from siglip_onnx.bulk.run import LocalEngine, run_job
from siglip_onnx.bulk.search import open_collection
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.cli.progress import OFF, Progress, human_seconds
from siglip_onnx.head import l2_normalize
from siglip_onnx.system.workers import map_in_order

RESULTS = Path(__file__).parent / "results" / "bulk.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "bulk.md"
DOLLARS = 0.03  # about what large clouds ask for idle machines
SEED = 0


def measure_kills(work: Path, times: int = 20) -> dict[str, Any]:
    """Kill a job at random moments, run it again, and compare what it wrote with an uninterrupted run."""
    pictures, bundle = make_pictures(work / "kills", 4000), make_small_bundle(work)
    arguments = ["embed", str(pictures), "--model", str(bundle), "--shard-size", "50", "--out"]
    usual = kill_after(float("inf"), [*arguments, str(fresh(work / "whole"))], work / "whole")
    whole = tree(work / "whole")
    rng = np.random.default_rng(SEED)
    identical, finished, twice = 0, [], 0
    for delay in rng.uniform(0, usual, times):
        out = fresh(work / "killed")
        kill_after(delay, [*arguments, str(out)], out)
        finished.append(len(list(out.glob("receipts/*"))))
        run(*arguments, str(out))
        identical += tree(out) == whole
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        twice += max(Counter(line["shard"] for line in lines if line["event"] == "shard").values()) > 1
    return {
        "kills": times, "identical trees": identical, "shards done at the kill": sorted(finished), "shards": 80,
        "runs in which a committed shard was done again": twice, "workers": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def kill_after(delay: float, arguments: list[str], out: Path) -> float:
    """Kill a job so long after it began its folder, unless it ended before; returns its seconds from then on."""
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:  # noqa: S603
        while not (out / "job.json").exists():
            time.sleep(0.001)
        began = time.perf_counter()
        while job.poll() is None and time.perf_counter() - began < delay:
            time.sleep(0.001)
        job.kill()
    return time.perf_counter() - began


def measure_faults(work: Path, count: int = 10_000) -> dict[str, Any]:
    """Embed a folder with 1 % planted faults and compare the statuses with those planted."""
    folder, bundle = make_pictures(work / "faults", count - count // 100), make_small_bundle(work)
    planted = {}
    for number in range(count // 100):
        kind = list(FAULTS)[number % len(FAULTS)]
        path = folder / f"fault_{number:03}.{'png' if kind == 'bomb' else 'jpg'}"
        FAULTS[kind][0](path)
        planted[str(path)] = FAULTS[kind][1]
    out = fresh(work / "out")
    began = time.perf_counter()
    code = run("embed", str(folder), "--model", str(bundle), "--out", str(out))
    seconds = time.perf_counter() - began
    rows = [json.loads(line) for path in sorted((out / "rows").iterdir()) for line in path.read_text().splitlines()]
    found = {row["path"]: row["status"] for row in rows if row["status"] != "ok"}
    return {
        "inputs": count, "rows": len(rows), "exit code": code, "planted": dict(Counter(planted.values())),
        "errors are exactly the planted": found == planted, "seconds": round(seconds, 1),
    }  # fmt: skip


def measure_memory(work: Path, counts: tuple[int, int] = (1_000, 100_000)) -> dict[str, Any]:
    """Measure peak memory of jobs of few and of many pictures, and how long a run takes that finds nothing to do."""
    bundle = make_small_bundle(work)
    facts: dict[str, Any] = {}
    for count in counts:
        folder, out = make_pictures(work / f"memory_{count}", count, linked=True), fresh(work / f"out_{count}")
        # Shards so small that there is work for two workers in both jobs.
        arguments = ["embed", str(folder), "--model", str(bundle), "--shard-size", "500", "--out", str(out)]
        seconds, peaks = watch_memory(command(*arguments))
        facts[f"{count} pictures"] = {"seconds": round(seconds, 1)} | peaks
    began = time.perf_counter()
    listed = sum(1 for _ in Listing([folder]))
    scan = time.perf_counter() - began
    again = [timed(lambda: run(*arguments)) for _ in range(3)]
    small = [timed(lambda: run(*arguments[:1], str(work / f"memory_{counts[0]}"), *arguments[2:-1],
                               str(work / f"out_{counts[0]}"))) for _ in range(3)]  # fmt: skip
    first, last = (facts[f"{count} pictures"]["sum_of_processes_mb"] for count in counts)
    return facts | {
        "ratio": round(last / first, 3),
        "up-to-date run": {"inputs": listed, "scan_seconds": round(scan, 2), "whole_process_seconds": min(again),
                           "whole_process_seconds_of_the_small_job": min(small)},
    }  # fmt: skip


def measure_throughput(work: Path, bundle: Path | None, shapes: str | None, count: int) -> dict[str, Any]:
    """Compare a whole job on small JPEGs with the vision tower alone on as many workers, and Ray with that."""
    if bundle is None or shapes is None:
        raise click.UsageError("throughput needs --bundle and --shapes.")
    folder = make_pictures(work / "throughput", count, size=256)
    workers = len(os.sched_getaffinity(0))
    model = siglip_onnx.load(bundle)
    facts: dict[str, Any] = {
        "shapes": shapes, "variant": model.variant, "embedding_dim": model.embedding_dim, "pictures": count
    }  # fmt: skip
    facts["tower"] = in_fresh_process(time_tower, bundle, folder, workers)
    for engine in ("local", "ray", "local again"):
        facts[engine] = in_fresh_process(time_job, bundle, folder, fresh(work / "out"), engine)
    facts["tower again"] = in_fresh_process(time_tower, bundle, folder, workers)
    towers = [facts[name]["pictures_per_second"] for name in ("tower", "tower again")]
    locals_ = [facts[name]["pictures_per_second"] for name in ("local", "local again")]
    return facts | {
        "local / tower": round(sum(locals_) / sum(towers), 3),
        "ray / local": round(facts["ray"]["pictures_per_second"] * 2 / sum(locals_), 3),
    }


def time_tower(bundle: Path, folder: Path, workers: int) -> dict[str, float]:
    """Run the vision tower on prepared pixels, one picture per worker at a time."""
    model = siglip_onnx.load(bundle, threads=1)
    inputs = model.preprocess(sorted(folder.iterdir())[:16])
    session = model.vision.session
    rounds = [inputs[number % len(inputs)] for number in range(len(list(folder.iterdir())))]

    def forward(pixels: Any) -> None:
        session.run("pooler_output", pixels)

    list(map_in_order(forward, inputs, workers))
    began = time.perf_counter()
    list(map_in_order(forward, rounds, workers))
    return {"pictures_per_second": round(len(rounds) / (time.perf_counter() - began), 2)}


class Stopwatch(Progress):
    """Notes when shards began and ended."""

    began, ended = float("inf"), 0.0

    def shard_done(self, shard: int, receipt: Receipt, seconds: float) -> None:
        """Note one."""
        super().shard_done(shard, receipt, seconds)
        self.ended = time.perf_counter()
        self.began = min(self.began, self.ended - seconds)


def time_job(bundle: Path, folder: Path, out: Path, engine: str) -> dict[str, float]:
    """Run a job; the rate is that from the first shard's begin to the last one's end, the start is what was before."""
    from siglip_onnx.bulk.ray_engine import RayEngine  # noqa: PLC0415 - needs ray

    spec, watch, count = ModelSpec(str(bundle)), Stopwatch(OFF), len(list(folder.iterdir()))
    began = time.perf_counter()
    run_job(out, Listing([folder]), spec, spec.job_facts(shard_size=20), progress=watch,
            engine=RayEngine() if engine == "ray" else LocalEngine())  # fmt: skip
    return {
        "pictures_per_second": round(count / (watch.ended - watch.began), 2),
        "start_seconds": round(watch.began - began, 2),
        "whole_seconds": round(time.perf_counter() - began, 2),
    }


def measure_search(work: Path, count: int = 1_000_000, dim: int = 768) -> dict[str, Any]:
    """Search a million random vectors, beside how fast this machine reads memory."""
    out = work / f"search_{count}"
    if not (out / "summary").exists():
        write_vectors(fresh(out), count, dim)
        (out / "summary").touch()
    return {"vectors": count, "dim": dim, "dtype": "float16", **in_fresh_process(time_search, out, dim)}


def time_search(out: Path, dim: int) -> dict[str, Any]:
    """Time the top 10 with one and with all threads, warm; and check them against a plain computation."""
    began = time.perf_counter()
    collection = open_collection(out)
    facts: dict[str, Any] = {"open_seconds": round(time.perf_counter() - began, 3)}
    (query,) = l2_normalize(np.random.default_rng(5).standard_normal((1, dim)).astype(np.float32))
    before = anonymous_memory_mb()
    for threads in (1, len(os.sched_getaffinity(0))):
        collection.search(query, 10, threads=threads)
        rounds = [timed(lambda: collection.search(query, 10, threads=threads)) for _ in range(7)]  # noqa: B023
        facts[f"{threads} threads, min / median seconds"] = [min(rounds), sorted(rounds)[3]]
    facts["memory beyond the mapped files, MB"] = round(anonymous_memory_mb() - before, 1)
    hits = collection.search(query, 10)
    best = [
        np.sort(np.array(collection.job.read_vectors(shard), np.float32) @ query)[-10:] for shard in collection.shards
    ]
    np.testing.assert_allclose([hit.similarity for hit in hits], np.sort(np.concatenate(best))[::-1][:10], atol=1e-6)
    mapped = [collection.job.read_vectors(shard).view(np.uint64) for shard in collection.shards]
    size_gb = sum(one.nbytes for one in mapped) / 1e9
    for name, workers in (("1 thread", 1), ("all threads", len(os.sched_getaffinity(0)))):
        read = min(timed(lambda: list(map_in_order(np.add.reduce, mapped, workers))) for _ in range(3))  # noqa: B023
        facts[f"reading the mapped files, {name}, GB/s"] = round(size_gb / read, 1)
    return facts


def write_vectors(out: Path, count: int, dim: int) -> None:
    """Write a job of random unit vectors."""
    facts = JobFacts("random", "int8", "int8-random", dim, 4.7, -12.0, {}, "npy", "float16", 1000)
    out.mkdir(parents=True)
    job, rng = begin_job(out, facts, overwrite=False), np.random.default_rng(SEED)
    for shard in range(count // 1000):
        inputs = [Input(f"/pictures/{shard:06}/{row:03}.jpg", 1, 1) for row in range(1000)]
        rows = [Row(*one, status="ok", row=row) for row, one in enumerate(inputs)]
        job.write_plan(shard, inputs)
        job.commit(shard, inputs, rows, l2_normalize(rng.standard_normal((1000, dim), np.float32)))


def make_small_bundle(work: Path) -> Path:
    """Export the smallest random checkpoint of the tests."""
    if not (work / "small").exists():
        in_fresh_process(_export_small, work)
    return work / "small"


def _export_small(work: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.checkpoints import make_checkpoint  # noqa: PLC0415 - needs torch

    from siglip_onnx.export.pipeline import export_bundle  # noqa: PLC0415

    export_bundle(make_checkpoint(work / "small_checkpoint", "square"), work / "small")


def make_pictures(folder: Path, count: int, *, size: int = 32, linked: bool = False) -> Path:
    """Write small JPEGs; ``linked`` ones are 100 files under many names."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for number in range(count):
        path = folder / f"{number:06}.jpg"
        if linked and number >= 100:
            os.link(folder / f"{number % 100:06}.jpg", path)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def _plant_truncated(path: Path) -> None:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG")
    path.write_bytes(content.getvalue()[: len(content.getvalue()) // 2])


def _plant_bomb(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def _plant_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2_000_000_000)


def _plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# Every kind with the status it must get. As root every file can be read, but for those of some devices.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "decode_error"),
    "truncated": (_plant_truncated, "truncated"),
    "wrong extension": (lambda path: path.write_text("no picture"), "unsupported"),
    "bomb": (_plant_bomb, "too_large"),
    "directory": (Path.mkdir, "io_error"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "io_error"),
    "unreadable": (lambda path: path.symlink_to("/proc/self/mem"), "io_error"),
    "2 GB sparse": (_plant_sparse, "too_large"),
    "pipe": (os.mkfifo, "io_error"),
    "socket": (_plant_socket, "io_error"),
}


def command(*arguments: str) -> list[str]:
    """Return the command line of the package's command."""
    return [sys.executable, "-m", "siglip_onnx", *arguments]


def run(*arguments: str) -> int:
    """Run the command to its end and return its exit code, 0 or 3."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode in (0, 3), done.stderr
    return done.returncode


def timed(function: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    began = time.perf_counter()
    function()
    return round(time.perf_counter() - began, 3)


def fresh(path: Path) -> Path:
    """Remove a folder."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def tree(out: Path) -> dict[str, str]:
    """Return the hash of every file that a job promises."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("log.jsonl", ".lock")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def watch_memory(arguments: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command; returns its seconds, and the peak memory of its process, of a worker, and of all at once."""
    began, own, worker, together = time.perf_counter(), 0.0, 0.0, 0.0
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:
            pids = [process.pid, *descendants(process.pid)]
            sizes = [memory_mb(pid, "VmRSS") for pid in pids]
            own, worker = max(own, sizes[0]), max(worker, *sizes[1:], 0.0)
            together = max(together, sum(sizes))
            time.sleep(0.05)
    seconds = time.perf_counter() - began
    return seconds, {"main_process_mb": own, "largest_worker_mb": worker, "sum_of_processes_mb": round(together, 1)}


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(one for child in children for one in descendants(child))]


def memory_mb(pid: int, field: str) -> float:
    """Return a field of ``/proc/PID/status`` in MB, 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:")), 0.0)


def anonymous_memory_mb() -> float:
    """Return this process's memory that is no mapped file."""
    return memory_mb(os.getpid(), "RssAnon")


def cost_table(results: Mapping[str, Any], dollars: float) -> str:
    """Return what so many pictures need, at the rate that a whole job had per core, as a Markdown table."""
    throughput = results["throughput"]
    both = [throughput[name]["pictures_per_second"] for name in ("local", "local again")]
    rate = sum(both) / len(both) / throughput["machine"]["threads"]
    lines = [
        "| small pictures | CPU hours | on 16 CPUs | on 1,000 CPUs | dollars | float16 vectors |",
        "|---|---|---|---|---|---|",
    ]
    for count, name in ((10**6, "a million"), (10**8, "a hundred million"), (10**9, "a billion")):
        hours = count / rate / 3600
        cells = (
            name, f"{hours:,.0f}", human_seconds(hours * 3600 / 16), human_seconds(hours * 3.6),
            f"{hours * dollars:,.0f}", f"{count * throughput['embedding_dim'] * 2 / 1e9:,.1f} GB",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    machine = throughput["machine"]
    closing = (
        f"At {rate:.1f} pictures per second and CPU, measured with {throughput['shapes']}, int8, on {machine['cpu']} "
        f"({', '.join(machine['cpu_flags'])}), and {dollars:g} dollars per CPU hour."
    )
    return "\n".join([*lines, "", closing])


def results_table(results: Mapping[str, Any]) -> str:
    """Return what was measured, as a Markdown table."""
    kills, faults, memory = (results[name] for name in ("kills", "faults", "memory"))
    throughput, search = results["throughput"], results["search"]
    few, many = (facts["sum_of_processes_mb"] for name, facts in memory.items() if name.endswith(" pictures"))
    planted = "exactly the planted" if faults["errors are exactly the planted"] else "not exactly the planted"
    again, threads = memory["up-to-date run"], search["machine"]["threads"]
    seconds = search[f"{threads} threads, min / median seconds"]
    rows = (
        ("killed at random moments, then run again: same bytes", f"{kills['identical trees']} of {kills['kills']}"),
        ("inputs with 1 % planted faults of ten kinds; rows; errors",
         f"{faults['inputs']:,}; {faults['rows']:,}; {planted}"),
        ("peak memory of all processes, 1,000 and 100,000 pictures, MB", f"{few:.0f}, {many:.0f}"),
        ("a run over 100,000 that finds nothing to do, whole process; listing alone, s",
         f"{again['whole_process_seconds']:.1f}; {again['scan_seconds']:.1f}"),
        ("a whole job on small JPEGs, as a share of the vision tower's own rate", f"{throughput['local / tower']:.2f}"),
        ("Ray on the same CPUs, as a share of that; its start, s",
         f"{throughput['ray / local']:.2f}; {throughput['ray']['start_seconds']:.1f}"),
        ("exact top 10 of 1,000,000 x 768 float16, warm, min / median s", f"{seconds[0]:.2f} / {seconds[1]:.2f}"),
        ("the same bytes only read, s", f"{1.536 / search['reading the mapped files, all threads, GB/s']:.2f}"),
    )  # fmt: skip
    return "\n".join(["| what | result |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def write_docs(results: Mapping[str, Any], dollars: float) -> None:
    """Put both tables between their marks in docs/bulk.md."""
    for mark, table in (("cost", cost_table(results, dollars)), ("bulk", results_table(results))):
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(end)
        DOCUMENT.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "kills": measure_kills,
    "faults": measure_faults,
    "memory": measure_memory,
    "search": measure_search,
}


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, required=True, type=click.Choice([*PARTS, "throughput", "cost"]))
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="For throughput: a bundle of true shapes.")
@click.option("--shapes", help="For throughput: whose shapes the bundle has.")
@click.option("--pictures", default=300, help="For throughput.")
@click.option("--dollars", default=DOLLARS, help="For cost: the price of a CPU for an hour.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "siglip_onnx_bulk")
def main(
    parts: tuple[str, ...], bundle: Path | None, shapes: str | None, pictures: int, dollars: float, work: Path
) -> None:
    """Measure, and write the results."""
    work.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part == "cost":
            write_docs(json.loads(RESULTS.read_text(encoding="utf-8")), dollars)
            continue
        machine = describe_machine()
        found = PARTS[part](work) if part in PARTS else measure_throughput(work, bundle, shapes, pictures)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[part] = {"machine": machine} | found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        click.echo(json.dumps({part: found}, indent=2))


if __name__ == "__main__":
    main()
