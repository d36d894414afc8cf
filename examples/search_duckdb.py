"""Search an embedded folder with DuckDB, which queries the Parquet files where they lie.

siglip-onnx embed FOLDER --out OUT --layout parquet --model MODEL
python search_duckdb.py OUT TEXT [MODEL]
"""

import json
import sys
from pathlib import Path

import duckdb

import siglip_onnx

out, text, name = Path(sys.argv[1]), sys.argv[2], [*sys.argv, "demo"][3]
facts = json.loads((out / "job.json").read_bytes())
model = siglip_onnx.load(name, variant=facts["variant"])
if model.embedding_space != facts["embedding_space"]:
    sys.exit(f"{out} was embedded with {facts['model_name']}, variant {facts['variant']}; give that model.")
query = model.encode_texts([text])[0]  # float32 (D,), length 1

# All vectors have length 1, so the inner product is the cosine. DOUBLE: float32 sums can swap near-equal images.
# Float16 files (--dtype float16) are read in the same way.
best = duckdb.execute(
    """
    SELECT path, list_inner_product(embedding::DOUBLE[], $query::DOUBLE[]) AS similarity
    FROM read_parquet($files)
    WHERE status = 'ok'
    ORDER BY similarity DESC, path
    LIMIT 10
    """,
    {"query": query.tolist(), "files": str(out / "parquet" / "*.parquet")},
)
for path, similarity in best.fetchall():
    print(f"{similarity:.3f}  {path}")
