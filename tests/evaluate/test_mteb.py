"""MTEB scores the model of ``examples/mteb_model.py`` as ``siglip-onnx evaluate`` does, on a task of drawn images."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.commands import run
from support.drawn import draw_folders, write_csv
from support.examples import run_example

PROGRAM = """
import json, sys
from pathlib import Path

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb_model import MtebModel
from PIL import Image

rows = json.loads(Path(sys.argv[1]).read_bytes())
images = [Image.open(row["path"]) for row in rows]
names = sorted({row["label"] for row in rows})
ids = [str(number) for number in range(len(rows))]


def describe(name, kind, category, score):
    return TaskMetadata(
        name=name, type=kind, category=category, main_score=score, description="Drawn images.",
        reference="https://example.com", dataset={"path": "drawn", "revision": "1"}, eval_splits=["test"],
        eval_langs=["eng-Latn"], date=("2026-01-01", "2026-01-01"), dialect=[], domains=[], task_subtypes=[],
        license="apache-2.0", annotations_creators="derived", modalities=["image", "text"], sample_creation="created",
        bibtex_citation="",
    )


class Labels(AbsTaskZeroShotClassification):
    metadata = describe("Labels", "ZeroShotClassification", "i2t", "accuracy")

    def load_data(self, **_):
        labels = [names.index(row["label"]) for row in rows]
        self.dataset = DatasetDict({"test": Dataset.from_dict({"image": images, "label": labels})})
        self.data_loaded = True

    def get_candidate_labels(self):
        return names


class Captions(AbsTaskRetrieval):
    sides = "image", "text"

    def load_data(self, **_):
        columns = {"image": images, "text": [row["caption"] for row in rows]}
        queries, corpus = (Dataset.from_dict({"id": ids, side: columns[side]}) for side in self.sides)
        relevant = {key: {key: 1} for key in ids}
        split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class ImageToText(Captions):
    metadata = describe("ImageToText", "Any2AnyRetrieval", "i2t", "recall_at_1")


class TextToImage(Captions):
    metadata = describe("TextToImage", "Any2AnyRetrieval", "t2i", "recall_at_1")
    sides = "text", "image"


model = MtebModel("demo", variant="int8")
result = mteb.evaluate(model, [Labels(), ImageToText(), TextToImage()], cache=None, co2_tracker=False)
meta = model.mteb_model_meta
print(json.dumps({
    "scores": {task.task_name: task.scores["test"][0] for task in result.task_results},
    "meta": {key: getattr(meta, key) for key in ("name", "revision", "embed_dim", "modalities", "max_tokens")},
}))
"""


def test_mteb_gives_the_scores_of_evaluate(tmp_path: Path) -> None:
    if find_spec("mteb") is None:
        pytest.skip("mteb is not installed: pip install mteb")
    paths = draw_folders(tmp_path / "set", 4, seed=4)
    rows = [
        {"path": str(path), "label": path.parent.name, "caption": f"{path.parent.name} {number}"}
        for number, path in enumerate(paths)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    done = run_example("-c", PROGRAM, tmp_path / "rows.json", folder=tmp_path, HF_HOME=str(tmp_path / "hub"),
                       MTEB_CACHE=str(tmp_path / "mteb"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    captions = write_csv(tmp_path / "x.csv", ("path", "caption"), [(row["path"], row["caption"]) for row in rows])
    labels, retrieval = (
        json.loads(run("evaluate", "demo", data, "--variant", "int8", "--json").stdout)
        for data in (tmp_path / "set", captions)
    )
    expected = {key: score["value"] for key, score in labels["variants"]["int8"]["scores"].items()}
    expected |= {key: score["value"] for key, score in retrieval["variants"]["int8"]["scores"].items()}
    found = {"top1": answer["scores"]["Labels"]["accuracy"]}
    for way, task in (("image_to_text", "ImageToText"), ("text_to_image", "TextToImage")):
        found |= {f"{way}@{k}": answer["scores"][task][f"recall_at_{k}"] for k in (1, 5, 10)}
    assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-4)  # MTEB rounds
    assert 0.2 < found["text_to_image@1"] < found["text_to_image@5"] < 1
    assert found["top1"] < 1
    assert answer["meta"] == {
        "name": "siglip_onnx/demo-int8",
        "revision": labels["embedding_spaces"]["int8"],
        "embed_dim": 128,
        "modalities": ["text", "image"],
        "max_tokens": 32,
    }
