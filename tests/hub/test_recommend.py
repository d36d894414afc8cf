"""Recommended checkpoints: order, limits, languages, and what the command prints."""

import json

import pytest
from support.commands import assert_error, run

from siglip_onnx.errors import OptionError, SiglipOnnxError
from siglip_onnx.hub import recommend as module
from siglip_onnx.hub.published import PUBLISHED
from siglip_onnx.hub.recommend import Limits, cost_of, is_multilingual, measured_on, recommend


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that follow from the names, so that tests do not depend on the measured ones."""
    table = {
        checkpoint.name: {"image_ms": float(checkpoint.config.both()[0].num_patches), "text_ms": 20.0,
                          "images_per_second": 5.0, "memory_mb": checkpoint.width.hidden_size, "disk_mb": 300,
                          "estimated": checkpoint.width.hidden_size > 768}
        for checkpoint in PUBLISHED
    }  # fmt: skip
    monkeypatch.setattr(module, "_read_costs", lambda: {"measured_on": "Some CPU", "checkpoints": table})


def names(limits: Limits, *, multilingual: bool = False) -> list[str]:
    return [each.checkpoint.name for each in recommend(limits, multilingual=multilingual)]


def test_the_package_has_costs_of_every_checkpoint() -> None:
    for checkpoint in PUBLISHED:
        cost = cost_of(checkpoint)
        assert min(cost.image_ms, cost.text_ms, cost.images_per_second, cost.memory_mb) > 0
        # Of so400m, weights in files are aligned with gaps of 1.4 %, which these sizes do not count.
        assert cost.disk_mb == pytest.approx(sum(checkpoint.sizes_mb["int8"].values()), rel=0.02)
    assert "onnxruntime" in measured_on()


@pytest.mark.usefixtures("costs")
def test_the_most_accurate_comes_first() -> None:
    found = recommend(Limits(), multilingual=False)
    assert len(found) == 27  # without MedSigLIP
    assert found[0].checkpoint.name == "siglip2-giant-opt-patch16-384"
    accuracies = [each.accuracy or 0 for each in found]
    assert accuracies == sorted(accuracies, reverse=True)
    ties = [each.checkpoint.name for each in found if each.accuracy == 84.1]
    assert ties == ["siglip2-so400m-patch16-384", "siglip2-so400m-patch14-384"]  # 576 and 729 patches


@pytest.mark.usefixtures("costs")
def test_limits() -> None:
    assert names(Limits(image_ms=196))[:2] == ["siglip2-base-patch16-224", "siglip-base-patch16-224"]
    assert names(Limits(memory_mb=768))[0] == "siglip2-base-patch16-512"
    assert names(Limits(memory_mb=1024, image_ms=256))[0] == "siglip2-large-patch16-256"
    with pytest.raises(SiglipOnnxError) as raised:
        recommend(Limits(memory_mb=700, image_ms=10), multilingual=True)
    assert str(raised.value) == (
        "No checkpoint fits 700 MB of memory and 10 ms for one image. The nearest is siglip2-base-patch32-256 with 768 "
        "MB and 64 ms, according to measurements on Some CPU. Allow more, or try it on your machine."
    )


@pytest.mark.usefixtures("costs")
def test_languages() -> None:
    found = recommend(Limits(memory_mb=768), multilingual=True)
    assert [each.checkpoint.name for each in found][:1] == ["siglip2-base-patch16-512"]
    # open_clip's 44.1 is of another protocol, in which it would be the first; NaFlex has no figure.
    last = {each.checkpoint.name for each in found if each.accuracy is None}
    assert last == {"siglip-base-patch16-256-multilingual", "siglip2-base-patch16-naflex"}
    assert {each.checkpoint.name for each in found[-2:]} == last
    assert [is_multilingual(codes) for codes in (["en"], ["en-GB", "EN"], ["en", "ja"], ["multilingual"])] == [
        False, False, True, True,
    ]  # fmt: skip
    with pytest.raises(OptionError, match="'japanese!' is not known"):
        is_multilingual(["japanese!"])


@pytest.mark.usefixtures("costs")
def test_command() -> None:
    result = run("models", "recommend", "--milliseconds", "256", "--memory", "1152")
    header, first, *_ = result.stdout.splitlines()
    assert header.split() == ["model", "INet", "image", "ms", "text", "ms", "RAM", "MB", "disk", "MB"]
    assert first.split() == ["siglip2-so400m-patch16-naflex", "83.5", "~256", "~20", "~1152", "300"]
    lines = [*result.stdout.splitlines(), *result.stderr.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "Some CPU." in result.stderr
    assert "~: not measured" in result.stderr
    assert lines[-1] == "Next: siglip-onnx models pull siglip2-so400m-patch16-naflex"
    assert "~" not in run("models", "recommend", "--memory", "768").stdout
    result = run("models", "recommend", "--language", "ja", "--memory", "768", "--milliseconds", "256")
    assert "siglip-base-patch16-256-multilingual" in result.stdout
    assert "none was published that can be compared" in result.stderr


@pytest.mark.usefixtures("costs")
def test_json() -> None:
    document = json.loads(run("models", "recommend", "--language", "de,fr", "--memory", "768", "--json").stdout)
    first = document["models"][0]
    assert document["limits"] == {"memory_mb": 768, "image_ms": None}
    assert (first["repository"], first["ranked_by"]) == ("google/siglip2-base-patch16-512", 41.4)
    assert first["accuracy"]["imagenet"] == 81.2
    assert (first["image_ms"], first["estimated"]) == (1024, False)


@pytest.mark.usefixtures("costs")
def test_errors_of_the_command() -> None:
    assert_error(run("models", "recommend", "--memory", "1"), 1, "No checkpoint fits 1 MB of memory")
    assert_error(run("models", "recommend", "--language", "no such"), 1, "is not known")
