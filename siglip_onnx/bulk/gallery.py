"""Render images as one HTML file with embedded thumbnails: each enlarges when it is clicked, without scripts."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError
from ..image.decode import ImageReader
from ..image.decoder_pool import DecoderPool
from ..image.preprocess import ShrinkFit
from ..options import DEFAULT_LIMITS
from .listing import read_file

# Pixels of the longer side: small thumbnails are sharp in the grid on dense screens, large ones also when enlarged.
_LARGE, _SMALL = 960, 480
MARK = '<meta name="generator" content="siglip_onnx">'  # by which an earlier page is recognized
_MAX_LARGE = 40  # images of a page
MAX_TILES = 1000  # of a page, about 60 MB; commands leave out the others
_STYLE = """
* { box-sizing: border-box } body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width:
100rem; color: #1f2328; background: #fff }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } header p, h2 { color: #59636e; margin: .25rem 0 1.25rem }
h2 { font-size: 1rem; font-weight: normal; margin: 2rem 0 .75rem }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.25rem 1rem; margin: 0;
padding: 0; list-style: none } li { min-width: 0 }
summary { list-style: none; cursor: zoom-in; border-radius: 6px } summary::-webkit-details-marker { display: none }
summary img, .unreadable { display: block; width: 100%; aspect-ratio: 4/3; object-fit: contain; background: #eff1f3;
border-radius: 6px } .unreadable { color: #59636e; display: grid; place-items: center }
details { aspect-ratio: 4/3 }
details[open] summary { position: fixed; inset: 0; z-index: 1; cursor: zoom-out; border-radius: 0; background: #000d;
display: grid; place-items: center }
details[open] summary img { width: 100vw; height: 100vh; height: 100dvh; aspect-ratio: auto; background: none;
padding: 1rem 1rem 3.5rem } details > a { position: fixed; inset: auto 0 0; z-index: 2; padding: 1rem; text-align:
center; color: #fff } .caption { margin: .4rem 0 0; display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem }
.rank { color: #59636e } b { font-variant-numeric: tabular-nums } .file { grid-column: 1/-1; overflow: hidden;
text-overflow: ellipsis; white-space: nowrap } .folder, .note { color: #59636e } .note { grid-column: 1/-1 }
@media (max-width: 40rem) { body { padding: 1rem .75rem } ul { grid-template-columns: 1fr 1fr; gap: 1rem .6rem }
.caption { font-size: 13px } }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } summary img, .unreadable
{ background: #161b22 } header p, h2, .rank, .folder, .note, .unreadable { color: #9198a1 } }
"""


class Tile(NamedTuple):
    """One image of a page: its path, its score and a further note, and the path as it is shown."""

    path: str
    score: str
    note: str = ""
    shown: str = ""


class Group(NamedTuple):
    """Tiles under a heading, which is omitted if it is empty."""

    heading: str
    tiles: Sequence[Tile]


def render_gallery(title: str, subtitle: str, groups: Sequence[Group]) -> str:
    """Return the page; an image that can no longer be read is shown as a gray box.

    Tiles are numbered within their group.
    """
    side = _LARGE if sum(len(group.tiles) for group in groups) <= _MAX_LARGE else _SMALL
    with closing(DecoderPool(ImageReader(draft_size=(side, side)))) as reader:
        rendered = [_render_group(group, side, reader) for group in groups]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"{MARK}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<header><h1>{_escape(title)}</h1><p>{_escape(subtitle)}</p></header>\n" + "".join(rendered) + "</html>\n"
    )


def _render_group(group: Group, side: int, reader: DecoderPool) -> str:
    heading = f"<h2>{_escape(group.heading)}</h2>\n" if group.heading else ""
    tiles = "".join(_render_tile(rank, tile, side, reader) for rank, tile in enumerate(group.tiles, 1))
    return f"{heading}<ul>\n{tiles}</ul>\n"


def _render_tile(rank: int, tile: Tile, side: int, reader: DecoderPool) -> str:
    shown = Path(tile.shown or tile.path)
    name, folder = _escape(shown.name), _escape("" if str(shown.parent) == "." else f"{shown.parent}/")
    link = _escape(Path(os.path.abspath(tile.path)).as_uri())  # noqa: PTH100 - resolve() would follow links
    thumbnail = _thumbnail(tile.path, side, reader)
    image = (
        f'<details name="image"><summary><img alt="{name}" src="{thumbnail}" loading="lazy"></summary>'
        f'<a href="{link}">Open {name}</a></details>'
        if thumbnail
        else f'<a class="unreadable" href="{link}">cannot be read</a>'
    )
    note = f'<span class="note">{_escape(tile.note)}</span>' if tile.note else ""
    return (
        f'<li>{image}<div class="caption"><span class="rank">{rank}</span><b>{_escape(tile.score)}</b>'
        f'<span class="file" title="{folder}{name}">{name}</span>'
        f'<span class="file folder">{folder}</span>{note}</div></li>\n'
    )


def _thumbnail(path: str, side: int, reader: DecoderPool) -> str:
    try:
        image = reader.read(read_file(path, DEFAULT_LIMITS), ShrinkFit(side)).rgb
    except ImageError:
        return ""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _escape(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
