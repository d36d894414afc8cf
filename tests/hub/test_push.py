"""Upload of bundles to the Hub, and their model cards."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import assert_error, run
from support.hub_server import Hub, serve
from support.manifests import write_document

import siglip_onnx
from siglip_onnx.bundle.folder import open_bundle
from siglip_onnx.bundle.manifest import read_manifest
from siglip_onnx.demo import IMAGES_PATH
from siglip_onnx.hub.card import model_card

NAME = "someone/tiny-siglip"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub to which a token may write, and an empty cache."""
    monkeypatch.setenv("SIGLIP_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serve() as served:
        served.token = "secret"  # noqa: S105
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_pushed_model_can_be_loaded(hub: Hub, small_bundle: Path, copy: Path) -> None:
    (copy / "notes.txt").write_text("not part of the model")
    pushed = run("models", "push", copy, NAME, "--json")
    assert pushed.exit_code == 0, pushed.stderr
    commit, files = hub.repositories[NAME]
    assert json.loads(pushed.stdout) == {"model": NAME, "revision": commit}
    assert set(files) == {"README.md", "manifest.json", *read_manifest(copy).all_files()}
    assert hub.commits == ["Upload small"]
    assert hub.requests["public"] == 1
    model = siglip_onnx.load(NAME, variant="fp32")
    assert (model.encode_texts(["a"]) == siglip_onnx.load(small_bundle, variant="fp32").encode_texts(["a"])).all()
    uploads = dict(hub.uploads)
    assert run("models", "strip", copy, "--keep", "int8").exit_code == 0
    again = run("models", "push", copy, NAME)
    assert again.exit_code == 0, again.stderr
    assert again.stdout.strip() == f"{NAME}@{hub.repositories[NAME][0]}"
    assert hub.uploads == uploads, "files that are there are not sent again"
    assert b"| fp32 |" not in hub.repositories[NAME][1]["README.md"]
    assert run("models", "push", copy, "someone/other", "--private").exit_code == 0
    assert hub.requests["private"] == 1


def test_card_of_a_person_is_kept(hub: Hub, copy: Path) -> None:
    hub.put(NAME, {"README.md": b"My own words."})
    pushed = run("models", "push", copy, NAME)
    assert pushed.exit_code == 0, pushed.stderr
    assert "is kept" in pushed.stderr
    assert hub.repositories[NAME][1]["README.md"] == b"My own words."


def test_commit_that_is_no_commit_is_not_printed(hub: Hub, copy: Path) -> None:
    hub.stated_commit = "\x1b]0;x\x07"
    pushed = run("models", "push", copy, NAME)
    assert_error(pushed, 4, r"The Hub names '\x1b]0;x\x07' as the revision of")
    assert "\x1b]" not in pushed.output  # progress bars move the cursor


def test_files_of_a_checkpoint_are_not_replaced(hub: Hub, copy: Path) -> None:
    mine = {"config.json": b'{"mine": 1}', "model.safetensors": b"weights"}
    other = mine | {"manifest.json": b'{"name": "a web application", "start_url": "/"}'}
    hub.put(NAME, other)
    assert_error(run("models", "push", copy, NAME), 4, "but manifest.json, config.json, so nothing was uploaded")
    assert hub.repositories[NAME][1] == other
    hub.put(NAME, mine)
    refused = run("models", "push", copy, NAME)
    assert_error(refused, 4, "holds no model of siglip_onnx, but config.json, so nothing was uploaded")
    assert hub.repositories[NAME][1] == mine
    assert run("models", "push", copy, NAME, "--overwrite").exit_code == 0
    assert hub.repositories[NAME][1]["model.safetensors"] == b"weights"
    assert run("models", "push", copy, NAME).exit_code == 0, "now it holds a model"


def test_files_that_the_hub_leaves_out_are_named(hub: Hub, copy: Path) -> None:
    """The Hub's client does not send those that .gitignore of the repository names; an earlier one may be there."""
    weights = "onnx/vision_model.onnx_data"
    hub.ignored = {weights}
    lacks = "lacks 1 of the uploaded files, or has others of these names: onnx/vision_model.onnx_data. Remove"
    assert_error(run("models", "push", copy, NAME), 4, lacks)
    _, files = hub.repositories[NAME]
    assert weights not in files
    earlier = bytes((copy / weights).stat().st_size)
    hub.put(NAME, files | {weights: earlier})
    assert_error(run("models", "push", copy, NAME), 4, lacks)
    hub.put(NAME, files | {weights: (copy / weights).read_bytes()})
    assert run("models", "push", copy, NAME).exit_code == 0
    hub.ignored = {"README.md"}
    assert_error(run("models", "push", copy, "someone/other"), 4, "others of these names: README.md. Remove")


def test_nothing_is_uploaded_if_it_may_not_or_the_model_is_damaged(
    hub: Hub, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_error(run("models", "push", copy, "tiny"), 4, "expected owner/name")
    assert_error(run("models", "push", copy, f"{NAME}@v1"), 4, "without a revision")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "wrong")
        assert_error(run("models", "push", copy, NAME), 4, "Set HF_TOKEN to a token that may write to it")
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert_error(run("models", "push", copy, NAME), 4, "offline mode")
    weights = copy / "onnx" / "text_model.onnx_data"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert_error(run("models", "push", copy, NAME), 4, "nothing was uploaded: onnx/text_model.onnx_data: sha256")
    assert hub.repositories == {}


def test_card_states_facts_and_its_commands_run(
    hub: Hub, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("models", "push", small_bundle, NAME).exit_code == 0
    card = hub.repositories[NAME][1]["README.md"].decode()
    int8 = read_manifest(small_bundle).variants["int8"]
    row = next(line for line in card.splitlines() if line.startswith("| int8"))
    assert [cell.strip(" `") for cell in row.split("|")[1:-1]] == [
        "int8",
        f"{int8.size_bytes / 1e6:.1f} MB",
        int8.embedding_space,
        *(f"{int8.accuracy[f'{tower}_cosine_min']:.5f}" for tower in ("vision", "text")),
        f"{int8.accuracy['logit_error_max']:.3f}",
    ]
    monkeypatch.chdir(tmp_path)
    python, command = run_blocks(card)
    assert python.startswith("[Match(text='a cat'")
    assert "a dog" in command


def run_blocks(card: str) -> tuple[str, str]:
    """Run the Python and the last command of a card in the current folder; return what they print."""
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", card, re.M | re.S))
    Path("photo.jpg").write_bytes((IMAGES_PATH / "red_star.png").read_bytes())
    done = subprocess.run([sys.executable, "-c", blocks["python"]], capture_output=True, text=True, check=True)
    shown = run(*shlex.split(blocks["sh"].splitlines()[-1])[1:])
    assert shown.exit_code == 0, shown.stderr
    return done.stdout, shown.stdout


@pytest.mark.export
@pytest.mark.parametrize("kind", ["classifier", "vision", "text"])
def test_card_of_another_kind_of_model(
    kind: str, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.checkpoints import make_classifier, make_single_tower

    if kind == "classifier":
        labels = ("a", "b*", *(f"l{number}" for number in range(2, 120)))
        checkpoint = make_classifier(small_checkpoint, tmp_path / "ck", labels=labels, problem_type=None)
    else:
        checkpoint = make_single_tower(small_checkpoint, tmp_path / "ck", kind)
    assert run("export", checkpoint, tmp_path / "out", "--variant", "fp32").exit_code == 0
    card = model_card(open_bundle(tmp_path / "out"), "./out")
    assert "zero-shot" not in card
    assert "javascript" not in card.lower()
    assert "transformers.js" not in card
    assert ("Labels: a, b , l2, " in card.replace("b,", "b ,") and "l99 and 20 more." in card) == (kind == "classifier")
    monkeypatch.chdir(tmp_path)
    assert run_blocks(card)[0].startswith("[")


def test_card_has_no_markup_from_a_manifest(copy: Path) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    document["description"] = "<script>x</script> [a](b) `c`\n# d"
    document["source"]["checkpoint"] = "evil\n---\n![](x)"
    write_document(copy, document)
    card = model_card(open_bundle(copy), NAME)
    assert "<script" not in card
    assert "](" not in card
    assert card.count("\n---\n") == 1
    assert "base_model" not in card
    document["source"]["checkpoint"] = "google/siglip-base-patch16-224"
    write_document(copy, document)
    assert "base_model: google/siglip-base-patch16-224\n" in model_card(open_bundle(copy), NAME)
