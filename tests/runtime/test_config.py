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
from siglip_onnx.errors import CheckpointError


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
            expected = theirs.hidden_size if name == "projection_size" else getattr(theirs, name)
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
