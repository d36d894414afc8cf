"""The embedded demo model: where its bundle, sample images and expected answers are."""

from pathlib import Path

NAME = "demo"
_FOLDER = Path(__file__).parent
BUNDLE_PATH = _FOLDER / "bundle"
IMAGES_PATH = _FOLDER / "images"
GOLDEN_PATH = _FOLDER / "golden.npz"
