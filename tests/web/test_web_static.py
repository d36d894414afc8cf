"""The page's static files: size, completeness of both languages, Content Security Policy."""

import json
import re
import sys
from pathlib import Path

import siglip_onnx

STATIC = Path(siglip_onnx.__file__).parent / "web" / "static"
ROOT = Path(__file__).parents[2]
LANGUAGES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (STATIC / "i18n").glob("*.json")}
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
PAGE = (STATIC / "index.html").read_text(encoding="utf-8")


def test_page_is_at_most_100_kb() -> None:
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) <= 100_000


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    assert set(LANGUAGES) == {"en", "ja"}
    english, japanese = LANGUAGES["en"], LANGUAGES["ja"]
    assert list(english) == list(japanese)
    for key, sentence in english.items():
        assert sentence, key
        assert japanese[key], key
        assert set(re.findall(r"\{\w+\}", sentence)) == set(re.findall(r"\{\w+\}", japanese[key])), key


def test_japanese_is_japanese() -> None:
    exempt = {"other_language", "image_failed", "api"}
    for key, sentence in LANGUAGES["ja"].items():
        assert key in exempt or re.search(r"[぀-ヿ一-鿿]", sentence), key
        assert not re.search(r"[a-z]{3,} [a-z]{3,} [a-z]{3,}", sentence), f"{key} is partly English"


def test_translation_keys_are_those_that_the_page_uses() -> None:
    code = PAGE + "".join(SCRIPTS.values())
    used = set(re.findall(r'data-i18n(?:-label)?="(\w+)"', PAGE)) | set(re.findall(r'\bt\("(\w+)"', code))
    used |= {key for key in LANGUAGES["en"] if f'"{key}"' in code}
    for prefix in re.findall(r"`(\w+_)\$\{|\bt\(`(\w+_)\$\{", code):
        used |= {key for key in LANGUAGES["en"] if key.startswith(prefix[0] or prefix[1])}
    used |= {f"{action}_row" for action in ("where", "edit", "delete")}
    assert used == set(LANGUAGES["en"])


def test_every_sample_has_a_title_in_both_languages() -> None:
    samples = {f"sample_{path.stem}" for path in (ROOT / "siglip_onnx/demo/images").glob("*.png")}
    assert {key for key in LANGUAGES["en"] if key.startswith("sample_")} == samples


def test_description_of_the_demo_model_is_the_manifests() -> None:
    assert LANGUAGES["en"]["description_demo"] == siglip_onnx.load("demo").bundle.manifest.knows


def test_no_inline_code_and_no_foreign_urls() -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", PAGE)
    for name, text in {"index.html": PAGE, **SCRIPTS}.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text))
        assert not addresses, name
    assert "url(" not in (STATIC / "style.css").read_text(encoding="utf-8")


def test_presets_match_the_examples() -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    import experiments

    languages = {"English": "en", "Japanese": "ja"}
    presets = json.loads((STATIC / "presets.json").read_text(encoding="utf-8"))
    assert presets["counting"]["images"] == [f"{name}.png" for name in experiments.COUNTED]
    assert presets["reading"]["images"] == [f"word_{word}.png" for word in experiments.PRINTED]
    for language, tag in languages.items():
        assert presets["counting"]["texts"][tag] == experiments.NUMBERS[language]
        assert presets["richer"]["texts"][tag] == experiments.RICHER[language]
        read_as = [experiments.READ_AS[language].format(word) for word in experiments.NEAR_WORDS]
        assert presets["reading"]["texts"][tag] == read_as
