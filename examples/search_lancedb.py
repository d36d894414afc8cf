"""Search an embedded folder with LanceDB, an embedded vector database; it is imported into OUT.lancedb once.

siglip-onnx embed FOLDER --out OUT --layout parquet --model MODEL
python search_lancedb.py OUT TEXT [MODEL]
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import lancedb
import pyarrow.parquet

import siglip_onnx

out, text, name = Path(sys.argv[1]), sys.argv[2], [*sys.argv, "demo"][3]
facts = json.loads((out / "job.json").read_bytes())
model = siglip_onnx.load(name, variant=facts["variant"])
if model.embedding_space != facts["embedding_space"]:
    sys.exit(f"{out} was embedded with {facts['model_name']}, variant {facts['variant']}; give that model.")
query = model.encode_texts([text])[0]  # float32 (D,), length 1

# The receipts hold the hashes of all files, so that the table's name changes when the folder is embedded again.
receipts = b"".join(path.read_bytes() for path in sorted((out / "receipts").iterdir()))
table_name = hashlib.sha256(receipts).hexdigest()
database = lancedb.connect(f"{out}.lancedb")
try:
    table = database.open_table(table_name)
except ValueError:  # not imported yet
    rows = pyarrow.parquet.read_table(out / "parquet", columns=["path", "embedding"], filters=[("status", "=", "ok")])
    table = database.create_table(table_name, rows)

# "dot", not "cosine": all vectors have length 1, but rounding to float16 changes lengths by up to 0.0005, which
# "cosine" would undo. Without an index every vector is compared. For tens of millions of vectors, call
# table.create_index(metric="dot") after the import, and measure how many of the exact results it finds.
best: Any = table.search(query)  # the result of an untyped function
best = best.distance_type("dot").limit(10)
for row in best.to_list():
    print(f"{1 - row['_distance']:.3f}  {row['path']}")
