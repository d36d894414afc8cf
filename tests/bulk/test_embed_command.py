"""``siglip-onnx embed`` with folders and lists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from support.jobs import SHARD_SIZE, SKIPPED, command, embed, rows_of, run, tree

from siglip_onnx.bulk.listing import Listing
from siglip_onnx.bulk.run import LocalEngine, run_job
from siglip_onnx.bulk.spec import ModelSpec


def test_lists_from_stdin_and_files(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    images = sorted(folder.rglob("*.png"))[:5]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\xff.png"))
    shutil.copy(images[0], odd)
    lines = b"".join(os.fsencode(path) + b"\n" for path in [*images, odd, tmp_path / "none.png", folder, images[0]])
    (tmp_path / "list.txt").write_bytes(lines)
    arguments = ["embed", "--model", small_bundle, "--json", "--out"]
    from_stdin = subprocess.run(command(*arguments, tmp_path / "a", "-"), input=lines, capture_output=True, check=False)
    assert from_stdin.returncode == 3, from_stdin.stderr
    assert json.loads(from_stdin.stdout)["statuses"] == {"ok": 6, "io_error": 2}
    assert run(*arguments, tmp_path / "b", tmp_path / "list.txt").exit_code == 3
    assert run(*arguments, tmp_path / "c", f"@{tmp_path / 'list.txt'}").exit_code == 3
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")
    assert [row["path"] for row in rows_of(tmp_path / "a")] == [
        str(path) for path in [*images, odd, tmp_path / "none.png", folder]
    ]
    embed(tmp_path / "a", folder, ModelSpec(str(small_bundle)), overwrite=True)  # a list's job gives way


def test_missing_inputs_are_reported(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder, "--out", tmp_path / "out", "--model", small_bundle)
    assert run(*arguments).stderr == f"siglip-onnx: {SKIPPED}\n"
    (folder / "00.png").unlink()
    result = run(*arguments)
    assert "kept, although missing: 1 input; use --prune to drop missing inputs." in result.stderr
    assert result.stdout == f"{tmp_path / 'out'}: 37 vectors of 64 from 37 inputs (ok 37)\n"
    result = run(*arguments, "--prune")
    assert result.stderr == f"siglip-onnx: {SKIPPED}\n"
    assert result.stdout == f"{tmp_path / 'out'}: 36 vectors of 64 from 36 inputs (ok 36)\n"


def test_wrong_use_is_one_message(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    image, out = next(folder.glob("*.png")), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        ([folder, "--out", tmp_path / "x.npy"], 2, "folders and lists go into a folder"),
        ([folder, image, "--out", out], 2, "not both"),
        ([image, "--out", tmp_path / "x.npy", "--prune"], 2, "--prune is for folders and lists"),
        ([folder, "--out", out, "--ray-address", "auto"], 2, "--ray-address is for --engine ray"),
        ([folder, "--out", out, "--workers", 2, "--threads", 2], 2, "--workers or --threads, not both"),
        ([tmp_path / "no.txt", "--out", out], 1, "cannot be read: No such file"),
        ([tmp_path / "empty", "--out", tmp_path / "out2"], 1, "No images were found"),
        ([folder, "--out", image], 1, "is a file; give the name of a folder"),
    ):
        result = run("embed", *arguments, "--model", small_bundle)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_progress_shows_rate_and_errors(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    from siglip_onnx.cli.progress import ProgressLine, human_seconds

    progress = ProgressLine("plain")
    facts = spec.job_facts(shard_size=SHARD_SIZE)
    run_job(tmp_path / "out", Listing([folder]), spec, facts, engine=LocalEngine(1), progress=progress)
    assert progress.line().startswith("37 of 37 (100 %), ")
    assert progress.line().endswith("/s, 0 s left, 0 errors")
    progress.worker_died({"ok": 5, "io_error": 1})
    assert progress.line().startswith("31 of 37 (84 %)")
    assert [human_seconds(seconds) for seconds in (3, 600, 7200, 1e6)] == ["3 s", "10 min", "2.0 h", "11.6 days"]
