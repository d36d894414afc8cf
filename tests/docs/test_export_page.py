"""The commands of docs/export.md run."""

import re
import shlex
from pathlib import Path

import pytest
from support.commands import run

from siglip_onnx.demo import BUNDLE_PATH, IMAGES_PATH

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def write_layouts(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Write a checkpoint of each layout that a command of the page names."""
    import numpy as np
    from safetensors.numpy import save_file
    from support import checkpoints, layouts

    open_clip, archive, adapter = folder / "open_clip", folder / "archive.npz", folder / "adapter"
    reference = layouts.make_wide_checkpoint(open_clip)
    save_file(layouts.open_clip_weights(reference), open_clip / "open_clip_model.safetensors")
    (open_clip / "model.safetensors").unlink()
    layouts.write_json(open_clip / "open_clip_config.json", layouts.OPEN_CLIP_CONFIG)
    np.savez(archive, **layouts.big_vision_arrays(checkpoint, scan=True))
    adapter.mkdir()
    layer = "base_model.model.vision_model.post_layernorm.bias"
    save_file({layer: np.zeros(64, np.float32)}, adapter / "adapter_model.safetensors")
    layouts.write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 8})
    labels = ("a cat", "a dog", "a bird")
    classifier = checkpoints.make_classifier(
        checkpoint, folder / "classifier", labels=labels, problem_type="single_label_classification"
    )
    return {"OPEN_CLIP": open_clip, "BIG_VISION.npz": archive, "ADAPTER": adapter, "CLASSIFIER": classifier}


@pytest.mark.slow
def test_commands_run(
    small_checkpoint: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {
        "CHECKPOINT": small_checkpoint,
        "ONNX_FOLDER": small_bundle,
        "IMAGES": IMAGES_PATH,
        "LABELS": BUNDLE_PATH.parent / "texts.txt",
        "photo.jpg": IMAGES_PATH / "red_star.png",
        "spiece.model": small_checkpoint / "spiece.model",
    } | write_layouts(small_checkpoint, tmp_path / "layouts")
    commands = re.findall(r"^siglip-onnx (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 22
    for command in commands:
        arguments = [str(paths.get(word, word)) for word in shlex.split(command, comments=True)]
        result = run(*arguments)
        assert result.exit_code == 0, f"{command}: {result.stderr}"
