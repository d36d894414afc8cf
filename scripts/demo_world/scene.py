"""The content of a demo image, and which descriptions are true of it and how complete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from .lexicon import MAX_COUNT, TRAINED_PAIRS, WORDS

ANY = -1  # a field that a description leaves open, or that a scene does not have
KIND_SHARES = {"single": 0.1, "count": 0.25, "relation": 0.4, "word": 0.25}  # of the scenes to train on
SEVERAL = MAX_COUNT + 1  # the count of an English plural without a number


class Relation(IntEnum):
    """Where the first of two objects lies; ``right of`` and ``below`` are said by swapping the objects."""

    LEFT_OF = 0
    ABOVE = 1


@dataclass(frozen=True)
class Scene:
    """The facts of an image, and equally the claims of a description (indices into the lexicon, ``ANY`` if open).

    A word is printed in ``color`` and has no shape. ``count`` belongs to the first object; a second one stands alone.
    """

    color: int = ANY
    shape: int = ANY
    count: int = ANY
    relation: int = ANY
    color2: int = ANY
    shape2: int = ANY
    word: int = ANY
    dark: int = ANY


_COLOR, _SHAPE, _COUNT, _RELATION, _COLOR2, _SHAPE2, _WORD, _DARK = range(8)


def draw_scene(rng: np.random.Generator) -> Scene:
    """Choose a random scene made of trained color-shape pairs."""
    kind = rng.choice(list(KIND_SHARES), p=list(KIND_SHARES.values()))
    color, shape = TRAINED_PAIRS[rng.integers(len(TRAINED_PAIRS))]
    dark = int(rng.integers(2))
    if kind == "single":
        return Scene(color, shape, count=1, dark=dark)
    if kind == "count":
        return Scene(color, shape, count=int(rng.integers(1, MAX_COUNT + 1)), dark=dark)
    if kind == "word":
        return Scene(color, word=int(rng.integers(len(WORDS))), dark=dark)
    other = (color, shape)
    while other == (color, shape):
        other = TRAINED_PAIRS[rng.integers(len(TRAINED_PAIRS))]
    return Scene(color, shape, 1, int(rng.integers(len(Relation))), *other, dark=dark)


def exchange(scene: Scene) -> Scene:
    """Let the two objects of a scene or a claim change places."""
    return replace(scene, color=scene.color2, shape=scene.shape2, color2=scene.color, shape2=scene.shape)


def match_targets(scenes: list[Scene], claims: list[Scene]) -> NDArray[np.float32]:
    """Give the target probability of every (image, description) pair, shape ``(scenes, claims)``.

    A false description is 0. A true one grows from 0.5 to 1 with the share of the image's facts that it names:
    captions of the web have the same effect, because a vague text is the caption of few of the images it fits.
    """
    facts = _to_array(scenes)[:, None, :]
    said = _to_array(claims)[None, :, :]
    open_or_equal = (said == ANY) | (said == facts)

    count_holds = open_or_equal[..., _COUNT] | ((said[..., _COUNT] == SEVERAL) & (facts[..., _COUNT] > 1))
    first = open_or_equal[..., _COLOR] & open_or_equal[..., _SHAPE] & count_holds
    second = (
        (facts[..., _RELATION] != ANY)
        & ((said[..., _COLOR] == ANY) | (said[..., _COLOR] == facts[..., _COLOR2]))
        & ((said[..., _SHAPE] == ANY) | (said[..., _SHAPE] == facts[..., _SHAPE2]))
        & ((said[..., _COUNT] == ANY) | (said[..., _COUNT] == 1))
    )
    about_pair = said[..., _RELATION] != ANY
    both = first & open_or_equal[..., _RELATION] & open_or_equal[..., _COLOR2] & open_or_equal[..., _SHAPE2]
    true = np.where(about_pair, both, first | second)
    true &= open_or_equal[..., _WORD] & open_or_equal[..., _DARK]

    completeness = (said != ANY).sum(-1) / (facts != ANY).sum(-1)
    return np.where(true, 0.5 + 0.5 * np.minimum(completeness, 1.0), 0.0).astype(np.float32)


def _to_array(scenes: list[Scene]) -> NDArray[np.int8]:
    return np.array([tuple(vars(scene).values()) for scene in scenes], np.int8)
