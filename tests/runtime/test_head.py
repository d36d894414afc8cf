import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from siglip_onnx.head import compute_logits, l2_normalize, sigmoid, softmax


def test_logits_scale_cosines_by_the_exponential() -> None:
    images = l2_normalize(np.array([[3.0, 4.0]], np.float32))
    texts = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    logits = compute_logits(images, texts, logit_scale=math.log(10), logit_bias=-2.0)
    assert_allclose(logits, [[4.0, 6.0]], rtol=1e-6)
    assert logits.dtype == np.float32


@pytest.mark.parametrize(("logit", "probability"), [(0.0, 0.5), (2.0, 0.880797), (-2.0, 0.119203)])
def test_sigmoid_values(logit: float, probability: float) -> None:
    assert_allclose(sigmoid(np.array([logit], np.float32)), [probability], rtol=1e-5)


def test_sigmoid_of_large_logits_does_not_overflow() -> None:
    logits = np.array([-200.0, -87.0, 0.0, 200.0], np.float32)
    with np.errstate(all="raise", under="ignore"):
        probabilities = sigmoid(logits)
        shares = softmax(logits)
    assert_allclose(probabilities, [0.0, math.exp(-87), 0.5, 1.0], atol=1e-30, rtol=1e-4)
    assert_allclose(shares, [0.0, 0.0, 0.0, 1.0], atol=1e-30)
