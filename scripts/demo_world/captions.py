"""Descriptions of a scene in English and Japanese, from one word to all that it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .lexicon import COLORS, COUNTS_EN, COUNTS_JA, MAX_COUNT, SHAPES, WORDS
from .scene import ANY, SEVERAL, Relation, Scene, exchange

_FRAMES_EN = ("{}", "{}", "{}", "a picture of {}", "a photo of {}", "This is a photo of {}.")
_FRAMES_JA = ("{}", "{}", "{}", "{}の写真", "{}の絵")
_WORD_FRAMES_EN = ('the word "{}"', 'the text "{}"', "a sign that says {}", "the word {}")
_WORD_FRAMES_JA = ("「{}」という文字", "「{}」と書いてある", "{}という単語", "「{}」の看板")
_BACKGROUND_EN = ("on a light background", "on a dark background")
_BACKGROUND_JA = ("明るい背景に", "暗い背景に")


def choose_claim(scene: Scene, rng: np.random.Generator) -> Scene:
    """Choose what a caption of ``scene`` says: some or all of its facts."""
    dark = scene.dark if rng.random() < 0.25 else ANY
    if scene.word != ANY:
        return replace(scene, color=scene.color if rng.random() < 0.25 else ANY, dark=dark)
    if scene.relation != ANY and rng.random() < 0.7:
        return _choose_relation(replace(scene, count=ANY, dark=dark), rng)
    first = scene
    if scene.relation != ANY:
        other = rng.random() < 0.5
        first = Scene(scene.color2, scene.shape2, 1) if other else Scene(scene.color, scene.shape, 1)
    detail = rng.choice(["both", "color", "shape"], p=[0.64, 0.16, 0.2])
    return Scene(
        color=ANY if detail == "shape" else first.color,
        shape=ANY if detail == "color" else first.shape,
        count=ANY if detail == "color" or (first.count == 1 and rng.random() < 0.3) else first.count,
        dark=dark,
    )


def _choose_relation(claim: Scene, rng: np.random.Generator) -> Scene:
    """Say where both objects lie, or only where one does, or name both by color or by shape alone.

    The incomplete texts teach which object lies on which side; without them the model stays at chance.
    """
    detail = rng.choice(["both", "first", "second", "colors", "shapes"], p=[0.4, 0.2, 0.2, 0.1, 0.1])
    if detail == "first":
        return replace(claim, color2=ANY, shape2=ANY)
    if detail == "second":
        return replace(claim, color=ANY, shape=ANY)
    if detail == "colors" and claim.color != claim.color2:
        return replace(claim, shape=ANY, shape2=ANY)
    if detail == "shapes" and claim.shape != claim.shape2:
        return replace(claim, color=ANY, color2=ANY)
    return claim


def foil(claim: Scene, rng: np.random.Generator) -> Scene:
    """Change one thing in a claim, so that it is wrong but near: the number, the word, or who lies where.

    Color and shape stay, so that a foil never names a pair that must not be named.
    """
    if claim.word != ANY:
        return replace(claim, word=(claim.word + int(rng.integers(1, len(WORDS)))) % len(WORDS))
    if claim.relation != ANY:
        return exchange(claim)
    if claim.count != ANY:
        step = int(rng.choice([-1, 1])) if 1 < claim.count < MAX_COUNT else (1 if claim.count == 1 else -1)
        return replace(claim, count=claim.count + step)
    return claim


def describe(claim: Scene, language: str, rng: np.random.Generator) -> tuple[Scene, str]:
    """Put ``claim`` into words; returns what the words really say (a plural says ``SEVERAL``) and the text."""
    return _describe_ja(claim, rng) if language == "ja" else _describe_en(claim, rng)


def name_en(color: int, shape: int, count: int = 1) -> str:
    """Name objects in English: ``a red circle``, ``three circles``, ``red circles``, ``something red``."""
    if shape == ANY:
        return "something" if color == ANY else f"something {COLORS[color].en}"
    adjective = "" if color == ANY else f"{COLORS[color].en} "
    if count == 1:
        noun = f"{adjective}{SHAPES[shape].en}"
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    plural = f"{adjective}{SHAPES[shape].en_plural}"
    return plural if count == SEVERAL else f"{COUNTS_EN[count]} {plural}"


def name_ja(color: int, shape: int, count: int = ANY) -> str:
    """Name objects in Japanese: ``赤い丸``, ``丸が三つ``, ``赤いもの``; without a count the number is left open."""
    adjective = "" if color == ANY else COLORS[color].ja
    noun = adjective + ("もの" if shape == ANY else SHAPES[shape].ja)
    return noun if count == ANY else f"{noun}が{COUNTS_JA[count]}"


def pair_en(claim: Scene, swapped: bool = False) -> str:
    """Say where two objects lie, from the first one's side or, swapped, from the second one's."""
    first, second = name_en(claim.color, claim.shape), name_en(claim.color2, claim.shape2)
    if claim.relation == Relation.LEFT_OF:
        return f"{second} to the right of {first}" if swapped else f"{first} to the left of {second}"
    return f"{second} below {first}" if swapped else f"{first} above {second}"


def pair_ja(claim: Scene, swapped: bool = False) -> str:
    """Say in Japanese where two objects lie; see :func:`pair_en`."""
    first, second = name_ja(claim.color, claim.shape), name_ja(claim.color2, claim.shape2)
    here, there = ("左", "右") if claim.relation == Relation.LEFT_OF else ("上", "下")
    return f"{first}の{there}に{second}" if swapped else f"{second}の{here}に{first}"


def _describe_en(claim: Scene, rng: np.random.Generator) -> tuple[Scene, str]:
    background = "" if claim.dark == ANY else f" {_BACKGROUND_EN[claim.dark]}"
    if claim.word != ANY:
        word = WORDS[claim.word]
        text = str(rng.choice(_WORD_FRAMES_EN)).format(word if rng.random() < 0.7 else word.upper())
        color = "" if claim.color == ANY else f" in {COLORS[claim.color].en}"
        return claim, text + color + background
    if claim.relation != ANY:
        text = pair_en(claim, swapped=rng.random() < 0.5)
    else:
        count = claim.count
        if count == ANY and claim.shape != ANY:
            count = 1
        elif count > 1 and rng.random() < 0.25:
            count = SEVERAL
        claim = replace(claim, count=count)
        text = name_en(claim.color, claim.shape, count)
        if count == 1 and rng.random() < 0.15:
            text = "one " + text.split(" ", 1)[1]
    return claim, str(rng.choice(_FRAMES_EN)).format(text + background)


def _describe_ja(claim: Scene, rng: np.random.Generator) -> tuple[Scene, str]:
    background = "" if claim.dark == ANY else _BACKGROUND_JA[claim.dark]
    if claim.word != ANY:
        text = str(rng.choice(_WORD_FRAMES_JA)).format(WORDS[claim.word])
        color = "" if claim.color == ANY else f"{COLORS[claim.color].ja}文字で"
        return claim, background + color + text
    if claim.relation != ANY:
        text = pair_ja(claim, swapped=rng.random() < 0.5)
    else:
        text = name_ja(claim.color, claim.shape, claim.count)
    return claim, background + str(rng.choice(_FRAMES_JA)).format(text)
