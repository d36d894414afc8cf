"""Paths of the embedded demo model: its bundle, sample images and expected embeddings."""

from pathlib import Path

NAME = "demo"
_FOLDER = Path(__file__).parent
BUNDLE_PATH = _FOLDER / "bundle"
IMAGES_PATH = _FOLDER / "images"
GOLDEN_PATH = _FOLDER / "golden.npz"
