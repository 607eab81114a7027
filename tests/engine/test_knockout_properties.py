"""What must hold of any knockout, whatever the weights: drawn prompts of embeddings on a tiny Omni model."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax.engine.reference import logits_at, pad_inputs
from avjax.prompts.prompt import Inputs, Prompt

SIZE = 192  # positions of a drawn prompt: more than one block of 128 queries
Compat = Literal["published"] | None
both_semantics = pytest.mark.parametrize("compat", ["published", None], ids=["published", "zero"])
jitted_forward = jax.jit(avjax.forward, static_argnames="capture")


def drawn_prompt(model: avjax.Model, size: int, seed: int) -> Prompt:
    """Text, then runs of sound and video in turn, then text; a prompt needs neither tokenizer nor clips."""
    rng = np.random.default_rng(seed)
    edge = size // 6
    types = ["text"] * edge
    while len(types) < size - edge:
        types += [str(rng.choice(["audio", "video"]))] * int(rng.integers(1, 20))
    types = types[: size - edge] + ["text"] * edge
    embeddings = rng.normal(size=(size, model.config.decoder.embed_dim)).astype(np.float32)
    return model.prompt_from_embeddings(embeddings, np.broadcast_to(np.arange(size), (3, size)), types)


@given(seed=st.integers(0, 2**16), key=st.sampled_from(["audio", "video", "audio | video"]), scale=st.floats(0.1, 10))
def test_blocked_keys_cannot_reach_other_positions(omni_model: avjax.Model, seed: int, key: str, scale: float):
    """The keys' own positions block the rest too: no path is left, in any layer or head."""
    prompt = drawn_prompt(omni_model, SIZE, seed)
    named = np.isin(prompt.kinds, [{"audio": 1, "video": 2}[name] for name in key.split(" | ")])
    inputs, closed = avjax.lower_edits(omni_model, prompt, avjax.Knockout(query="all", key=key))
    noise = scale * np.random.default_rng(seed + 1).normal(size=inputs.embeddings.shape).astype(np.float32)
    changed = _with(inputs, embeddings=jnp.where(jnp.asarray(named)[:, None], noise, inputs.embeddings))
    a, _ = jitted_forward(omni_model, inputs, closed)
    b, _ = jitted_forward(omni_model, changed, closed)
    np.testing.assert_array_equal(np.asarray(a)[~named], np.asarray(b)[~named])
    assert np.abs(np.asarray(a) - np.asarray(b))[named].max() > 1e-3, "the change must be one that shows"


@given(seed=st.integers(0, 2**16), layer=st.integers(0, 7), head=st.integers(0, 3))
def test_one_open_head_is_enough_to_reach_them(omni_model: avjax.Model, seed: int, layer: int, head: int):
    """So that the property above does not hold by accident."""
    prompt = drawn_prompt(omni_model, SIZE, seed)
    video = prompt.kinds == 2
    layers, heads = [i for i in range(8) if i != layer], [i for i in range(4) if i != head]
    rules = [avjax.Knockout(query="all", key="video", heads=heads)]
    rules += [avjax.Knockout(query="all", key="video", layers=layers, heads=[head])]
    inputs, nearly = avjax.lower_edits(omni_model, prompt, *rules)
    changed = _with(inputs, embeddings=jnp.where(jnp.asarray(video)[:, None], -inputs.embeddings, inputs.embeddings))
    difference = jitted_forward(omni_model, inputs, nearly)[0] - jitted_forward(omni_model, changed, nearly)[0]
    after = np.arange(SIZE) > np.flatnonzero(video)[0]
    assert np.abs(np.asarray(difference))[after & ~video].max() > 1e-6
    np.testing.assert_array_equal(np.asarray(difference)[: np.flatnonzero(video)[0]], 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("size", "num_groups"), [(1, 1), (128, 4), (129, 1), (300, 4)])
def test_no_edit_is_bit_identical_to_no_intervention(omni_model: avjax.Model, size: int, num_groups: int):
    inputs = omni_model.encode(drawn_prompt(omni_model, size, size))
    inputs = _with(inputs, groups=jnp.arange(size, dtype=jnp.int32) % num_groups, num_groups=num_groups)
    none = avjax.Intervention.none(omni_model.config.decoder, num_groups)
    clean, _ = jitted_forward(omni_model, inputs, None)
    unedited, _ = jitted_forward(omni_model, inputs, none)
    np.testing.assert_array_equal(np.asarray(clean), np.asarray(unedited))


def test_edits_over_other_groups_are_refused(omni_model: avjax.Model):
    """Neither may run: a group beyond the factors would be cut, factors beyond the groups would do nothing."""
    prompt = drawn_prompt(omni_model, SIZE, 0)
    inputs, edit = avjax.lower_edits(omni_model, prompt, "text->text@0:2")
    for other, intervention in (
        (inputs, avjax.Intervention.none(omni_model.config.decoder)),
        (omni_model.encode(prompt), edit),
    ):
        with pytest.raises(ValueError, match="token groups of the inputs"):
            avjax.forward(omni_model, other, intervention)


@both_semantics
def test_an_edit_that_touches_nothing_is_bit_identical_to_clean(omni_model: avjax.Model, compat: Compat):
    prompt = drawn_prompt(omni_model, SIZE, 0)
    clean = avjax.run(omni_model, prompt, at="all").logits
    noop = avjax.run(omni_model, prompt, "generated->video; video->image", at="all", compat=compat, allow_noop=True)
    np.testing.assert_array_equal(np.asarray(clean), np.asarray(noop.logits))
    assert noop.touched.edges == noop.touched.blocked_queries == 0


@pytest.mark.exhaustive
@both_semantics
@settings(max_examples=10)
@given(size=st.integers(6, SIZE), seed=st.integers(0, 2**16))
def test_padding_does_not_change_logits(omni_model: avjax.Model, size: int, seed: int, compat: Compat):
    """The rules starve tokens, so that under the published semantics a mean over all keys meets padding as well."""
    prompt = drawn_prompt(omni_model, SIZE, seed)
    inputs, edit = avjax.lower_edits(omni_model, prompt, "text->text@2:6", "all->[0]#h1,h2")
    inputs = _with(inputs, length=jnp.int32(size))  # so the rest is padding that holds something
    at = jnp.asarray(np.resize(np.arange(size), SIZE))
    logits = functools.partial(logits_at, omni_model.network.decoder, intervention=edit, at=at, compat=compat)
    expected, _ = logits(inputs)
    real = jnp.arange(SIZE) < size
    other = _with(
        inputs,
        embeddings=jnp.where(real[:, None], inputs.embeddings, 3.0),
        positions=jnp.where(real, inputs.positions, 999),
        groups=jnp.where(real, inputs.groups, 1),
    )
    np.testing.assert_array_equal(logits(other)[0], expected)
    longer, _ = logits(pad_inputs(inputs, 448))
    np.testing.assert_allclose(longer, expected, rtol=0, atol=1e-6)


@pytest.mark.exhaustive
@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**16),
    drawn=st.lists(
        st.builds(
            avjax.Knockout,
            query=st.sampled_from(["generated", "text"]),
            key=st.sampled_from(["text", "video"]),
            layers=st.sets(st.integers(0, 7), min_size=1).map(sorted),
            heads=st.none() | st.sets(st.integers(0, 3), min_size=1).map(sorted),
        ),
        min_size=3,
        max_size=3,
    ),
)
def test_variants_together_equal_one_at_a_time(omni_model: avjax.Model, seed: int, drawn: list[avjax.Knockout]):
    prompt = drawn_prompt(omni_model, SIZE, seed)
    variants = [[], *([edit] for edit in drawn)]
    together = avjax.generate_variants(omni_model, prompt, variants, max_new_tokens=8)
    for edits, batched in zip(variants, together, strict=True):
        alone = avjax.generate(omni_model, prompt, *edits, max_new_tokens=8)
        np.testing.assert_array_equal(alone.tokens, batched.tokens)
        assert np.abs(alone.logits - batched.logits).max() <= 1e-5
        assert alone.touched == batched.touched


def _with(inputs: Inputs, **changes: jax.Array) -> Inputs:
    return dataclasses.replace(inputs, **changes)
