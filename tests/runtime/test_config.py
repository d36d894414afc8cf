from pathlib import Path

import pytest

from siglip_onnx.config import (
    NaflexPreprocessorConfig,
    NaflexVisionConfig,
    PreprocessorConfig,
    TextConfig,
    VisionConfig,
    read_config,
    read_preprocessor_config,
)
from siglip_onnx.errors import CheckpointError, OptionError
from siglip_onnx.head import check_finite


@pytest.mark.export
def test_defaults_are_those_of_transformers() -> None:
    import transformers

    fixed, naflex = transformers.SiglipConfig(), transformers.Siglip2Config()
    for ours, theirs in (
        (VisionConfig(), fixed.vision_config),
        (NaflexVisionConfig(), naflex.vision_config),
        (TextConfig(), fixed.text_config),
        (TextConfig(), naflex.text_config),
    ):
        for name, value in vars(ours).items():
            absent = {"projection_size": theirs.hidden_size, "vision_use_head": True}
            expected = absent[name] if name in absent else getattr(theirs, name)
            assert (value if value is not None else ours.hidden_size) == expected, name


def test_sparse_published_configs(material: Path) -> None:
    configs = material / "configs"
    config = read_config(configs / "siglip2-base-patch16-384_config.json")
    assert isinstance(config.vision, VisionConfig)
    assert (config.vision.image_size, config.vision.num_patches, config.vision.hidden_size) == (384, 576, 768)
    assert (config.text.vocab_size, config.text.max_position_embeddings) == (256000, 64)
    preprocessor = read_preprocessor_config(configs / "siglip2-base-patch16-384_preprocessor_config.json", config)
    assert isinstance(preprocessor, PreprocessorConfig)
    assert (preprocessor.height, preprocessor.width, preprocessor.resample) == (384, 384, 2)
    config = read_config(configs / "siglip2-base-patch16-naflex_config.json")
    assert config.vision == NaflexVisionConfig()
    naflex = read_preprocessor_config(configs / "siglip2-base-patch16-naflex_preprocessor_config.json", config)
    assert naflex == NaflexPreprocessorConfig(patch_size=16, max_num_patches=256, resample=2)


@pytest.mark.export
@pytest.mark.parametrize("name", ["SiglipConfig", "Siglip2Config"])
def test_every_key_of_transformers_is_accepted(name: str, tmp_path: Path) -> None:
    """All attributes, not only those that differ from the defaults, as older versions wrote them."""
    import transformers

    reference = getattr(transformers, name)()
    (tmp_path / "config.json").write_text(reference.to_json_string(use_diff=False))
    assert read_config(tmp_path / "config.json").model_type == reference.model_type


def test_pixels_beyond_the_last_full_patch_are_ignored() -> None:
    assert VisionConfig(image_size=384, patch_size=14).num_patches == 27 * 27


@pytest.mark.parametrize(("content", "message"), [("[1]", "JSON list, expected an object"), ("{", "cannot be read")])
def test_files_that_are_not_a_config(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("value", [10**30, 10_000, 10_000_000])
@pytest.mark.parametrize("name", ["image_size", "patch_size"])
def test_absurd_sizes_are_refused(tmp_path: Path, name: str, value: int) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "siglip", "vision_config": {{"{name}": {value}}}}}')
    with pytest.raises(CheckpointError, match=f"has {name} .*, expected at most 8,192"):
        read_config(tmp_path / "config.json")


def test_numbers_beyond_those_of_floats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        f'{{"model_type": "siglip", "vision_config": {{"layer_norm_eps": {10**400}}}}}'
    )
    with pytest.raises(CheckpointError, match=r"has layer_norm_eps 10+, expected 1 finite number"):
        read_config(tmp_path / "config.json")
    with pytest.raises(OptionError, match=r"threshold is 10+, expected a finite number"):
        check_finite(10**400, "threshold")


def test_absurd_numbers_of_patches_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "siglip", "vision_config": {"image_size": 8192, "patch_size": 1}}'
    )
    with pytest.raises(CheckpointError, match="images of 67,108,864 patches, expected at most 100,000"):
        read_config(tmp_path / "config.json")
