"""Layouts: what other tools read is what the library computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.commands import run_without
from support.jobs import SHARD_SIZE, embed, plant_faults, rows_of

import siglip_onnx
from siglip_onnx.bulk.job import open_job
from siglip_onnx.bulk.spec import ModelSpec


def test_clip_retrieval_layout_in_float16(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    plant_faults(folder)
    facts = spec.job_facts(layout="clip-retrieval", dtype="float16", shard_size=SHARD_SIZE)
    embed(tmp_path / "out", folder, spec, facts=facts)
    vectors = sorted((tmp_path / "out" / "img_emb").iterdir())
    metadata = sorted((tmp_path / "out" / "metadata").iterdir())
    assert [path.name for path in vectors] == [f"img_emb_{shard:06}.npy" for shard in range(5)]
    assert [path.name for path in metadata] == [f"metadata_{shard:06}.parquet" for shard in range(5)]
    model = siglip_onnx.load(spec.name, threads=1)
    for vectors_path, metadata_path in zip(vectors, metadata, strict=True):
        table, stored = parquet.read_table(metadata_path), np.load(vectors_path)
        assert stored.dtype == np.float16
        assert_array_equal(stored, model.encode_images(table["image_path"].to_pylist()).astype(np.float16))
    assert_array_equal(open_job(tmp_path / "out").read_vectors(2), np.load(vectors[2]))


def test_parquet_layout_has_every_row_and_fixed_size_lists(folder: Path, spec: ModelSpec, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plant_faults(folder)
    facts = spec.job_facts(layout="parquet", shard_size=SHARD_SIZE)
    embed(tmp_path / "out", folder, spec, facts=facts)
    table = parquet.read_table(tmp_path / "out" / "parquet")
    assert table.schema.field("embedding").type == arrow.list_(arrow.float32(), 64)
    assert table.column("path").to_pylist() == [row["path"] for row in rows_of(tmp_path / "out")]
    assert table["embedding"].null_count == 12
    good = table.filter(arrow.compute.equal(table["status"], "ok"))
    expected = siglip_onnx.load(spec.name, threads=1).encode_images(good["path"].to_pylist())
    assert_array_equal(np.array(good["embedding"].to_pylist(), np.float32), expected)
    job = open_job(tmp_path / "out")
    assert_array_equal(np.concatenate([job.read_vectors(shard) for shard in job.shards()]), expected)


def test_layouts_without_pyarrow_name_the_extra(folder: Path, small_bundle: Path, tmp_path: Path) -> None:
    result = run_without(
        "pyarrow", "embed", folder, "--model", small_bundle, "--layout", "parquet", "--out", tmp_path / "o"
    )
    assert result.returncode == 1
    assert '[parquet]"' in result.stderr
    assert "Traceback" not in result.stderr
