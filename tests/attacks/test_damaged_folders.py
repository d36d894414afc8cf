"""Damaged job folders, label caches, model caches and benchmark results: the right rows or one error, never a crash.

Each damage is applied to a copy; then a command or call runs on it, which must neither raise anything but an error of
this package, nor wait, nor answer with rows that were never written.
"""

import functools
import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from attacks.damage import Damage, damages, remove
from support.commands import assert_error, run
from support.jobs import embed

import siglip_onnx
from siglip_onnx.bench.schema import read_document
from siglip_onnx.bulk.progress import Progress
from siglip_onnx.bulk.shard import embed_shard
from siglip_onnx.bulk.spec import ModelSpec
from siglip_onnx.bundle.integrity import file_facts
from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH
from siglip_onnx.errors import JobError, SiglipOnnxError

PER_CALL = 24
SECONDS = 90  # generous, because machines are shared; a read of a pipe would never end
ROOT = Path(__file__).parents[2]
STAR = IMAGES_PATH / "red_star.png"
MODEL_NAME = "owner/name"
Check = Callable[[Path], object]


@contextmanager
def time_limit(what: str) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"{what} took more than {SECONDS} s")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def attack(folder: Path, tmp_path: Path, check: Check, seed: str, *, skip: tuple[str, ...] = ()) -> Counter[str]:
    """Run ``check`` on damaged copies of ``folder``; return how often it succeeded and how often it was refused."""
    rng, outcomes = random.Random(seed), Counter[str]()
    files = [path for path in sorted(folder.rglob("*")) if path.suffix not in (".onnx", ".data", ".lock", *skip)]
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(f"{path.parent.relative_to(folder)}/{path.suffix or path.name}", []).append(path)
    ways = functools.cache(lambda path: list(damages(path, random.Random(path.name))))
    for number in range(PER_CALL):
        path = rng.choice(kinds[rng.choice(list(kinds))])
        name, damage = rng.choice(ways(path))
        copy = tmp_path / "copy"
        remove(copy)
        shutil.copytree(folder, copy)
        where = f"{number} of {seed}: {path.relative_to(folder)}, {name}"
        outcomes[outcome_of(copy, (where, damage), path.relative_to(folder), check)] += 1
    assert "without a message" not in outcomes
    return outcomes


def outcome_of(copy: Path, damage: Damage, name: Path, check: Check) -> str:
    where, apply = damage
    try:
        apply(copy / name)
        with time_limit(where):
            check(copy)
    except SiglipOnnxError as error:
        return "refused" if str(error).strip() else "without a message"
    except BaseException as error:
        raise AssertionError(where) from error
    return "right"


def command(*arguments: object) -> dict[str, Any]:
    """Run a command that prints JSON; return what it printed, nothing if it failed with a message."""
    result = run(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    if result.exit_code != 0:
        assert result.exit_code in (1, 3, 4), result.output
        assert result.output.strip()
        return {}
    document: dict[str, Any] = json.loads(result.stdout)
    return document


class Engine:
    """Embeds shards in this process with a model that stays open."""

    def __init__(self) -> None:
        self.model = siglip_onnx.load("demo", threads=1)

    def __call__(self, job: Any, _spec: Any, tasks: Any, _progress: Any) -> Iterator[Any]:
        for task in tasks:
            yield task.shard, embed_shard(job, self.model, task, Progress())


class Jobs:
    """A job of the sample images and a broken one in each layout, and what its folder must say."""

    def __init__(self, folder: Path) -> None:
        self.images, self.folder, self.engine, self.spec = folder / "images", folder, Engine(), ModelSpec("demo")
        shutil.copytree(IMAGES_PATH, self.images)
        (self.images / "broken.png").write_text("not an image")
        self.layouts = ["npy"] + (["clip-retrieval", "parquet"] if find_spec("pyarrow") else [])
        self.facts = {layout: self.spec.job_facts(shard_size=5, layout=layout) for layout in self.layouts}
        for layout in self.layouts:
            self.resume(folder / layout, layout)
        whole = siglip_onnx.open_collection(folder / "npy")
        self.vectors = dict(zip(whole.paths, whole.vectors, strict=True))
        self.statuses = dict.fromkeys(self.vectors, "ok") | {str(self.images / "broken.png"): "unsupported"}
        self.query = self.engine.model.encode_texts(["a red star"])[0]

    def resume(self, out: Path, layout: str, **policy: bool) -> None:
        embed(out, self.images, self.spec, self.engine, facts=self.facts[layout], **policy)

    def check_rows(self, out: Path) -> None:
        """Check that every image has its vector, after a run that reads all files."""
        files = (out / "rows").glob("[0-9]" * 6 + ".jsonl")
        rows = [json.loads(line) for path in files for line in path.read_bytes().splitlines()]
        statuses = {row["path"]: row["status"] for row in rows}
        assert len(statuses) == len(rows)
        assert self.statuses.items() <= statuses.items()
        assert self.check_arrays(out) == len(self.vectors)
        assert self.check_search(out) == len(self.vectors)

    def check_arrays(self, out: Path) -> int:
        collection = siglip_onnx.open_collection(out, self.engine.model)
        assert len(collection) == len(collection.paths) == len(collection.vectors)
        for path, vector in zip(collection.paths, collection.vectors, strict=True):
            assert np.abs(self.vectors[path] - vector).max() < 1e-2
        return len(collection)

    def check_search(self, out: Path) -> int:
        hits = siglip_onnx.open_collection(out, self.engine.model).search(self.query, 30)
        assert len({hit.path for hit in hits}) == len(hits)
        assert all(abs(self.vectors[hit.path] @ self.query - hit.similarity) < 1e-2 for hit in hits)
        return len(hits)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"))


# Of vectors only the header is damaged where no hash is read: other numbers are other vectors.
@pytest.mark.parametrize("layout", ["npy", "clip-retrieval", "parquet"])
@pytest.mark.parametrize("call", ["resume", "fast resume", "retry", "overwrite", "search", "arrays", "command"])
def test_damaged_jobs(call: str, layout: str, jobs: Jobs, tmp_path: Path) -> None:
    if layout not in jobs.layouts:
        pytest.skip("the extra [parquet] is not installed")

    def resume(out: Path) -> None:
        jobs.resume(out, layout, retry_errors=call == "retry", overwrite=call == "overwrite")
        jobs.check_rows(out)

    checks: dict[str, Check] = {
        "resume": resume, "retry": resume, "overwrite": resume,
        "fast resume": lambda out: jobs.resume(out, layout, fast_resume=True),
        "search": jobs.check_search, "arrays": jobs.check_arrays,
        "command": lambda out: command("search", out, "a red star", "--json", "--html", tmp_path / "page.html"),
    }  # fmt: skip
    outcomes = attack(jobs.folder / layout, tmp_path, checks[call], f"{call} {layout}",
                      skip=() if call in ("resume", "retry", "overwrite") else (".npy", ".parquet"))  # fmt: skip
    assert outcomes["right"] > PER_CALL / 4


@pytest.mark.parametrize(
    ("key", "value"), [("sha256", []), ("sha256", {}), ("path", "\ud800"), ("path", 1), ("status", "fine"), ("row", 1)]
)
def test_rows_of_others_are_checked(key: str, value: object, jobs: Jobs, tmp_path: Path) -> None:
    """A receipt that fits the rows does not make their values right."""
    copy = Path(shutil.copytree(jobs.folder / "npy", tmp_path / "copy"))
    path = copy / "rows" / "000000.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps(json.loads(first) | {key: value}) + "\n" + rest)
    receipt = json.loads((copy / "receipts" / "000000.json").read_text())
    receipt["files"]["rows/000000.jsonl"] = asdict(file_facts(path))
    (copy / "receipts" / "000000.json").write_text(json.dumps(receipt))
    for options in ((), ("--html", tmp_path / "page.html"), ("--json",)):
        assert_error(run("search", copy, "a red star", "-k", 30, *options), 1, "000000.jsonl is damaged")


def test_a_model_beside_vectors_of_others_is_not_loaded(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graphs could take time and memory without limit; only the user names a folder."""
    copy = Path(shutil.copytree(jobs.folder / "npy", tmp_path / "vectors"))
    shutil.copytree(BUNDLE_PATH, tmp_path / "model")
    facts = json.loads((copy / "job.json").read_text())
    (copy / "job.json").write_text(json.dumps(facts | {"model": "model"}))
    monkeypatch.chdir(tmp_path)
    for arguments in (("search", "vectors", "a red star"), ("search", "vectors", "a red star", "--json")):
        assert_error(run(*arguments), 1, "The vectors name their model 'model', and the current folder has a folder")
    with pytest.raises(JobError, match=r"open_collection\(\.\.\., model=\.\.\.\)"):
        siglip_onnx.open_collection("vectors").search("a red star")
    assert run("search", "vectors", "a red star", "--model", "./model").exit_code == 0


@pytest.mark.parametrize("layout", ["npy", "parquet"])
def test_damaged_vectors_of_the_right_size_are_refused_or_searched(layout: str, jobs: Jobs, tmp_path: Path) -> None:
    """A search compares sizes only, so it meets files that the receipts of a careless tool call whole."""
    if layout not in jobs.layouts:
        pytest.skip("the extra [parquet] is not installed")
    name = {"npy": "vectors/000000.npy", "parquet": "parquet/000000.parquet"}[layout]
    rng = random.Random(3)

    def check(out: Path) -> None:
        receipt_path = out / "receipts/000000.json"
        receipt = json.loads(receipt_path.read_bytes())
        if (out / name).is_file():
            receipt["files"][name]["size_bytes"] = (out / name).stat().st_size
            receipt_path.write_text(json.dumps(receipt))
        hits = siglip_onnx.open_collection(out).search(jobs.query, 30)
        assert all(hit.path in jobs.vectors and abs(hit.similarity) < 1.01 for hit in hits)

    outcomes = Counter[str]()
    for way, damage in damages(jobs.folder / layout / name, rng):
        remove(tmp_path / "copy")
        shutil.copytree(jobs.folder / layout, tmp_path / "copy")
        outcomes[outcome_of(tmp_path / "copy", (way, damage), Path(name), check)] += 1
    assert outcomes["refused"] > 20


def test_damaged_label_caches(tmp_path: Path) -> None:
    texts = ["a star", "six eggs"]
    expected = siglip_onnx.load("demo", label_cache=tmp_path / "labels", threads=1).encode_labels(texts)

    def check(cache: Path) -> None:
        labels = siglip_onnx.load("demo", label_cache=cache, threads=1).encode_labels(texts)
        assert np.abs(labels - expected).max() < 1e-3

    assert attack(tmp_path / "labels", tmp_path, check, "labels")["right"] > PER_CALL / 4


@pytest.mark.parametrize("call", ["list", "check", "rm", "info", "load"])
def test_damaged_model_caches(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision, cache = "a" * 40, tmp_path / "cache"
    folder = cache / "models" / MODEL_NAME.replace("/", "--")
    shutil.copytree(BUNDLE_PATH, folder / revision)
    record = {"name": MODEL_NAME, "revision": revision, "kind": "bundle", "pulled": 1.7e9, "asked": "main"}
    (folder / f"{revision}.json").write_text(json.dumps(record))
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(cache))
    expected = siglip_onnx.load(MODEL_NAME, offline=True).encode_texts(["a star"])  # also writes the stamps

    def load(_copy: Path) -> None:
        assert (siglip_onnx.load(MODEL_NAME, offline=True).encode_texts(["a star"]) == expected).all()

    checks: dict[str, Check] = {
        "list": lambda _copy: command("models", "list", "--json"),
        "check": lambda _copy: command("models", "check", MODEL_NAME, "--json"),
        "rm": lambda _copy: run_quietly("models", "rm", MODEL_NAME),
        "info": lambda _copy: command("info", "--model", MODEL_NAME, "--json"),
        "load": load,
    }
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "copy"))
    attack(cache, tmp_path, checks[call], call)


def run_quietly(*arguments: object) -> None:
    result = run(*arguments)
    assert result.exit_code in (0, 1, 4), result.output
    assert result.output.strip() or result.exit_code == 0


@pytest.mark.parametrize("call", ["read", "report", "markdown", "compare"])
def test_damaged_benchmark_results(call: str, tmp_path: Path) -> None:
    document = json.loads((ROOT / "benchmarks/results/base_multilingual.json").read_bytes())
    document["rows"], document["throughput"] = document["rows"][:1], document["throughput"][:1]
    document |= {"limit": {}, "processes": {}}  # small, because every value of it is damaged
    for row in (*document["rows"], document["baseline"]):
        row["stages"] = {stage: [samples[:2] for samples in rounds[:2]] for stage, rounds in row["stages"].items()}
        row["starts"] = row["starts"][:1]
    whole = tmp_path / "bench" / "results.json"
    whole.parent.mkdir()
    whole.write_text(json.dumps(document))
    checks: dict[str, Check] = {
        "read": lambda copy: read_document(copy / "results.json"),
        "report": lambda copy: run_quietly("bench", "report", copy / "results.json"),
        "markdown": lambda copy: run_quietly("bench", "report", copy / "results.json", "--markdown"),
        "compare": lambda copy: run_quietly("bench", "compare", whole, copy / "results.json"),
    }
    attack(whole.parent, tmp_path, checks[call], call)
