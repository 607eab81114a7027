"""Probes against the optimum of their own objective, written out in numpy."""

import numpy as np
import pytest

from avjax.analysis.probes.train import train_probe

CLASSES, SIZE, COUNT, LAYERS = 5, 12, 80, 3


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(COUNT) % CLASSES)
    centres = rng.normal(size=(LAYERS, CLASSES, SIZE))
    noise = np.array([0.3, 2.0, 30.0])[:, None, None] * rng.normal(size=(LAYERS, COUNT, SIZE))
    return centres[:, labels] * 3.0 + noise + 7.0, labels


def gradient(kernel, bias, features: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Of the mean negative log-likelihood and the penalty, in float64."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    error = (p - np.eye(CLASSES)[labels]) / len(labels)
    return np.concatenate([(x.T @ error + l2 * kernel).ravel(), error.sum(0)])


@pytest.mark.exhaustive
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_each_layer_is_at_its_own_optimum(data: tuple[np.ndarray, np.ndarray], l2: float):
    features, labels = data
    probe = train_probe(features, labels, CLASSES, l2)
    assert probe.kernel.shape == (LAYERS, SIZE, CLASSES)
    for layer in range(LAYERS):
        kernel, bias = probe.kernel[layer], probe.bias[layer]
        start, end = (gradient(k * kernel, k * bias, features[layer], labels, l2) for k in (0, 1))
        assert np.linalg.norm(start) > 0.05
        assert np.linalg.norm(end) < 1e-3
    alone = train_probe(features[1], labels, CLASSES, l2)
    np.testing.assert_allclose(alone.logits(features[1]), probe.logits(features)[1], atol=0.05)


@pytest.mark.exhaustive
def test_a_constant_feature_says_nothing(data: tuple[np.ndarray, np.ndarray]):
    features, labels = data
    constant = np.full((LAYERS, COUNT, 1), 3.0)
    probe = train_probe(np.concatenate([features, constant], -1), labels, CLASSES)
    moved = np.concatenate([features, constant + 1e-4], -1)
    plain = train_probe(features, labels, CLASSES)
    np.testing.assert_allclose(probe.logits(moved), plain.logits(features), atol=0.05)


@pytest.mark.exhaustive
def test_what_is_there_is_read_and_noise_is_not(data: tuple[np.ndarray, np.ndarray]):
    features, labels = data
    half = COUNT // 2
    probe = train_probe(features[:, :half], labels[:half], CLASSES)
    hits = np.argmax(probe.logits(features[:, half:]), -1) == labels[half:]
    clear, _, drowned = hits.mean(-1)
    assert clear == 1.0 and drowned < 0.5


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros(5, int), r"a label per clip, got \(5,\) for features \(4, 3\)"),
        (np.zeros((4, 3)), np.zeros(4, int), "two or more classes"),
        (np.zeros((4, 3)), np.array([0, 1, 2, 9]), "within 0:5"),
        (np.full((4, 3), np.nan), np.array([0, 1, 0, 1]), "finite features"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(features: np.ndarray, labels: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        train_probe(features, labels, CLASSES)


def test_a_probe_without_a_penalty_is_refused(data: tuple[np.ndarray, np.ndarray]):
    with pytest.raises(ValueError, match="l2 above 0, got 0"):
        train_probe(*data, CLASSES, l2=0)
