"""Search an embedded folder with FAISS.

siglip-onnx embed FOLDER --out OUT --layout parquet --model MODEL
python search_faiss.py OUT TEXT [MODEL]
"""

import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet

import siglip_onnx

out, text, name = Path(sys.argv[1]), sys.argv[2], [*sys.argv, "demo"][3]
facts = json.loads((out / "job.json").read_bytes())
model = siglip_onnx.load(name, variant=facts["variant"])
if model.embedding_space != facts["embedding_space"]:
    sys.exit(f"{out} was embedded with {facts['model_name']}, variant {facts['variant']}; give that model.")
query = model.encode_texts([text])  # float32 (1, D), length 1

# All vectors have length 1, so the inner product is the cosine; do not normalize float16 vectors again.
# This index is exact. For tens of millions of vectors, use another one, for example
# faiss.index_factory(D, "IVF4096,SQ8", faiss.METRIC_INNER_PRODUCT), which is trained first (index.train); measure how
# many of the exact results it finds; and keep it with faiss.write_index.
index = faiss.IndexFlatIP(facts["embedding_dim"])
paths: list[str] = []
for file in sorted((out / "parquet").glob("*.parquet")):
    rows = pyarrow.parquet.read_table(file, columns=["path", "embedding"], filters=[("status", "=", "ok")])
    values = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    index.add(values.reshape(len(rows), facts["embedding_dim"]).astype(np.float32))  # FAISS takes float32 only
    paths += rows["path"].to_pylist()
similarities, rows_found = index.search(query, min(10, len(paths)))
for similarity, row in zip(similarities[0], rows_found[0], strict=True):
    print(f"{similarity:.3f}  {paths[row]}")
