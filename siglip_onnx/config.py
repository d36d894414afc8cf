"""Read a checkpoint's ``config.json`` and ``preprocessor_config.json`` into frozen dataclasses.

Keys and defaults are those of Hugging Face transformers 4.57 (``SiglipConfig``, ``SiglipImageProcessor``);
published files are sparse and rely on the defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError
from .system.json_files import read_json_object

# Files of a checkpoint, as on the Hugging Face Hub; a bundle has those of CONFIGS and TOKENIZER too.
CONFIG, PREPROCESSOR_CONFIG = "config.json", "preprocessor_config.json"
CONFIGS = (CONFIG, PREPROCESSOR_CONFIG)
WEIGHTS, SHARD_INDEX = "model.safetensors", "model.safetensors.index.json"
PYTORCH_WEIGHTS, PYTORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SENTENCEPIECE, TOKENIZER, TOKENIZER_CONFIG = "spiece.model", "tokenizer.json", "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"  # beside a tokenizer_config.json of transformers 4
PROCESSOR_CONFIG = "processor_config.json"  # in it transformers 5 nests the settings of preprocessor_config.json
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)

SIGLIP, NAFLEX = "siglip", "siglip2"  # values of model_type; SigLIP 2 of fixed resolution has the first
VISION, TEXT = "vision", "text"
TOWERS = (VISION, TEXT)
# Kinds of models, and the towers of each; a classifier is a vision tower with fixed labels.
DUAL, CLASSIFIER = "dual", "classifier"
TOWERS_OF = {DUAL: TOWERS, VISION: (VISION,), TEXT: (TEXT,), CLASSIFIER: (VISION,)}
# Values of model_type of a single tower, whose config is not nested, with its family and tower.
SINGLE_TOWERS = {f"{family}_{tower}_model": (family, tower) for family in (SIGLIP, NAFLEX) for tower in TOWERS}
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)  # of classifiers
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")
MAX_IMAGE_SIZE, _MAX_PATCHES = 8_192, 100_000
# Far above all models: the sizes decide what is allocated for an image or a text, and how many layers are listed.
_MAX_COUNT = 10_000_000
_MAX_COUNTS = {
    "num_hidden_layers": 1_000, "num_attention_heads": 10_000, "hidden_size": 100_000, "projection_size": 100_000,
    "intermediate_size": 1_000_000, "max_position_embeddings": 4096, "image_size": MAX_IMAGE_SIZE,
    "height": MAX_IMAGE_SIZE, "width": MAX_IMAGE_SIZE, "patch_size": MAX_IMAGE_SIZE, "num_patches": _MAX_PATCHES,
    "max_num_patches": _MAX_PATCHES,
}  # fmt: skip
IMAGE_STEPS = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize")
RESAMPLE_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# Keys that do not change the computation: names, training, other kinds of models. They are listed rather than ignored
# by default, so that a key of a future version that does change it is refused instead of giving other embeddings.
WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures attention_dropout
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature text_config tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p use_bfloat16 vision_config vision_use_head
    """.split()  # noqa: SIM905 - shorter than a list
)


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a tower's transformer layers."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class VisionConfig(EncoderConfig):
    """Shape of the vision tower; sizes in pixels. Without ``vision_use_head`` it has no MAP head, which pools."""

    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    vision_use_head: bool = True

    @property
    def num_patches(self) -> int:
        """Patches of one image; pixels beyond the last full patch are ignored."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class NaflexVisionConfig(EncoderConfig):
    """Shape of a NaFlex vision tower, which takes images of any aspect as a variable number of patches.

    ``num_patches`` is the size of the square grid of learned positions, which is resized to each image's grid.
    """

    num_channels: int = 3
    num_patches: int = 256
    patch_size: int = 16
    vision_use_head: bool = True


@dataclass(frozen=True)
class TextConfig(EncoderConfig):
    """Shape of the text tower; ``max_position_embeddings`` is the fixed length of ``input_ids``."""

    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int | None = None

    @property
    def embedding_dim(self) -> int:
        """Width of a text embedding."""
        return self.projection_size or self.hidden_size


@dataclass(frozen=True)
class SiglipConfig:
    """The towers of one checkpoint; None for a tower that it does not have.

    ``num_labels`` is the number of rows of the layer that a classifier has in place of the text tower, else 0.
    """

    model_type: str
    vision: VisionConfig | NaflexVisionConfig | None
    text: TextConfig | None
    num_labels: int = 0

    def both(self) -> tuple[VisionConfig | NaflexVisionConfig, TextConfig]:
        """Return the configs of both towers, for models that have both.

        Raises:
            CheckpointError: one is missing.
        """
        if self.vision is None or self.text is None:
            raise CheckpointError("The model has only one tower, but both are expected. Choose a complete checkpoint.")
        return self.vision, self.text

    @property
    def embedding_dim(self) -> int:
        """Width of an embedding."""
        return self.text.embedding_dim if self.text is not None else self.vision.hidden_size if self.vision else 0


@dataclass(frozen=True)
class LevelsConfig:
    """How the 256 levels of each channel are rescaled, then normalized."""

    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PreprocessorConfig:
    """Squash an image to ``(height, width)`` with a PIL filter."""

    height: int
    width: int
    resample: int = 3
    levels: LevelsConfig = LevelsConfig()


@dataclass(frozen=True)
class NaflexPreprocessorConfig:
    """Resize an image, its aspect nearly kept, to at most ``max_num_patches`` whole patches with a PIL filter."""

    patch_size: int = 16
    max_num_patches: int = 256
    resample: int = 2
    levels: LevelsConfig = LevelsConfig()


Tower = TypeVar("Tower", VisionConfig, NaflexVisionConfig, TextConfig)


def checkpoint_kind(document: Mapping[str, Any]) -> str:
    """Return the kind of model that a checkpoint's ``config.json`` describes, one of :data:`TOWERS_OF`."""
    model_type, architectures = str(document.get("model_type")), document.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if any(str(name).endswith("ForImageClassification") for name in names):
        return CLASSIFIER
    if model_type in SINGLE_TOWERS:
        return SINGLE_TOWERS[model_type][1]
    return VISION if is_vision_language(document) else DUAL


def is_vision_language(document: Mapping[str, Any]) -> bool:
    """Say whether a ``config.json`` is that of a vision-language model with the vision tower of a SigLIP inside."""
    vision = document.get("vision_config")
    in_vision = SINGLE_TOWERS.get(str(vision.get("model_type"))) if isinstance(vision, dict) else None
    return in_vision is not None and in_vision[1] == VISION and document.get("model_type") not in (SIGLIP, NAFLEX)


def read_config(path: Path, kind: str = DUAL) -> SiglipConfig:
    """Read the ``config.json`` of a model of this kind.

    Raises:
        CheckpointError: the file is missing or not JSON, or the checkpoint's family is not supported.
    """
    return parse_config(read_document(path), path, kind)


def parse_config(document: Mapping[str, Any], path: Path, kind: str = DUAL) -> SiglipConfig:
    """Return the config that ``document`` describes, of the towers that a model of this kind has.

    ``path`` is named in errors.

    Raises:
        CheckpointError: the checkpoint's family is not supported, or it does not have these towers.
    """
    model_type = document.get("model_type")
    family, single = SINGLE_TOWERS.get(str(model_type), (str(model_type), None))
    if family not in (SIGLIP, NAFLEX):
        raise CheckpointError(
            f"{path} is of model_type {model_type!r}, expected {SIGLIP!r}, or {NAFLEX!r} for NaFlex. "
            "Choose a SigLIP or SigLIP 2 checkpoint, for example google/siglip-base-patch16-256-multilingual."
        )
    towers = TOWERS_OF[kind]
    missing = [tower for tower in towers if single not in (None, tower)]
    if missing:
        raise CheckpointError(f"{path} is of a {single} tower alone, but the {missing[0]} tower is expected too.")
    if single is None:
        _refuse_unknown(document, set(), path)
    documents = {tower: document if single else document.get(f"{tower}_config") or {} for tower in towers}
    vision: VisionConfig | NaflexVisionConfig | None = None
    if VISION in towers:
        if family == NAFLEX:
            vision = _read_tower(NaflexVisionConfig, documents[VISION], path)
        else:
            vision = _read_tower(VisionConfig, documents[VISION], path)
    if vision is not None and vision.num_patches > _MAX_PATCHES:
        raise CheckpointError(
            f"{path} has images of {vision.num_patches:,} patches, expected at most {_MAX_PATCHES:,}. "
            "Download the file again."
        )
    text = _read_tower(TextConfig, documents[TEXT], path) if TEXT in towers else None
    config = SiglipConfig(family, vision, text)
    if vision is not None and text is not None:
        _check_pair(vision, text, path)
    return config


def _check_pair(vision: VisionConfig | NaflexVisionConfig, text: TextConfig, path: Path) -> None:
    """Check that images can be compared with texts."""
    if not vision.vision_use_head:
        raise CheckpointError(
            f"{path} has a vision tower without its pooling head (vision_use_head: false), so that images have no "
            "embedding. Export a checkpoint with two complete towers, or only this tower: --tower vision"
        )
    if vision.hidden_size != text.embedding_dim:
        raise CheckpointError(
            f"{path}: images are embedded in {vision.hidden_size} dimensions and texts in "
            f"{text.embedding_dim}; they must be the same. Check text_config.projection_size."
        )


def read_preprocessor_config(path: Path, config: SiglipConfig) -> PreprocessorConfig | NaflexPreprocessorConfig:
    """Read the ``preprocessor_config.json`` that belongs to ``config``.

    Raises:
        CheckpointError: the file is missing or not JSON, requires a step that SigLIP's processor does not have, or
            produces images of another size than the vision tower takes.
    """
    return parse_preprocessor_config(read_document(path), config, path)


def find_preprocessor_document(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return a folder's settings of images in the flat form, and their file; nested ones first, as transformers 5.

    Raises:
        CheckpointError: the file is not JSON.
    """
    path = folder / PREPROCESSOR_CONFIG
    if (folder / PROCESSOR_CONFIG).exists():
        nested = read_document(folder / PROCESSOR_CONFIG).get("image_processor")
        if isinstance(nested, dict):
            return folder / PROCESSOR_CONFIG, _with_sides(nested)
    return (path, _with_sides(read_document(path))) if path.exists() else None


def read_preprocessor_document(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return what :func:`find_preprocessor_document` finds in a checkpoint.

    Raises:
        CheckpointError: the folder has neither form.
    """
    path = folder / PREPROCESSOR_CONFIG
    return find_preprocessor_document(folder) or (path, _with_sides(read_document(path)))


def _with_sides(document: dict[str, Any]) -> dict[str, Any]:
    size = document.get("size")
    if type(size) is int:
        return document | {"size": {"height": size, "width": size}}
    return document


def plain_sizes(vision: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a vision tower's config with one number for each side that may be a list of two in transformers 5.

    Raises:
        CheckpointError: the sides differ.
    """
    return {
        key: _side(value, key, path) if key in ("image_size", "patch_size") else value for key, value in vision.items()
    }


def _side(value: Any, name: str, path: Path) -> Any:
    """Return the one side of a square that is given as a list of two."""
    if not isinstance(value, list):
        return value
    if len(value) not in (1, 2) or value[0] != value[-1]:
        raise CheckpointError(f"{path} has {name} {value!r}, expected a number, or twice the same.")
    return value[0]


def parse_preprocessor_config(
    document: Mapping[str, Any], config: SiglipConfig, path: Path
) -> PreprocessorConfig | NaflexPreprocessorConfig:
    """Return the preprocessing that ``document`` describes; ``path`` is named in errors.

    Raises:
        CheckpointError: as :func:`read_preprocessor_config`.
    """
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if document.get(key) is False:
            raise CheckpointError(f"{path} has {key}: false; SigLIP needs this step. Remove the key or set it to true.")
    unsupported = [key for key, value in document.items() if key.startswith("do_") and value and key not in IMAGE_STEPS]
    if unsupported:
        raise CheckpointError(
            f"{path} has {unsupported[0]}: true, a step that SigLIP's processor does not have: the whole image is "
            "used, never cropped or padded. Use the preprocessor_config.json of the original checkpoint."
        )
    if isinstance(config.vision, NaflexVisionConfig):
        return _read_naflex_preprocessor(document, config.vision, path)
    if config.vision is None:
        raise CheckpointError(f"{path} is about images, but the model has no vision tower. Remove the file.")
    return _read_squash_preprocessor(document, config.vision, path)


def _read_naflex_preprocessor(
    document: Mapping[str, Any], vision: NaflexVisionConfig, path: Path
) -> NaflexPreprocessorConfig:
    patch_size = _count(document.get("patch_size", 16), "patch_size", path)
    if patch_size != vision.patch_size:
        raise _other_size(path, "patches", vision.patch_size, (patch_size, patch_size))
    max_num_patches = _count(document.get("max_num_patches", 256), "max_num_patches", path)
    return NaflexPreprocessorConfig(
        patch_size, max_num_patches, _read_filter(document, 2, path), _read_levels(document, path)
    )


def _read_squash_preprocessor(document: Mapping[str, Any], vision: VisionConfig, path: Path) -> PreprocessorConfig:
    size = document.get("size") or {"height": 224, "width": 224}
    if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
        raise CheckpointError(f"{path} has size {size!r}, expected {{'height': ..., 'width': ...}} in pixels.")
    height, width = (_count(size[side], side, path) for side in ("height", "width"))
    if {height, width} != {vision.image_size}:
        raise _other_size(path, "images", vision.image_size, (height, width))
    return PreprocessorConfig(height, width, _read_filter(document, 3, path), _read_levels(document, path))


def _read_filter(document: Mapping[str, Any], default: int, path: Path) -> int:
    resample = document.get("resample", default)
    if type(resample) is not int or resample not in RESAMPLE_FILTERS:
        raise CheckpointError(f"{path} has resample {resample!r}, expected one of {sorted(RESAMPLE_FILTERS)}.")
    return resample


def _read_levels(document: Mapping[str, Any], path: Path) -> LevelsConfig:
    levels = LevelsConfig(
        rescale_factor=_numbers(document, "rescale_factor", (1 / 255,), path)[0],
        image_mean=_numbers(document, "image_mean", (0.5, 0.5, 0.5), path),
        image_std=_numbers(document, "image_std", (0.5, 0.5, 0.5), path),
    )
    if 0 in levels.image_std:
        raise CheckpointError(f"{path} has image_std {list(levels.image_std)}; image_std must be non-zero.")
    return levels


def _other_size(path: Path, what: str, takes: int, size: tuple[int, int]) -> CheckpointError:
    return CheckpointError(
        f"{path} makes {what} of {size[0]}x{size[1]} pixels, but the vision tower takes {takes}x{takes}. The two files "
        "do not belong together."
    )


def _read_tower(kind: type[Tower], document: Any, path: Path) -> Tower:
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} has a tower's config that is a {type(document).__name__}, expected an object.")
    known = {field.name for field in fields(kind)}
    _refuse_unknown(document, known, path)
    values = {key: value for key, value in document.items() if key in known}
    for name, value in values.items():
        if name == "layer_norm_eps":
            values[name] = _numbers(values, name, (1e-6,), path)[0]
        elif name == "vision_use_head":
            values[name] = value is not False
        elif name != "hidden_act" and not (name == "projection_size" and value is None):
            _count(value, name, path)
    tower = kind(**values)
    if tower.hidden_act not in ACTIVATIONS:
        raise CheckpointError(f"{path} has hidden_act {tower.hidden_act!r}, expected one of {ACTIVATIONS}.")
    if tower.hidden_size % tower.num_attention_heads:
        raise CheckpointError(
            f"{path} has hidden_size {tower.hidden_size}, which is not divisible by its "
            f"{tower.num_attention_heads} attention heads."
        )
    if getattr(tower, "num_channels", 3) != 3:
        raise CheckpointError(f"{path} has num_channels {document['num_channels']}; images are RGB, so 3 is expected.")
    return tower


def _count(value: Any, name: str, path: Path) -> int:
    """Return a whole number above 0, and below what any model has."""
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path} has {name} {value!r}, expected a whole number above 0.")
    limit = _MAX_COUNTS.get(name, _MAX_COUNT)
    if value > limit:
        shown = value if value < 10**20 else f"of {value.bit_length()} bits"
        raise CheckpointError(f"{path} has {name} {shown}, expected at most {limit:,}. Download the file again.")
    return value


def _numbers(document: Mapping[str, Any], name: str, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    """Return as many finite numbers as ``default`` has; one number stands for all of them."""
    value = document.get(name)
    if value is None:
        return default
    values = value if isinstance(value, list) else [value] * len(default)
    # isfinite raises an error for whole numbers that are too large for a float.
    finite = all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in values)
    if not finite or len(values) != len(default):
        raise CheckpointError(f"{path} has {name} {value!r:.100}, expected {len(default)} finite number(s).")
    return tuple(map(float, values))


def _refuse_unknown(document: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Raise for a key that might change the computation: ignoring it could give other embeddings than PyTorch."""
    unknown = sorted(key for key, value in document.items() if value and key not in known | WITHOUT_EFFECT)
    if unknown:
        raise CheckpointError(
            f"{path} has {', '.join(unknown)}, which SigLIP's config in transformers 4.57 does not have and which may "
            "change the embeddings. If it does not, remove it from the file."
        )


def read_document(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        CheckpointError: the file is missing or not JSON.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist. A checkpoint is a folder as on the Hugging Face Hub, with config.json, "
            "preprocessor_config.json, a tokenizer and model.safetensors."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Download it again.") from error
