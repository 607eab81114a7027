"""Scores against scikit-learn's, and intervals against a bootstrap written out clip by clip."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from avjax.analysis.probes.scores import Draws, difference, scored

PROBES, COUNT, CLASSES = 6, 150, 4


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).choice(CLASSES, size=COUNT, p=[0.5, 0.2, 0.2, 0.1])


@pytest.fixture(scope="module")
def logits(truth: np.ndarray) -> np.ndarray:
    """Of better and worse probes; rounded, so that some clips tie."""
    rng = np.random.default_rng(1)
    signal = np.linspace(0, 3, PROBES)[:, None, None] * np.eye(CLASSES)[truth]
    return (np.round(2 * (signal + rng.normal(size=(PROBES, COUNT, CLASSES)))) / 2).astype(np.float32)


def probabilities(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def expected(z: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    p = probabilities(z)
    named = z.argmax(-1)
    auroc = roc_auc_score(truth, p[:, 1] if z.shape[1] == 2 else p, multi_class="ovr")
    return {
        "accuracy": float(np.mean(named == truth)),
        "balanced_accuracy": balanced_accuracy_score(truth, named),
        "auroc": float(auroc),
    }


@pytest.mark.parametrize("classes", [CLASSES, 2])
def test_scores_are_those_of_scikit_learn(logits: np.ndarray, truth: np.ndarray, classes: int):
    z, index = logits[..., :classes], truth % classes
    found = scored(z, index, Draws.of(np.arange(COUNT), 10, 0.95, 0))
    for i in range(PROBES):
        for name, value in expected(z[i], index).items():
            assert found[name].value[i] == pytest.approx(value, abs=2e-3 if name == "auroc" else 1e-6)
    assert found["auroc"].value[-1] > found["auroc"].value[0] + 0.3 or classes == 2


@pytest.mark.exhaustive
def test_intervals_are_those_of_drawn_groups(logits: np.ndarray, truth: np.ndarray):
    """Exactly, but for the AUROC's term of second order."""
    groups = np.arange(COUNT) // 2
    draws = Draws.of(groups, 400, 0.9, 3)
    found = scored(logits, truth, draws)
    assert draws.counts.shape == (400, COUNT) and (draws.counts[:, ::2] == draws.counts[:, 1::2]).all()
    for i in (0, 3):
        drawn = [
            expected(logits[i][clips], truth[clips])
            for row in draws.counts.astype(int)
            if len(set(truth[clips := np.repeat(np.arange(COUNT), row)])) == CLASSES
        ]
        for name, margin in (("accuracy", 1e-6), ("balanced_accuracy", 1e-5), ("auroc", 0.01)):
            low, high = np.quantile([d[name] for d in drawn], [0.05, 0.95])
            assert found[name].low[i] == pytest.approx(low, abs=margin)
            assert found[name].high[i] == pytest.approx(high, abs=margin)
            assert high - low > 0.04


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    right = rng.random((2, 100)) < 0.5
    draws = Draws.of(np.arange(100), 500, 0.95, 0)
    same = difference(right, right, draws)
    assert (same.value == 0).all() and (same.low == 0).all() and (same.high == 0).all()
    other = difference(right, ~right, draws)
    np.testing.assert_allclose(other.value, right.mean(1) - (~right).mean(1))
    assert (other.high - other.low > 0.2).all()


def test_one_group_has_no_interval(logits: np.ndarray, truth: np.ndarray):
    found = scored(logits, truth, Draws.of(np.zeros(COUNT, int), 100, 0.95, 0))
    assert all(np.isnan(s.low).all() and np.isnan(s.high).all() and np.isfinite(s.value).all() for s in found.values())
