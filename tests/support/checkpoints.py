"""Small random SigLIP checkpoints, saved by transformers as the published ones are."""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from support.shapes import SHAPES
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SiglipModel,
)

NAFLEX: dict[str, dict[str, Any]] = {
    "vision": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_patches": 36, "patch_size": 8},
    "text": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "vocab_size": 300, "max_position_embeddings": 16},
}  # fmt: skip

_CORPUS = (
    "a photo of a cat", "two dogs play on the beach", "a red circle", "six brown eggs", "the word open",
    "猫が二匹います", "赤い丸が三つ", "暗い背景に青い星", "bonjour le monde", "0 1 2 3 4 5 6 7 8 9",
    "quick jumping zebras vex five wizards", "ein kleines haus am see",
)  # fmt: skip


def make_checkpoint(path: Path, shape: str, *, max_shard_size: str = "5GB") -> Path:
    """Write a random checkpoint of fixed resolution with tokenizer and image processor."""
    torch.manual_seed(len(shape))
    towers = SHAPES[shape]
    model = SiglipModel(SiglipConfig(text_config=towers["text"], vision_config=towers["vision"]))
    size = towers["vision"]["image_size"]
    resample = 2 if shape == "square" else 3
    SiglipImageProcessor(size={"height": size, "width": size}, resample=resample).save_pretrained(path)
    return save_randomized(model, path, max_shard_size)


def make_naflex_checkpoint(path: Path, *, max_num_patches: int = 40) -> Path:
    """Write a random NaFlex checkpoint with tokenizer and image processor."""
    torch.manual_seed(1)
    model = Siglip2Model(Siglip2Config(text_config=NAFLEX["text"], vision_config=NAFLEX["vision"]))
    patch_size = NAFLEX["vision"]["patch_size"]
    Siglip2ImageProcessor(patch_size=patch_size, max_num_patches=max_num_patches).save_pretrained(path)
    return save_randomized(model, path, "5GB")


def save_randomized(model: Any, path: Path, max_shard_size: str) -> Path:
    """Randomize biases and LayerNorms, which are 0 and 1 in a new model, and save."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".bias", "in_proj_bias")) or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.logit_scale.fill_(4.5)
        model.logit_bias.fill_(-9.25)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    train_sentencepiece(path / "spiece.model", vocab_size=280)
    return path


def train_sentencepiece(path: Path, vocab_size: int) -> None:
    """Train a small Unigram model with SigLIP's special ids."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 3), model_prefix=str(path.with_suffix("")), vocab_size=vocab_size,
        hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()


def make_classifier(
    base: Path, path: Path, *, labels: tuple[str, ...], problem_type: str | None, naflex: bool = False
) -> Path:
    """Write a classifier with random weights in its last layer on the vision tower of ``base``."""
    kind: Any = Siglip2ForImageClassification if naflex else SiglipForImageClassification
    numbers = dict(enumerate(labels))
    model = kind.from_pretrained(
        base, id2label=numbers, label2id={label: number for number, label in numbers.items()}, problem_type=problem_type
    )
    torch.manual_seed(2)
    with torch.no_grad():
        model.classifier.weight.normal_(std=0.3)
        model.classifier.bias.normal_()
    return _save_part(model, base, path, "preprocessor_config.json")


def make_single_tower(base: Path, path: Path, tower: str, *, naflex: bool = False, **config: Any) -> Path:
    """Write one tower of ``base`` as transformers 4 saves it alone; ``config`` replaces keys of its config."""
    family = "Siglip2" if naflex else "Siglip"
    kind: Any = getattr(transformers, f"{family}{tower.title()}Model")
    tower_config = kind.config_class.from_pretrained(base)
    tower_config.update(config)
    model = kind.from_pretrained(base, config=tower_config)
    return _save_part(model, base, path, "preprocessor_config.json" if tower == "vision" else "spiece.model")


def make_vision_language_model(path: Path) -> Path:
    """Write a PaliGemma, whose vision tower has no pooling head."""
    torch.manual_seed(4)
    vision = SHAPES["square"]["vision"] | {"vision_use_head": False, "model_type": "siglip_vision_model"}
    text = {"model_type": "gemma", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    config = PaliGemmaConfig(vision_config=vision | {"projection_dim": 32}, text_config=text, projection_dim=32)
    model = PaliGemmaForConditionalGeneration(config)
    model.save_pretrained(path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def _save_part(model: Any, base: Path, path: Path, *files: str) -> Path:
    model.save_pretrained(path)
    for name in files:
        shutil.copy(base / name, path)
    return path
