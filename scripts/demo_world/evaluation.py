"""Measure a model on the demo world: zero-shot top-1 among fixed texts, on freshly drawn images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .captions import name_en, name_ja, pair_en, pair_ja
from .drawing import draw
from .lexicon import COLORS, MAX_COUNT, NEVER_SHOWN, SHAPES, TRAINED_PAIRS, WORDS
from .scene import Relation, Scene, exchange

EmbedImages = Callable[[list[Image.Image]], NDArray[np.float32]]
EmbedTexts = Callable[[list[str]], NDArray[np.float32]]
Question = tuple[str, list[Scene], list[list[str]], list[list[int]]]

ALL_PAIRS = [(color, shape) for color in range(len(COLORS)) for shape in range(len(SHAPES))]


def evaluate(embed_images: EmbedImages, embed_texts: EmbedTexts, *, num_images: int, seed: int) -> dict[str, float]:
    """Return top-1 accuracy per question, 0 to 1, each on ``num_images`` fresh images.

    ``embed_images`` and ``embed_texts`` return unit embeddings of shape ``(N, D)``.
    """
    rng = np.random.default_rng(seed)
    accuracy = {}
    for name, scenes, texts, answers in _questions(num_images, rng):
        images = embed_images([draw(scene, rng, canvas=384) for scene in scenes])
        for language, choices, right in zip(("en", "ja"), texts, answers, strict=False):
            predicted = (images @ embed_texts(choices).T).argmax(1)
            accuracy[f"{name}, {language}"] = float(np.mean(predicted == np.array(right)))
    accuracy.update(_evaluate_counts(embed_images, embed_texts, num_images, rng))
    accuracy.update(_evaluate_relations(embed_images, embed_texts, num_images, rng))
    return accuracy


def _questions(num_images: int, rng: np.random.Generator) -> Iterator[Question]:
    """Yield name, scenes, choices per language, and the right choice of each scene per language."""
    names = [[name_en(*pair) for pair in ALL_PAIRS], [name_ja(*pair) for pair in ALL_PAIRS]]
    for label, pairs in (("trained", TRAINED_PAIRS), ("never shown", tuple(sorted(NEVER_SHOWN)))):
        chosen = [pairs[i % len(pairs)] for i in range(num_images)]
        scenes = [Scene(*pair, count=1, dark=int(rng.integers(2))) for pair in chosen]
        right = [ALL_PAIRS.index(pair) for pair in chosen]
        yield f"color and shape, {label}", scenes, names, [right, right]

    printed = [
        Scene(int(rng.integers(len(COLORS))), word=i % len(WORDS), dark=int(rng.integers(2))) for i in range(num_images)
    ]
    right = [scene.word for scene in printed]
    words = [[f'the word "{word}"' for word in WORDS], [f"「{word}」という文字" for word in WORDS]]
    yield f"printed word among {len(WORDS)}", printed, words, [right, right]

    texts = [
        ["on a light background", "on a dark background"],
        ["明るい背景", "暗い背景"],
    ]
    objects = [Scene(*TRAINED_PAIRS[rng.integers(len(TRAINED_PAIRS))], count=1, dark=i % 2) for i in range(num_images)]
    choices_en = [f"{name_en(*pair)} {text}" for pair in ALL_PAIRS for text in texts[0]]
    choices_ja = [f"{text}に{name_ja(*pair)}" for pair in ALL_PAIRS for text in texts[1]]
    right = [2 * ALL_PAIRS.index((scene.color, scene.shape)) + scene.dark for scene in objects]
    yield "object and background", objects, [choices_en, choices_ja], [right, right]


def _evaluate_counts(
    embed_images: EmbedImages, embed_texts: EmbedTexts, num_images: int, rng: np.random.Generator
) -> dict[str, float]:
    """Ask how many there are: one to six of the image's own color and shape."""
    scenes = [
        Scene(*TRAINED_PAIRS[rng.integers(len(TRAINED_PAIRS))], count=1 + i % MAX_COUNT, dark=int(rng.integers(2)))
        for i in range(num_images)
    ]
    images = embed_images([draw(scene, rng, canvas=384) for scene in scenes])
    accuracy = {}
    for language, name in (("en", name_en), ("ja", name_ja)):
        numbers = range(1, MAX_COUNT + 1)
        texts = embed_texts([name(scene.color, scene.shape, count) for scene in scenes for count in numbers])
        scores = np.einsum("nd,ncd->nc", images, texts.reshape(num_images, MAX_COUNT, -1))
        right = [scene.count - 1 for scene in scenes]
        accuracy[f"count 1-{MAX_COUNT}, {language}"] = float(np.mean(scores.argmax(1) == right))
    return accuracy


def _evaluate_relations(
    embed_images: EmbedImages, embed_texts: EmbedTexts, num_images: int, rng: np.random.Generator
) -> dict[str, float]:
    """Ask which of two objects lies left or above: the right text against the same text with objects exchanged."""
    scenes: list[Scene] = []
    while len(scenes) < num_images:
        first, second = (TRAINED_PAIRS[i] for i in rng.integers(len(TRAINED_PAIRS), size=2))
        if first != second:
            relation = Relation(len(scenes) % 2)
            dark = int(rng.integers(2))
            scenes.append(
                Scene(first[0], first[1], 1, relation=relation, color2=second[0], shape2=second[1], dark=dark)
            )
    images = embed_images([draw(scene, rng, canvas=384) for scene in scenes])
    exchanged = [exchange(scene) for scene in scenes]
    accuracy = {}
    for language, say in (("en", pair_en), ("ja", pair_ja)):
        true = (images * embed_texts([say(scene) for scene in scenes])).sum(1)
        false = (images * embed_texts([say(scene) for scene in exchanged])).sum(1)
        accuracy[f"left of and above, {language}"] = float(np.mean(true > false))
    return accuracy
