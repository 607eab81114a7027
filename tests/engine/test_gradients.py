"""`avjax.forward` is a pure function: gradients against finite differences, and transformed as one at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.models.sites import Site

pytestmark = pytest.mark.exhaustive

D = 64
SIZE = 20


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    rng = np.random.default_rng(0)
    types = ["text"] * 5 + ["audio"] * 5 + ["video"] * 5 + ["text"] * 5
    return omni_model.prompt_from_embeddings(rng.normal(size=(SIZE, D)), np.tile(np.arange(SIZE), (3, 1)), types)


@pytest.fixture(scope="module")
def edited(omni_model, prompt):
    """Inputs, and an edit away from 1 everywhere it can be: edges of some heads, and five sites."""
    return avjax.lower_edits(
        omni_model,
        prompt,
        avjax.ScaleAttention(query="text", key="audio", factor=0.7),
        avjax.ScaleAttention(query="last", key="video", factor=0.0, layers=[3], heads=[1]),
        avjax.Scale("video", 1.3, site="resid_pre", layers=[2, 5]),
        avjax.Scale("audio", 0.8, site="z", heads=[1, 3]),
        avjax.Steer("last", np.ones(D, np.float32), scale=0.3, site="mlp_out", layers=[4]),
        avjax.Scale("audio", 0.9, site="attn_in", layers=[1, 6]),
        avjax.Scale("text", 1.2, site="mlp_in", layers=[3, 7]),
    )


def readings(model: avjax.Model, inputs: avjax.Inputs, edit: avjax.Intervention) -> jax.Array:
    """A smooth scalar of the last position's logits."""
    logits, _ = avjax.forward(model, inputs, edit)
    return jax.nn.log_softmax(logits[-1])[7]


def with_leaf(edit: avjax.Intervention, name: str, value: jax.Array) -> avjax.Intervention:
    if name == "attention_factor":
        return dataclasses.replace(edit, attention_factor=value)
    site = Site(name)
    return dataclasses.replace(edit, sites={**edit.sites, site: dataclasses.replace(edit.sites[site], scale=value)})


def leaf_of(edit: avjax.Intervention, name: str) -> jax.Array:
    return edit.attention_factor if name == "attention_factor" else edit.sites[Site(name)].scale


@pytest.fixture(scope="module")
def gradient(omni_model, edited) -> avjax.Intervention:
    return jax.jit(jax.grad(readings, argnums=2))(omni_model, *edited)


@pytest.fixture(scope="module")
def value():
    return jax.jit(readings)


@pytest.mark.parametrize("name", ["attention_factor", "resid_pre", "z", "mlp_out", "attn_in", "mlp_in"])
def test_gradient_is_the_slope(omni_model, edited, gradient, value, name: str):
    """Along random directions, and along each of the steepest axes alone."""
    inputs, edit = edited
    leaf, slope = np.asarray(leaf_of(edit, name)), np.asarray(leaf_of(gradient, name), np.float64)
    assert np.abs(slope).max() > 1e-3
    rng = np.random.default_rng(1)
    directions = [rng.choice([-1.0, 1.0], leaf.shape) * (leaf > 0) for _ in range(4)]
    steepest = np.argsort(-np.abs(slope), axis=None)[:4]
    directions.extend((np.arange(leaf.size) == i).reshape(leaf.shape).astype(float) for i in steepest)

    def at(step: float, direction: np.ndarray) -> float:
        return float(
            value(omni_model, inputs, with_leaf(edit, name, jnp.asarray(leaf + step * direction, jnp.float32)))
        )

    for direction in directions:
        if leaf[direction != 0].min() <= 0:
            continue  # a factor of 0 has a slope to one side alone
        h = 1e-2
        # Fourth order: float32 values allow no small step.
        slopes = (8 * (at(h, direction) - at(-h, direction)) - at(2 * h, direction) + at(-2 * h, direction)) / (12 * h)
        expected = float((slope * direction).sum())
        assert abs(slopes - expected) <= 2e-3 * max(abs(expected), 0.2), (slopes, expected)


def test_a_blocked_edge_has_the_slope_of_opening_it(omni_model, edited, gradient, value):
    """At a factor of 0 the slope is one-sided; this is what attribution over knocked-out edges reads."""
    inputs, edit = edited
    factor, slope = np.asarray(edit.attention_factor), np.asarray(gradient.attention_factor)
    closed = np.argwhere(factor == 0)
    assert len(closed)
    moved = 0
    for cell in map(tuple, closed):

        def at(step: float, cell=cell) -> float:
            opened = factor.copy()
            opened[cell] = step
            return float(value(omni_model, inputs, with_leaf(edit, "attention_factor", jnp.asarray(opened))))

        h = 5e-2
        one_sided = (-3 * at(0) + 4 * at(h) - at(2 * h)) / (2 * h)
        assert abs(one_sided - slope[cell]) <= 5e-3 * max(1, abs(slope[cell])), cell
        moved += abs(slope[cell]) > 1e-3
    assert moved


def test_gradients_are_finite_where_a_query_sees_nothing(omni_model, prompt):
    inputs, edit = avjax.lower_edits(omni_model, prompt, "all->all@2:4#h0", "last->all@6")
    gradient = jax.jit(jax.grad(readings, argnums=2))(omni_model, inputs, edit)
    assert np.isfinite(np.asarray(gradient.attention_factor)).all()
    assert np.abs(np.asarray(gradient.attention_factor)).max() > 0


def test_vmap_and_jit_equal_one_at_a_time(omni_model, prompt):
    rng = np.random.default_rng(2)
    source = rng.normal(size=(8, SIZE, D)).astype(np.float32)
    variants = [
        (),
        avjax.parse_rules("last->audio; text->video@2:5#h1"),
        (avjax.Patch("audio", source, layers=[1, 6]), avjax.Scale("last", 0.5, site="value", heads=[1])),
        (avjax.Steer("last", rng.normal(size=(4, 16)).astype(np.float32), site="z", layers=[7]),),
        (avjax.Ablate("video", "zero", site="embed"), avjax.Patch("[17:20]", source, layers=[7])),
    ]
    config, clean = omni_model.config.decoder, CleanRuns(omni_model)
    lowered = lower(prompt, config, variants, num_decoded=0, allow_noop=False, clean=clean)
    inputs = omni_model.encode(prompt, lowered.groups)
    stacked = dataclasses.replace(lowered.interventions(range(len(variants))), sources=lowered.bank.sources(SIZE))
    capture = (Site.RESID_POST, Site.MASS)
    over = jax.vmap(lambda m, i, e: avjax.forward(m, i, e, capture), in_axes=(None, None, avjax.VARIANTS))
    logits, seen = jax.jit(over)(omni_model, inputs, stacked)
    one = jax.jit(avjax.forward, static_argnames="capture")
    for i, edits in enumerate(variants):
        expected, held = one(omni_model, inputs, lowered.intervention(i, SIZE), capture)
        np.testing.assert_allclose(logits[i], expected, rtol=0, atol=2e-5)
        for site in capture:
            np.testing.assert_allclose(seen[site][i], held[site], rtol=0, atol=2e-5)
        alone = avjax.run(omni_model, prompt, *edits, at="all").logits
        np.testing.assert_allclose(logits[i], alone, rtol=0, atol=5e-5)
    assert len({np.asarray(x).tobytes() for x in logits}) == len(variants)
