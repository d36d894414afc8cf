"""Images: decode a path, bytes, a PIL image or an array to RGB, and prepare RGB for the vision tower."""

from ..options import DEFAULT_LIMITS, SERVER_LIMITS, ImageLimits
from .decode import FORMATS, DecodedImage, ImageReader, ImageSource, load_image, open_image

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "SERVER_LIMITS",
    "DecodedImage",
    "ImageLimits",
    "ImageReader",
    "ImageSource",
    "Picture",
    "load_image",
    "open_image",
    "open_picture",
]

open_picture, Picture = open_image, DecodedImage  # names of version 0.1
