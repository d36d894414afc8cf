"""Metrics against plain loops and against properties that they must have."""

import tracemalloc

import numpy as np
import pytest

from siglip_onnx.evaluate.metrics import (
    Labels,
    average_precision,
    best_threshold,
    bootstrap_mean,
    bootstrap_ratio,
    calibration_error,
    confusion,
    mean_per_class,
    one_hot,
    ranks_of,
    retrieve,
)
from siglip_onnx.head import l2_normalize


def test_a_tie_is_not_a_right_answer() -> None:
    logits = np.array([[3, 1, 2], [3, 3, 2], [3, 1, 2]], np.float32)
    assert ranks_of(logits, np.array([0, 0, 1])).tolist() == [0, 1, 2]


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        interval = bootstrap_mean(rng.random(80) < 0.3, seed=number)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99
    assert bootstrap_mean(np.ones(5)) == bootstrap_mean(np.array([1.0]))


def test_intervals_of_ratios_hold_them_and_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for number in range(200):
        weights = rng.integers(0, 5, 80).astype(float)  # captions of each image, none of some
        interval = bootstrap_ratio(rng.binomial(weights.astype(int), 0.3), weights, seed=number)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99
    all_right = bootstrap_ratio(np.array([2.0, 0, 1]), np.array([2.0, 0, 1]))
    assert (all_right.value, all_right.low, all_right.high) == (1, 1, 1)
    pair = bootstrap_ratio(np.array([[1.0, 0], [1, 1]]), np.array([[1.0, 0], [1, 2]]))  # the mean of 1 and a half
    assert (pair.value, pair.high) == (0.75, 1)
    assert 0.5 <= pair.low <= 0.75
    values = rng.random(50)
    mean, ratio = bootstrap_mean(values), bootstrap_ratio(values, np.ones(50))
    assert ratio.value == pytest.approx(mean.value)
    assert (ratio.low, ratio.high) == pytest.approx((mean.low, mean.high), abs=0.01)


def test_calibration_error() -> None:
    assert calibration_error(np.array([0.9] * 10), np.array([True] * 9 + [False])) == pytest.approx(0)
    assert calibration_error(np.array([0.9, 0.1]), np.array([False, True])) == pytest.approx(0.9)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    rng = np.random.default_rng(0)
    values = rng.random(3000)
    truth = rng.random(3000) < values**2
    expected = 0.0
    for number in range(15):
        inside = (values >= number / 15) & (values < (number + 1) / 15)
        expected += inside.mean() * abs(values[inside].mean() - truth[inside].mean())
    assert calibration_error(values, truth) == pytest.approx(expected)


def test_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores = rng.integers(0, 8, 20) / 4
        truth = rng.random(20) < 0.3 + 0.1 * scores
        if not truth.any():
            continue

        def f1(threshold: float, scores: np.ndarray = scores, truth: np.ndarray = truth) -> float:
            said = scores >= threshold
            return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))

        threshold, best = best_threshold(scores, truth)
        assert best == pytest.approx(f1(threshold)) == pytest.approx(max(map(f1, np.linspace(-1, 3, 81))))
    assert best_threshold(np.ones(3), np.zeros(3, bool)) == (float("inf"), 0.0)


def test_average_precision() -> None:
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert average_precision(np.array([1.0, 1.0]), np.array([True, False])) == 0.5  # a tie does not help
    assert np.isnan(average_precision(np.ones(2), np.zeros(2, bool)))


def test_confusion_and_recall_per_class() -> None:
    right, best = np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0])
    assert confusion(right, best, 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]
    shares = mean_per_class(right == best, right, 3)
    np.testing.assert_allclose(shares, [0.5, np.nan, 2 / 3])


@pytest.mark.parametrize("rows_at_once", [3, 1000])
def test_retrieval_against_plain_loops(rows_at_once: int) -> None:
    rng = np.random.default_rng(2)
    images = l2_normalize(rng.normal(size=(17, 6)).astype(np.float32))
    owners = rng.integers(0, 17, 40)
    texts = l2_normalize((images[owners] + rng.normal(0, 0.7, (40, 6))).astype(np.float32))
    texts[7] = texts[8]  # equal captions of two images
    result = retrieve(images, texts, np.arange(40), owners, rows_at_once=rows_at_once)
    similar = (images.astype(np.float64) @ texts.astype(np.float64).T).astype(np.float32)
    for text, owner in enumerate(owners):
        others = [similar[image, text] for image in range(17) if image != owner]
        assert result.text_ranks[text] == sum(value >= similar[owner, text] for value in others)
        assert result.best_images[text] == similar[:, text].argmax()
    for image in range(17):
        own = [similar[image, text] for text in range(40) if owners[text] == image]
        others = [similar[image, text] for text in range(40) if owners[text] != image]
        assert result.image_ranks[image] == (sum(value >= max(own) for value in others) if own else 40)
        assert result.best_texts[image] == similar[image].argmax()


def test_captions_that_repeat_are_compared_like_others_without_embeddings_of_their_own() -> None:
    rng = np.random.default_rng(3)
    images = l2_normalize(rng.normal(size=(9, 8)).astype(np.float32))
    texts = l2_normalize(rng.normal(size=(4, 8)).astype(np.float32))
    captions, owners = rng.integers(0, 4, 60), rng.integers(0, 9, 60)
    found = retrieve(images, texts, captions, owners, rows_at_once=4)
    expected = retrieve(images, texts[captions], np.arange(60), owners)
    for own, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(own, other)

    count = 1_000_000
    tracemalloc.start()
    result = retrieve(images, texts, np.zeros(count, np.int64), np.zeros(count, np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.text_ranks.tolist() == [(images @ texts[0] >= images[0] @ texts[0]).sum() - 1] * count
    assert peak < 200 * count  # an embedding of each in f64 would take 64 alone, one of a real model 6,144


def test_labels_by_pairs_are_those_of_a_matrix() -> None:
    rng = np.random.default_rng(4)
    labels = [tuple(np.flatnonzero(row).tolist()) for row in rng.random((30, 11)) < 0.2]
    truth, several = one_hot(labels, 11), Labels(labels, 11)
    np.testing.assert_array_equal(several.sizes, truth.sum(axis=0))
    for columns in (slice(0, 11), slice(3, 7), slice(7, 20), slice(10, 11)):
        np.testing.assert_array_equal(several.truth(columns), truth[:, columns])
    assert Labels([(), ()], 3).truth(slice(0, 3)).tolist() == [[False] * 3] * 2


def test_equal_captions_of_two_images_are_ties() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = images[[0, 0, 2]]
    result = retrieve(images, texts, np.arange(3), np.array([0, 1, 2]))
    assert result.image_ranks.tolist() == [1, 2, 0]
    assert result.text_ranks.tolist() == [0, 2, 0]
