"""Compare a model with its PyTorch original, stage by stage; needs torch and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from ..bundle.manifest import FEATURES, LOGITS, POOLED
from ..config import (
    CLASSIFIER,
    CONFIG,
    DUAL,
    NAFLEX,
    SENTENCEPIECE,
    TEXT,
    TOKENIZER,
    VISION,
    NaflexVisionConfig,
    SiglipConfig,
    TextConfig,
    VisionConfig,
    checkpoint_kind,
    is_vision_language,
    plain_sizes,
    read_document,
    read_preprocessor_document,
)
from ..errors import CheckpointError, first_line
from ..head import Floats
from ..image.decode import ImageSource, load_image
from ..layouts import ADAPTER_CONFIG
from ..model import SigLIP
from ..options import DROP
from ..text.growth import read_checked
from ..text.tokenizer_settings import TOKEN_KEYS, named_pad, read_settings, read_sides
from .sizes import check_sizes

# Largest differences allowed for fp32: none of pixels and ids, rounding of other orders of summation otherwise.
VISION_EMBEDDING, TEXT_EMBEDDING = "vision embedding", "text embedding"
ALLOWED = {"pixels": 0.0, "ids": 0.0, VISION_EMBEDDING: 1e-5, TEXT_EMBEDDING: 1e-5, "features": 1e-4, "logits": 1e-4}
# How transformers loads a model. A config may name its attention, and a name of the Hub would be code to download.
LOADING: dict[str, Any] = {"local_files_only": True, "attn_implementation": "sdpa"}
_KNOWN = {field.name for kind in (VisionConfig, NaflexVisionConfig, TextConfig) for field in fields(kind)} | {
    "model_type", "vision_config", "text_config", "id2label", "label2id", "problem_type"
}  # fmt: skip
Rows = tuple[Floats, Floats]  # ours and the reference's


@dataclass(frozen=True)
class StageDifference:
    """One stage against PyTorch: the largest absolute difference, and the smallest cosine where rows are vectors."""

    stage: str
    max_abs: float
    cosine_min: float | None = None

    @property
    def allowed(self) -> float:
        """The largest difference that fp32 may have at this stage."""
        return ALLOWED[self.stage]


def compare_with_pytorch(
    model: SigLIP, checkpoint: Path, images: Sequence[ImageSource], texts: Sequence[str]
) -> list[StageDifference]:
    """Compare pixels, ids, embeddings and logits with those of transformers, as far as the model has them.

    Args:
        model: the variant to compare; only fp32 can be within the allowed differences.
        checkpoint: the folder that the model was exported from.
        images: as :func:`.image.load_image` takes them.
        texts: texts, as they are given to both tokenizers.

    Raises:
        CheckpointError: transformers cannot load the checkpoint, or it is of a model of other sizes.
    """
    manifest, config = model.bundle.manifest, model.bundle.config
    check_sizes(read_document(checkpoint / CONFIG), config, checkpoint)  # before transformers makes what it states
    _check_adapters(checkpoint)
    try:
        reference = load_part(checkpoint, manifest.kind, config)
        processor = None if config.vision is None else image_processor(checkpoint, config)
        tokenize = None if config.text is None else tokenizer(checkpoint, config)
    except CheckpointError as error:
        raise CheckpointError(f"transformers cannot load {checkpoint}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # also of files of other versions
        raise CheckpointError(
            f"transformers cannot load {checkpoint}: {first_line(error)}. If another version than "
            f"{transformers.__version__} saved it, give the original checkpoint."
        ) from error
    check_sizes(reference.config, config, checkpoint)
    stages: dict[str, StageDifference] = {}
    rows: dict[str, Rows] = {}
    with torch.no_grad():
        if processor is not None:
            pixel_error, rows = _compare_images(model, reference, processor, images)
            stages["pixels"] = StageDifference("pixels", pixel_error)
        if tokenize is not None:
            ids = np.array([tokenize(text) for text in texts], np.int64)
            stages["ids"] = StageDifference("ids", float(np.abs(model.tokenize(texts) - ids).max(initial=0)))
            rows[TEXT_EMBEDDING] = model.encode_texts(texts), _unit(_text_features(reference, torch.from_numpy(ids)))
        if manifest.kind == DUAL:
            scale, bias = reference.logit_scale.exp().item(), reference.logit_bias.item()
            pairs = rows[VISION_EMBEDDING], rows[TEXT_EMBEDDING]
            expected = pairs[0][1] @ pairs[1][1].T * scale + bias
            rows["logits"] = model.logits(pairs[0][0], pairs[1][0]), expected
    stages |= {stage: _compare_rows(stage, *both) for stage, both in rows.items()}
    return list(stages.values())


def _check_adapters(checkpoint: Path) -> None:
    """Refuse a folder in which transformers would look for an adapter, whose base may lie anywhere.

    Raises:
        CheckpointError: it has one.
    """
    if (checkpoint / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{checkpoint} has {ADAPTER_CONFIG}; a reference is a whole checkpoint, without an adapter."
        )


def _get(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)


def load_part(checkpoint: Path, kind: str, config: SiglipConfig) -> Any:
    """Return the model of transformers for a kind of model.

    Raises:
        CheckpointError: this version of transformers does not find all weights by their names.
    """
    if kind == DUAL:
        return load_reference(checkpoint)
    names = {VISION: "VisionModel", TEXT: "TextModel", CLASSIFIER: "ForImageClassification"}
    family = "Siglip2" if config.model_type == NAFLEX else "Siglip"
    model_class: Any = getattr(transformers, f"{family}{names[kind]}")
    document = read_document(checkpoint / CONFIG)
    options: dict[str, Any] = {}
    section = document if kind == CLASSIFIER else document.get(f"{kind}_config") or document
    section = known_config(section, checkpoint / CONFIG)
    if is_vision_language(document):
        section["vision_use_head"] = config.vision is not None and config.vision.vision_use_head
    options["config"] = model_class.config_class.from_dict(section)
    if kind != CLASSIFIER and checkpoint_kind(document) != DUAL:
        # transformers 5 writes single towers without the prefix of transformers 4; others have them behind one.
        parts = "embeddings|encoder|post_layernorm|final_layer_norm|head"
        options["key_mapping"] = {rf"^(?:.*vision_tower\.)?(?:{kind}_model\.)?(?=(?:{parts})\.)": f"{kind}_model."}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would warn of weights of other towers, which are not used
    try:
        model, loading = model_class.from_pretrained(
            checkpoint, output_loading_info=True, dtype=torch.float32, **LOADING, **options
        )
    finally:
        transformers.logging.set_verbosity(level)
    if loading["missing_keys"]:
        raise CheckpointError(
            f"transformers {transformers.__version__} does not find {sorted(loading['missing_keys'])[0]!r} in "
            f"{checkpoint}. Use the version of transformers that wrote it."
        )
    return model.eval()


def _compare_images(
    model: SigLIP, reference: Any, processor: Any, images: Sequence[ImageSource]
) -> tuple[float, dict[str, Rows]]:
    """Return the largest difference of pixels, and of each output of the vision tower our rows and the reference's."""
    manifest = model.bundle.manifest
    errors: list[float] = [0.0]
    expected: dict[str, list[Floats]] = {name: [] for name in manifest.vision_outputs}
    for source in images:
        image = load_image(source, background=DROP)  # as transformers 4.57 decodes it
        expected_inputs = processor([image], return_tensors="pt")
        (inputs,) = model.preprocess(image)
        errors.append(_pixel_error(inputs["pixel_values"], expected_inputs["pixel_values"].numpy()))
        outputs = _run_vision(reference, manifest.kind, manifest.vision_outputs, expected_inputs)
        for name, values in expected.items():
            values.append(outputs[name].numpy())

    def loaded() -> Iterator[Image.Image]:
        return (load_image(source, background=DROP) for source in images)

    rows: dict[str, Rows] = {}
    if POOLED in expected:
        rows[VISION_EMBEDDING] = model.encode_images(loaded()), _unit(np.concatenate(expected[POOLED]))
    if FEATURES in expected:
        ours = model.encode_features(loaded())
        # The reference pads the patches of NaFlex.
        cut = [values[0, : len(patches)] for values, patches in zip(expected[FEATURES], ours, strict=True)]
        rows["features"] = np.concatenate(ours), np.concatenate(cut)
    if LOGITS in expected:
        rows["logits"] = np.array(list(model.vision.outputs(LOGITS, loaded()))), np.concatenate(expected[LOGITS])
    return float(np.max(errors)), rows


def _run_vision(reference: Any, kind: str, names: Sequence[str], inputs: Any) -> dict[str, torch.Tensor]:
    """Return the outputs of these names of the vision tower of a model of this kind."""
    if kind == DUAL and FEATURES not in names:
        return {POOLED: reference.get_image_features(**inputs)}
    tower_inputs = {name.replace("pixel_attention_mask", "attention_mask"): values for name, values in inputs.items()}
    hidden = reference.vision_model(**tower_inputs)
    outputs = {FEATURES: hidden.last_hidden_state, POOLED: hidden.pooler_output}
    if kind == CLASSIFIER:
        outputs[LOGITS] = reference(**inputs).logits
        mask = tower_inputs.get("attention_mask", torch.ones(hidden.last_hidden_state.shape[:2]))[..., None]
        outputs[POOLED] = (hidden.last_hidden_state * mask).sum(1) / mask.sum(1)
    return outputs


def _text_features(reference: Any, ids: torch.Tensor) -> Floats:
    """Return the features of texts by a model with both towers, or by a text tower."""
    if hasattr(reference, "get_text_features"):
        features: Floats = reference.get_text_features(ids).numpy()
    else:
        features = reference(ids).pooler_output.numpy()
    return features


def load_reference(checkpoint: Path) -> Any:
    """Load a checkpoint that transformers 4 or 5 saved; the latter may give sizes as lists, and numbers as scalars.

    Raises:
        ValueError: weights are missing, or have other shapes than the config implies.
    """
    path = checkpoint / CONFIG
    document = read_document(path)
    family = "Siglip2" if document.get("model_type") == NAFLEX else "Siglip"
    model_class: Any = getattr(transformers, f"{family}Model")
    config = model_class.config_class.from_dict(known_config(document, path))
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would warn of the two numbers that are set below
    try:
        model, info = model_class.from_pretrained(
            checkpoint, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **LOADING
        )
    finally:
        transformers.logging.set_verbosity(level)
    if info["missing_keys"]:
        raise ValueError(f"it lacks the weight {sorted(info['missing_keys'])[0]!r}")
    for entry in info["mismatched_keys"]:
        name = entry if isinstance(entry, str) else entry[0]  # some versions add the shapes
        getattr(model, name).data.fill_(_read_scalar(checkpoint, name))
    return model.eval()


def known_config(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what a config, and those of its towers, say of sizes and labels: the rest may name code or quantizers.

    Sizes that transformers 5 writes as lists are numbers, as transformers 4 expects them.

    Raises:
        CheckpointError: the sides of images or patches differ.
    """
    towers = ("vision_config", "text_config")
    known = {
        key: known_config(value, path) if key in towers and isinstance(value, dict) else value
        for key, value in document.items()
        if key in _KNOWN
    }
    return plain_sizes(known, path)


def _read_scalar(checkpoint: Path, name: str) -> float:
    """Return one of the head's two numbers, which has no dimension in the file, and one in the model."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in ("logit_scale", "logit_bias") and name in file.keys():  # noqa: SIM118 - no dict
                tensor = file.get_tensor(name)
                if tensor.ndim == 0:
                    return float(tensor.item())
    raise ValueError(f"weight {name!r} has another shape than its config implies")


def image_processor(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return the slow image processor; the fast one gives other pixels, and needs torchvision."""
    naflex = config.model_type == NAFLEX
    kind: Any = transformers.Siglip2ImageProcessor if naflex else transformers.SiglipImageProcessor
    _, settings = read_preprocessor_document(checkpoint)
    return kind.from_dict(settings)


def tokenizer(checkpoint: Path, config: SiglipConfig) -> Any:
    """Return a function from a text to its ids: SigLIP's slow tokenizer, or Gemma's on the lower-cased text."""
    length = config.text.max_position_embeddings if config.text is not None else 0
    settings = {"padding": "max_length", "truncation": True, "max_length": length}
    if (checkpoint / SENTENCEPIECE).exists():
        slow = transformers.SiglipTokenizer(str(checkpoint / SENTENCEPIECE), **_tokenizer_options(checkpoint))
        return lambda text: slow(text, **settings).input_ids
    read_checked(checkpoint / TOKENIZER)  # before the library, which it may not harm
    # Not from_pretrained: version 4 cannot read the tokenizer_config.json of version 5.
    pad = {"pad_token": pad} if (pad := named_pad(checkpoint)) else {}
    gemma = transformers.GemmaTokenizerFast(
        tokenizer_file=str(checkpoint / TOKENIZER),
        add_bos_token=False,
        add_eos_token=True,
        **read_sides(checkpoint),
        **pad,
    )
    return lambda text: gemma(text.lower(), **settings).input_ids


def _tokenizer_options(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of a SentencePiece tokenizer that a checkpoint states, and no others, for the library."""
    settings = read_settings(checkpoint)
    tokens = {
        token["id"]: transformers.AddedToken(**{key: token[key] for key in TOKEN_KEYS}) for token in settings.tokens
    }
    named = {"pad_token": settings.pad} if settings.pad else {}
    special = [token["content"] for token in settings.tokens if token["special"]]
    return {
        "do_lower_case": settings.lower,
        "added_tokens_decoder": tokens,
        "additional_special_tokens": special,
        **read_sides(checkpoint),
    } | named


def _pixel_error(pixels: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference; NaFlex's reference pads with zeros, this package does not pad."""
    if pixels.ndim == 3:
        padding = expected[:, pixels.shape[1] :]
        expected = expected[:, : pixels.shape[1]]
        if padding.any():
            return float(np.abs(padding).max())
    return float(np.abs(pixels - expected).max())


def _unit(features: Floats) -> Floats:
    unit: Floats = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _compare_rows(stage: str, rows: Floats, expected: Floats) -> StageDifference:
    is_unit = stage in (VISION_EMBEDDING, TEXT_EMBEDDING)
    cosine = float((rows * expected).sum(axis=1).min()) if is_unit else None
    return StageDifference(stage, float(np.abs(rows - expected).max()), cosine)
