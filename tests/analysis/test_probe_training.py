"""Many probes at once against scikit-learn's logistic regression, one at a time; and what is refused."""

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from avjax.analysis.probes import fit
from avjax.analysis.probes.splits import control_labels
from avjax.analysis.probes.train import Probes, train_probes
from avjax.progress import Progress

LAYERS, COUNT, SIZE = 3, 240, 12
NAMES = ("rain", "siren", "dog", "bell")
STRENGTHS = (1e-1, 1e-3)


def data(classes: int = 4, seed: int = 0) -> tuple[xr.DataArray, list[str]]:
    """Layers that tell the classes apart ever less, on skewed and shifted features, one of them constant."""
    rng = np.random.default_rng(seed)
    index = rng.permutation(np.arange(COUNT) % classes)
    centres = rng.normal(size=(LAYERS, classes, SIZE))
    noise = np.array([0.7, 2.0, 30.0])[:, None, None] * rng.normal(size=(LAYERS, COUNT, SIZE))
    x = (centres[:, index] + noise) @ rng.normal(size=(SIZE, SIZE)) + 5.0
    x[..., 3] = 2.0
    samples = [f"clip {i}" for i in range(COUNT)]
    array = xr.DataArray(x, dims=("layer", "sample", "feature"), coords={"layer": np.arange(LAYERS), "sample": samples})
    return array, [NAMES[i] for i in index]


@pytest.fixture(scope="module")
def features() -> xr.DataArray:
    return data()[0]


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return data()[1]


@pytest.fixture(scope="module")
def probes(features: xr.DataArray, labels: list[str]) -> Probes:
    return train_probes(features, labels, strengths=STRENGTHS, seeds=(0, 7), validation_fraction=0.2, tolerance=1e-6)


def split_of(probes: Probes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    split = probes.results.split.sel(seed=seed).values
    return split == 0, split == 2


@pytest.mark.exhaustive
def test_the_bar_counts_each_feature_set(features: xr.DataArray, labels: list[str], monkeypatch: pytest.MonkeyPatch):
    bars, asked = [], []

    class Bar(Progress):
        def __init__(self, *about: Any, enabled: bool):
            super().__init__(*about, enabled=enabled)
            bars.append(self)
            asked.append(enabled)

    monkeypatch.setattr(fit, "Progress", Bar)
    train_probes(features, labels, strengths=STRENGTHS)
    train_probes(features, labels, strengths=STRENGTHS, progress=False)
    assert [(bar.done, bar.total) for bar in bars] == [(LAYERS, LAYERS)] * 2 and asked == [True, False]


def sklearn_of(features: xr.DataArray, labels: list[str], train: np.ndarray, layer: int, l2: float) -> Any:
    x = features.sel(layer=layer).values[train]
    mean, scale = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), 1)
    model = LogisticRegression(C=1 / (l2 * train.sum()), tol=1e-9, max_iter=20_000)
    model.fit((x - mean) / scale, np.array(labels)[train])
    return model, (features.sel(layer=layer).values - mean) / scale


@pytest.mark.exhaustive
@pytest.mark.parametrize("classes", [4, 2])
def test_every_probe_is_that_of_scikit_learn(classes: int):
    features, labels = data(classes)
    probes = train_probes(features, labels, strengths=STRENGTHS, seeds=(0, 7), tolerance=1e-6)
    predicted = probes.predict(features)
    assert probes.results.converged.all()
    for seed, layer, l2 in [(s, la, st) for s in (0, 7) for la in range(LAYERS) for st in STRENGTHS]:
        train, test = split_of(probes, seed)
        model, x = sklearn_of(features, labels, train, layer, l2)
        place = {"seed": seed, "layer": layer, "strength": l2}
        kernel, bias = (probes.weights[n].sel(place).values for n in ("kernel", "bias"))
        if classes == 2:  # scikit-learn has one vector, the difference of ours
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        else:
            bias, model.intercept_ = bias - bias.mean(), model.intercept_ - model.intercept_.mean()
        assert tuple(model.classes_) == probes.classes
        np.testing.assert_allclose(kernel, model.coef_, atol=2e-3 * np.abs(model.coef_).max())
        np.testing.assert_allclose(bias, model.intercept_, atol=2e-3 * np.abs(model.coef_).max())
        found, truth = probes.results.sel(place), np.array(labels)[test]
        assert abs(float(found.accuracy) - model.score(x[test], truth)) <= 0.01
        agreed = predicted.sel(place).values[test] == model.predict(x[test])
        assert agreed.mean() >= 0.98
        own = predicted.sel(place).values[test]
        assert float(found.balanced_accuracy) == pytest.approx(balanced_accuracy_score(truth, own), abs=1e-6)
        p = model.predict_proba(x[test])
        theirs = roc_auc_score(truth, p[:, 1] if classes == 2 else p, multi_class="ovr")
        assert float(found.auroc) == pytest.approx(theirs, abs=2e-3)
    assert probes.results.accuracy.sel(layer=0).min() > 0.8 > 0.7 > probes.results.accuracy.sel(layer=2).max()


@pytest.mark.exhaustive
def test_one_probe_is_the_same_among_many(features: xr.DataArray, labels: list[str], probes: Probes):
    alone = train_probes(
        features.sel(layer=[1]), labels, strengths=[1e-3], seeds=[7], validation_fraction=0.2, tolerance=1e-6
    )
    place = {"layer": [1], "seed": [7], "strength": [1e-3]}
    np.testing.assert_allclose(alone.weights.kernel, probes.weights.kernel.sel(place), atol=2e-3)
    xr.testing.assert_equal(alone.results.split, probes.results.split.sel(seed=[7]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("cores", [2, 3, 5])
def test_lanes_do_not_change_what_is_found(
    features: xr.DataArray, labels: list[str], probes: Probes, cores: int, monkeypatch: pytest.MonkeyPatch
):
    """Seven sets on any number of cores, the last lane sharing some with the one before."""
    monkeypatch.setattr("avjax.analysis.probes.fit._cores", lambda: cores)
    seven = features.isel(layer=[0, 1, 2, 1, 0, 2, 0]).assign_coords(layer=range(7))
    found = train_probes(
        seven, labels, strengths=STRENGTHS, seeds=(0, 7), validation_fraction=0.2, tolerance=1e-6
    ).weights.kernel
    for layer, original in enumerate([0, 1, 2, 1, 0, 2, 0]):
        np.testing.assert_allclose(found.sel(layer=layer), probes.weights.kernel.sel(layer=original), atol=2e-3)


@pytest.mark.exhaustive
def test_what_varies_in_test_clips_alone_is_not_read(labels: list[str]):
    """Nor does it slow the others: outliers that a split lacks leave rounding errors, which are no feature."""
    features = data()[0]
    plain = train_probes(features, labels, strengths=STRENGTHS, tolerance=1e-5)
    test = np.flatnonzero(plain.results.split.values[0] == 2)
    features[:, :, 3] = -0.1
    features[:, test[:2], 3] = 30.0
    found = train_probes(features, labels, strengths=STRENGTHS, tolerance=1e-5)
    assert (found.weights["scale"].isel(feature=3) == 1).all()
    assert found.results.converged.all() and found.results.steps.max() < 100
    np.testing.assert_allclose(found.weights.kernel[..., 3], 0, atol=1e-6)
    np.testing.assert_allclose(found.results.accuracy, plain.results.accuracy, atol=0.01)


@pytest.mark.exhaustive
def test_more_features_than_clips(labels: list[str]):
    """Of very different sizes, with a few outliers, as residuals have."""
    rng = np.random.default_rng(3)
    index = np.array([NAMES.index(name) for name in labels])
    x = (rng.normal(size=(4, 700))[index] + 2 * rng.normal(size=(COUNT, 700))) * np.exp(rng.normal(size=700) * 3)
    x[rng.integers(COUNT, size=20), rng.integers(700, size=20)] *= 1e3
    features = xr.DataArray(x[:, None], dims=("sample", "layer", "feature"), coords={"layer": [0]})
    probes = train_probes(features, labels, strengths=[1e-2], tolerance=1e-6)
    assert probes.results.converged.all() and probes.results.steps.max() < 200
    train, test = split_of(probes, 0)
    model, z = sklearn_of(features, labels, train, 0, 1e-2)
    kernel = probes.weights.kernel.squeeze().values
    np.testing.assert_allclose(kernel, model.coef_, atol=2e-3 * np.abs(model.coef_).max())
    own = probes.predict(features).squeeze().values[test]
    assert np.mean(own == model.predict(z[test])) >= 0.98


def test_a_probe_that_is_trained_changes_no_more(features: xr.DataArray, labels: list[str]):
    """More steps change those alone that were not trained, and the results say which."""
    with pytest.warns(UserWarning, match=r"did not reach the tolerance 1e-06 in 8 steps"):
        short = train_probes(features, labels, strengths=STRENGTHS, max_steps=8, tolerance=1e-6)
    long = train_probes(features, labels, strengths=STRENGTHS, tolerance=1e-6)
    done = short.results.converged.values
    assert done.any() and not done.all() and long.results.converged.all()
    assert (short.results.steps.values[~done] == 8).all() and (long.results.steps.values[~done] > 8).all()
    assert (short.results.gradient.values[~done] > 1e-6).all() and (long.results.gradient.values <= 1e-6).all()
    np.testing.assert_array_equal(short.results.steps.values[done], long.results.steps.values[done])


@pytest.mark.exhaustive
def test_no_clip_is_on_both_sides_and_each_side_has_its_share(features: xr.DataArray, labels: list[str]):
    clips = [f"{labels[i]} {i % 30}" for i in range(COUNT)]  # several samples each
    probes = train_probes(
        features, labels, groups=clips, seeds=range(4), strengths=[1], test_fraction=0.25, validation_fraction=0.25
    )
    for row in probes.results.split.values:
        sides = [{c for c, part in zip(clips, row, strict=True) if part == side} for side in range(3)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        for side, share in enumerate((0.5, 0.25, 0.25)):
            for name in NAMES:
                own = [part == side for part, label in zip(row, labels, strict=True) if label == name]
                assert abs(np.mean(own) - share) < 0.15
    assert len({row.tobytes() for row in probes.results.split.values}) == 4


@pytest.mark.exhaustive
def test_groups_of_mixed_labels_are_split_too(features: xr.DataArray, labels: list[str]):
    """As pairs of a clean and a corrupt clip, whose labels differ."""
    pairs = np.arange(COUNT) // 2
    split = train_probes(features, labels, groups=pairs, strengths=[1]).results.split.values[0]
    assert (split[::2] == split[1::2]).all() and 0.15 < np.mean(split == 2) < 0.25


def test_the_chosen_strength_has_the_least_loss_on_validation_clips(
    features: xr.DataArray, labels: list[str], probes: Probes
):
    losses = np.empty((LAYERS, 2, 2))
    logits = probes.logits(features)
    index = np.array([probes.classes.index(name) for name in labels])
    for s, seed in enumerate((0, 7)):
        held = probes.results.split.sel(seed=seed).values == 1
        z = logits.sel(seed=seed).values[held]
        nll = np.logaddexp.reduce(z, -1) - np.take_along_axis(z, index[held][:, None, None, None], -1)[..., 0]
        losses[:, s] = nll.mean(0)
    np.testing.assert_allclose(probes.results.validation_loss, losses, rtol=1e-4)
    np.testing.assert_array_equal(probes.results.chosen, np.array(STRENGTHS)[losses.argmin(-1)])
    best = probes.results.accuracy.sel(strength=probes.results.chosen)
    assert best.dims == ("layer", "seed")


@pytest.mark.exhaustive
def test_selectivity_is_accuracy_beyond_memorised_types():
    """Features that name the type alone solve the control task; features of the class alone do not."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(30, size=600)
    index = kinds % 3
    by_type, by_class = np.eye(30)[kinds], np.pad(np.eye(3)[index], ((0, 0), (0, 27)))
    x = np.stack([by_type, by_class]) + 0.05 * rng.normal(size=(2, 600, 30))
    features = xr.DataArray(x, dims=("layer", "sample", "feature"))
    found = train_probes(features, index, control=kinds, strengths=[1e-2], seeds=(0, 1, 2)).results.squeeze("strength")
    assert found.accuracy.min() > 0.98
    assert found.control_accuracy.sel(layer=0).min() > 0.98 and found.control_accuracy.sel(layer=1).max() < 0.7
    np.testing.assert_allclose(found.selectivity, found.accuracy - found.control_accuracy, atol=1e-6)
    assert (found.selectivity_low <= found.selectivity).all() and (found.selectivity <= found.selectivity_high).all()
    split = found["split"].values
    seen = [np.isin(kinds[row == 2], kinds[row == 0]).mean() for row in split]
    np.testing.assert_allclose(found["control_seen"], seen)
    dealt = control_labels(kinds.tolist(), 3, index, 0)
    assert all(len(set(dealt[kinds == k])) == 1 for k in range(30)) and len(set(dealt)) == 3


def labels_with(value: Any) -> list[Any]:
    return [value if i in (3, 5) else label for i, label in enumerate(data()[1])]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one class": ({"labels": ["rain"] * COUNT}, "two or more classes, got 'rain' alone"),
    "None": ({"labels": labels_with(None)}, "labels are missing for 2 of 240 samples: 'clip 3', 'clip 5'"),
    "NaN": ({"labels": labels_with(float("nan"))}, "labels are missing for 2 of 240 samples: 'clip 3', 'clip 5'"),
    "absent": (
        {"labels": {f"clip {i}": NAMES[i % 4] for i in range(COUNT - 1)}},
        "labels are missing for 1 of 240 samples: 'clip 239'",
    ),
    "too few labels": ({"labels": ["rain", "dog"]}, "labels for each of 240 samples, got 2"),
    "missing group": ({"groups": labels_with(None)}, "groups are missing for 2 of 240 samples: 'clip 3', 'clip 5'"),
    "types that do not recur": (
        {"control": list(range(COUNT))},
        "types that occur in training and test clips, got 240 types of 240 samples",
    ),
    "one control type": ({"control": ["a"] * COUNT}, "control types of more than one kind, got 'a' for every sample"),
    "missing type": ({"control": [None] * COUNT}, "control types are missing for 240 of 240 samples"),
    "each its own class": ({"labels": [f"class {i}" for i in range(COUNT)]}, "has 1 clip, too few for every part"),
    "fewer samples than classes": ({"classes": [*NAMES, *range(300)]}, "a sample per class, got 240 for 304"),
    "a class without samples": ({"classes": [*NAMES, "cat"]}, "no sample has the label 'cat'"),
    "a label outside classes": ({"classes": NAMES[:3]}, "labels among classes=('rain', 'siren', 'dog'), got bell"),
    "one group": (
        {"groups": ["a"] * COUNT},
        "more than 1 groups of clips, for train and test, got 1; no clip would be",
    ),
    "a class in one group": (
        {"groups": [name if name == "rain" else str(i) for i, name in enumerate(data()[1])]},
        "class 'rain' has 1 clip, too few for every part: with seed 0, none is left for test",
    ),
    "no test": ({"test_fraction": 0.0}, "test_fraction above 0"),
    "no train": ({"test_fraction": 0.6, "validation_fraction": 0.4}, "together below 1"),
    "no penalty": ({"strengths": [0.1, 0]}, "l2 above 0, got 0.0"),
    "a strength twice": ({"strengths": [1, 1.0]}, "strengths, each once"),
    "no seeds": ({"seeds": []}, "one or more seeds"),
    "no steps": ({"max_steps": 0}, "max_steps and draws of at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_by_name(
    features: xr.DataArray, labels: list[str], case: str, monkeypatch: pytest.MonkeyPatch
):
    def never(*given: Any, **named: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("avjax.analysis.probes.train.fit", never)
    changed, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        train_probes(features, **{"labels": labels, **changed})


def test_features_that_are_not_finite_are_refused_by_name(features: xr.DataArray, labels: list[str]):
    for wrong in (np.nan, np.inf):
        bad = features.copy()
        bad[1, 7, 2] = wrong
        with pytest.raises(ValueError, match="NaN or infinity in 1 samples: 'clip 7'"):
            train_probes(bad, labels)
    message = r"features with dimensions sample and feature, as from probe_features, got \('a', 'b'\)"
    with pytest.raises(ValueError, match=message):
        train_probes(xr.DataArray(np.zeros((4, 3)), dims=("a", "b")), labels)
