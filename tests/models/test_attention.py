"""Attention under edits against its definition, written out over a whole score matrix in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avjax.models.attention import Edges, Segment, attend_prompt, attend_token

HEADS, KV_HEADS, HEAD_DIM, NUM_GROUPS = 4, 2, 8, 3
TOLERANCE = 1e-5
FACTORS = (0.0, 0.5, 1.0, 3.0)


def define(q, k, v, factor, groups, *, published: bool = False) -> np.ndarray:
    """exp(score) times the factor, normalised over visible keys; a row without weight reads zero, or the mean value."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for t in range(len(q)):
        for n in range(HEADS):
            kv = n // (HEADS // KV_HEADS)
            weight = np.exp(k[: t + 1, kv] @ q[t, n] / HEAD_DIM**0.5) * factor[n, groups[t], groups[: t + 1]]
            if weight.sum() > 0:
                out[t, n] = weight @ v[: t + 1, kv] / weight.sum()
            elif published:
                out[t, n] = v[:, kv].mean(0)
    return out


def draw(rng: np.random.Generator, size: int):
    shapes = ((size, HEADS, HEAD_DIM), (size, KV_HEADS, HEAD_DIM), (size, KV_HEADS, HEAD_DIM))
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    factor = rng.choice(FACTORS, size=(HEADS, NUM_GROUPS, NUM_GROUPS)).astype(np.float32)
    return q, k, v, factor, rng.integers(0, NUM_GROUPS, size)


@pytest.mark.parametrize("published", [False, True], ids=["zero", "published"])
@pytest.mark.parametrize("batched", [False, True], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("size", [1, 5, 300])
def test_prompt(size: int, batched: bool, published: bool, monkeypatch: pytest.MonkeyPatch):
    """Both ways of walking the heads: one after the other, and as one batch."""
    branch = "default" if batched else "cpu"
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, **branches: branches[branch](*operands))
    q, k, v, factor, groups = draw(np.random.default_rng(size), size)
    edges = Edges(factor=jnp.asarray(factor), compat="published" if published else None)
    z = attend_prompt(q, k, v, length=jnp.int32(size), groups=jnp.asarray(groups, jnp.int32), edges=edges)
    expected = define(q, k, v, factor, groups, published=published)
    assert (np.abs(expected).sum(-1) == 0).any() != published or size == 1
    np.testing.assert_allclose(z, expected, atol=TOLERANCE, rtol=0)


@given(seed=st.integers(0, 10**6), split=st.integers(1, 11))
def test_a_decoded_token_equals_the_last_position_of_a_prompt(seed: int, split: int):
    """Its keys may lie in the prompt's segment or among those decoded so far, with unused slots behind either."""
    size = 12
    q, k, v, factor, groups = draw(np.random.default_rng(seed), size)

    def segment(start: int, stop: int) -> Segment:
        unused = jnp.full((3, KV_HEADS, HEAD_DIM), 100.0)
        return Segment(
            keys=jnp.concatenate([k[start:stop], unused]),
            values=jnp.concatenate([v[start:stop], unused]),
            visible=jnp.arange(stop - start + 3) < stop - start,
            groups=jnp.asarray(np.pad(groups[start:stop], (0, 3)), jnp.int32),
        )

    segments = (segment(0, split), segment(split, size))
    for published in (False, True):
        edges = Edges(factor=jnp.asarray(factor), compat="published" if published else None)
        z = attend_token(q[-1], segments, group=jnp.int32(groups[-1]), edges=edges)
        expected = define(q, k, v, factor, groups, published=published)[-1]
        np.testing.assert_allclose(z, expected, atol=TOLERANCE, rtol=0)


def test_a_query_without_a_key_has_no_gradient():
    q, k, v, _, groups = draw(np.random.default_rng(0), 6)
    factor = jnp.zeros((HEADS, NUM_GROUPS, NUM_GROUPS))

    def total(q, k, v, factor):
        edges = Edges(factor=factor)
        return attend_prompt(q, k, v, length=jnp.int32(6), groups=jnp.asarray(groups, jnp.int32), edges=edges).sum()

    for gradient in jax.grad(total, argnums=(0, 1, 2))(q, k, v, factor):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("factor", [0.0, 0.7])
def test_the_gradient_of_a_factor(factor: float):
    """Also at a knocked-out edge, where it says what the edge would change; against differences in float64."""
    q, k, v, factors, groups = draw(np.random.default_rng(3), 12)
    factors = np.ones_like(factors)
    factors[1, 2, 0] = factor
    weight = np.random.default_rng(4).normal(size=(12, HEADS, HEAD_DIM))

    def total(f):
        edges = Edges(factor=f)
        z = attend_prompt(q, k, v, length=jnp.int32(12), groups=jnp.asarray(groups, jnp.int32), edges=edges)
        return jnp.sum(z * weight)

    def exact(change: float) -> float:
        changed = factors.astype(np.float64)
        changed[1, 2, 0] += change
        return float(np.sum(define(q, k, v, changed, groups) * weight))

    # A negative factor is no edit, so at 0 the difference is taken from above.
    step = 1e-5
    expected = (exact(step) - exact(0 if factor == 0 else -step)) / (step if factor == 0 else 2 * step)
    assert abs(expected) > 1e-3
    assert jax.grad(total)(jnp.asarray(factors))[1, 2, 0] == pytest.approx(expected, rel=1e-3)
