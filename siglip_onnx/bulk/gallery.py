"""Render search results as one HTML file with embedded thumbnails, each of which links to its image."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import ImageError
from ..image.decode import load_image
from ..options import DEFAULT_LIMITS
from .listing import read_file
from .search import Hit

_SIDE = 320
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; padding: 0;
list-style: none }
img, .unreadable { width: 100%; height: 12rem; object-fit: contain; background: #f2f2f2; display: block }
.unreadable { color: #777; padding: 1rem; box-sizing: border-box }
b { font-variant-numeric: tabular-nums } small { color: #666; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #181818 } img, .unreadable { background: #262626 }
small, .unreadable { color: #aaa } a { color: inherit } }
"""


def render_gallery(title: str, hits: Sequence[Hit], *, probability: bool = True) -> str:
    """Return the page; an image that can no longer be read is shown as a gray box.

    Each image has its probability and logit, or its similarity alone if ``probability`` is False.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{_escape(title)}</h1>\n<ul>\n"
        + "".join(_render_hit(hit, probability) for hit in hits)
        + "</ul>\n</html>\n"
    )


def _render_hit(hit: Hit, probability: bool) -> str:
    name = _escape(Path(hit.path).name)
    thumbnail = _thumbnail(hit.path)
    content = f'<img alt="{name}" src="{thumbnail}">' if thumbnail else '<span class="unreadable">cannot be read</span>'
    score = f"{hit.probability if probability else hit.similarity:.3g}"
    logit = f"logit {hit.logit:.2f}, " if probability else ""
    return (
        f'<li><a href="{_escape(Path(hit.path).as_uri())}">{content}</a> <b>{score}</b> '
        f"<small>{logit}{name}</small></li>\n"
    )


def _thumbnail(path: str) -> str:
    try:
        image = load_image(read_file(path, DEFAULT_LIMITS), draft_size=(_SIDE, _SIDE))
    except ImageError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
