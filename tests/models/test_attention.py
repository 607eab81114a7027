"""Attention under edits against its definition, written out over a whole score matrix in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avjax.models.attention import OwnKeys, SharedKeys, attend_prompt, attend_rows

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


def prompt_z(q, k, v, groups, factor, **options) -> jax.Array:
    groups = jnp.asarray(groups, jnp.int32)
    return attend_prompt(q, k, v, length=jnp.int32(len(q)), groups=groups, factor=factor, **options)[0]


@pytest.mark.exhaustive
@pytest.mark.parametrize("published", [False, True], ids=["zero", "published"])
@pytest.mark.parametrize("batched", [False, True], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("size", [1, 5, 300])
def test_prompt(size: int, batched: bool, published: bool, monkeypatch: pytest.MonkeyPatch):
    """Both ways of walking the heads: one after the other, and as one batch."""
    branch = "default" if batched else "cpu"
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, **branches: branches[branch](*operands))
    q, k, v, factor, groups = draw(np.random.default_rng(size), size)
    compat = "published" if published else None
    z = prompt_z(q, k, v, groups, jnp.asarray(factor), compat=compat)
    expected = define(q, k, v, factor, groups, published=published)
    assert (np.abs(expected).sum(-1) == 0).any() != published or size == 1
    np.testing.assert_allclose(z, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.exhaustive
@given(seed=st.integers(0, 10**6), first=st.integers(0, 11), split=st.integers(1, 40))
def test_later_rows_equal_those_of_the_whole_prompt(seed: int, first: int, split: int):
    size = 12 + split
    q, k, v, factor, groups = draw(np.random.default_rng(seed), size)
    for compat in (None, "published"):
        z, _ = attend_prompt(
            q[first:],
            k,
            v,
            first_row=jnp.int32(first),
            length=jnp.int32(size),
            groups=jnp.asarray(groups, jnp.int32),
            factor=jnp.asarray(factor),
            compat=compat,
        )
        expected = define(q, k, v, factor, groups, published=compat is not None)[first:]
        np.testing.assert_allclose(z, expected, atol=TOLERANCE, rtol=0)


def shared_keys(k: np.ndarray, v: np.ndarray, groups: np.ndarray) -> SharedKeys:
    """Positions sorted by group in blocks of 16 slots; unused slots hold what must not be read."""
    slots, classes = [], []
    for group in range(NUM_GROUPS):
        members = np.flatnonzero(groups == group)
        blocks = -(-len(members) // 16)
        slots += [*members, *[len(k)] * (16 * blocks - len(members))]
        classes += [group] * blocks
    slots = np.array(slots, np.int32)
    wild = np.full((1, *k.shape[1:]), 100.0, np.float32)
    keys, values = (np.concatenate([x, wild])[slots].swapaxes(0, 1) for x in (k, v))
    return SharedKeys(
        keys=jnp.asarray(keys),
        values=jnp.asarray(values),
        positions=jnp.asarray(slots),
        block_class=jnp.asarray(classes, jnp.int32),
    )


@pytest.mark.exhaustive
@given(seed=st.integers(0, 10**6), split=st.integers(1, 40), rows=st.integers(1, 5))
def test_rows_of_variants_equal_those_of_a_prompt(seed: int, split: int, rows: int):
    """Two variants with their own last rows over one shared prompt, each under its own factors, with masses."""
    rng, size = np.random.default_rng(seed), split + rows
    (q, k, v, factor, groups), (q2, k2, v2, factor2, _) = draw(rng, size), draw(rng, size)
    k2, v2 = k2.at[:split].set(k[:split]), v2.at[:split].set(v[:split])
    row = jnp.arange(rows)
    own = OwnKeys(
        keys=jnp.stack([k[split:], k2[split:]]),
        values=jnp.stack([v[split:], v2[split:]]),
        visible=row <= row[:, None],
        exists=jnp.ones(rows, bool),
        classes=jnp.asarray(groups[split:], jnp.int32),
    )
    factors = jnp.stack([factor, factor2])[:, :, groups[split:]]
    for compat in (None, "published"):
        z, mass = attend_rows(
            jnp.stack([q[split:], q2[split:]]),
            shared_keys(k, v, groups),
            [own],
            num_shared=jnp.int32(split),
            factor=factors,
            compat=compat,
            want_mass=True,
        )
        for got, weights, (qs, ks, vs, fs) in zip(z, mass, [(q, k, v, factor), (q2, k2, v2, factor2)], strict=True):
            expected = define(qs, ks, vs, fs, groups, published=compat is not None)[split:]
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
            one_hot = np.eye(NUM_GROUPS, HEAD_DIM)[groups]
            summed = define(qs, ks, np.repeat(one_hot[:, None], KV_HEADS, 1), fs, groups, published=compat is not None)
            np.testing.assert_allclose(
                weights.transpose(1, 0, 2), summed[split:, :, :NUM_GROUPS], atol=TOLERANCE, rtol=0
            )


def test_a_query_without_a_key_has_no_gradient():
    q, k, v, _, groups = draw(np.random.default_rng(0), 6)
    factor = jnp.zeros((HEADS, NUM_GROUPS, NUM_GROUPS))

    def total(q, k, v, factor):
        return prompt_z(q, k, v, groups, factor).sum()

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
        return jnp.sum(prompt_z(q, k, v, groups, f) * weight)

    def exact(change: float) -> float:
        changed = factors.astype(np.float64)
        changed[1, 2, 0] += change
        return float(np.sum(define(q, k, v, changed, groups) * weight))

    # A negative factor is no edit, so at 0 the difference is taken from above.
    step = 1e-5
    expected = (exact(step) - exact(0 if factor == 0 else -step)) / (step if factor == 0 else 2 * step)
    assert abs(expected) > 1e-3
    assert jax.grad(total)(jnp.asarray(factors))[1, 2, 0] == pytest.approx(expected, rel=1e-3)
