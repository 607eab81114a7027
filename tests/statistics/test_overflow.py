"""An overflow is refused by every way in, also where a later norm hides it; what stays finite is computed as before.

Scales of a random Qwen2.5-Omni decoder: an activation of about 1, times 1e15 twice, is far beyond what a norm squares.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax import analysis
from avjax.metrics import AttentionMass, LogitDiff, Logits, LogLikelihood
from avjax.runs.captures import Captured
from tests.tiny_hf import TinyCheckpoint

L = 8
FACTOR = 1e15
VOCABULARY = range(50)


def scaled(where: str, site: str, layer: int | None, times: int = 2) -> list[Any]:
    layers = {} if layer is None else {"layers": [layer]}
    return [avjax.Scale(where, FACTOR, site=site, **layers)] * times


def steered(where: str, layer: int, size: float, width: int) -> list[Any]:
    return [avjax.Steer(where, np.full(width, size), scale=1e10, site="resid_post", layers=[layer])]


@pytest.fixture(scope="module")
def model(omni: TinyCheckpoint) -> avjax.Model:
    """Its own copy, since a test breaks it."""
    return avjax.load(omni.directory)


@pytest.fixture(scope="module")
def half(omni: TinyCheckpoint) -> avjax.Model:
    return avjax.load(omni.directory, dtype="bfloat16")


def sound_prompt(model: avjax.Model) -> avjax.Prompt:
    samples = np.random.default_rng(0).normal(size=16_000).astype(np.float32) / 10
    return model.prompt("What do you hear?", audio=(samples, 16_000))


WAYS = {
    "run": lambda m, p, e: avjax.run(m, p, *e),
    "run with captures": lambda m, p, e: avjax.run(m, p, *e, at="all", capture=["mlp_out"]),
    "generate": lambda m, p, e: avjax.generate(m, p, *e, max_new_tokens=3),
    "generate, reference": lambda m, p, e: avjax.generate(m, p, *e, max_new_tokens=3, executor="reference"),
    "sweep": lambda m, p, e: avjax.sweep(m, p, [e], Logits(VOCABULARY), progress=False),
    "sweep, reference": lambda m, p, e: avjax.sweep(
        m, p, [e], Logits(VOCABULARY), executor="reference", progress=False
    ),
    "sweep of attention": lambda m, p, e: avjax.sweep(m, p, [e], AttentionMass("audio"), progress=False),
    "sweep of a continuation": lambda m, p, e: avjax.sweep(m, p, [e], LogLikelihood((3, 4, 5)), progress=False),
    "captures of a run": lambda m, p, e: Captured(sites=("resid_mid",), at="last").of(m, p, [(0, "cell", e)]),
    "attention along a caption": lambda m, p, e: analysis.attention_mass(
        m, p, keys=["audio"], captions=[3, 4, 5], edits=e, progress=False
    ),
}
SHOWN = {
    "the embeddings of the sound, which no read-out shows": scaled("audio", "embed", None),
    "the last position": scaled("last", "embed", None),
    "inside a layer": [*scaled("audio", "mlp_out", 2), avjax.Scale("audio", 0.0, site="resid_post", layers=[4])],
    "the values that heads read": scaled("audio", "value", 3),
    "the last layer's output": scaled("last", "resid_post", L - 1),
}


FIRST, *OTHERS = SHOWN
CASES = [(way, FIRST) for way in WAYS] + [(way, what) for way in ("run", "sweep") for what in OTHERS]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("way", "what"), CASES)
def test_every_way_in_refuses(model: avjax.Model, way: str, what: str):
    prompt = sound_prompt(model)
    with pytest.raises(OverflowError, match=r"Scale.*\*1e\+15|\*1e\+15.*activations reach"):
        WAYS[way](model, prompt, SHOWN[what])


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["run", "generate", "sweep"])
def test_also_in_bfloat16(half: avjax.Model, way: str):
    with pytest.raises(avjax.ActivationOverflow, match="activations reach"):
        WAYS[way](half, sound_prompt(half), scaled("audio", "embed", None))


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ["audio", "last"])
def test_also_by_vectors(half: avjax.Model, where: str):
    prompt, width = sound_prompt(half), half.config.decoder.embed_dim
    with pytest.raises(avjax.ActivationOverflow, match="activations reach"):
        avjax.run(half, prompt, *steered(where, L - 1 if where == "last" else 2, 1e12, width))
    avjax.run(half, prompt, *steered(where, 2, 1e5, width))  # 1e15: large, and what follows is still a number


@pytest.mark.exhaustive
def test_refused_by_one_means_refused_by_all(model: avjax.Model):
    """Drawn edits near the limit: run, generate and both executors of sweep refuse the same ones."""
    prompt, width = sound_prompt(model), model.config.decoder.embed_dim
    ways = ("run", "generate", "sweep", "sweep, reference")
    seen = []

    @settings(max_examples=12)
    @given(
        where=st.sampled_from(["audio", "last"]),
        layer=st.integers(0, L - 1),
        power=st.integers(4, 14),
    )
    def check(where: str, layer: int, power: int):
        vector = np.full(width, 10.0**power)
        edits = [avjax.Steer(where, vector, scale=1e6, site="resid_mid", layers=[layer])]
        refused = []
        for way in ways:
            try:
                WAYS[way](model, prompt, edits)
                refused.append(False)
            except OverflowError:
                refused.append(True)
        assert len(set(refused)) == 1, dict(zip(ways, refused, strict=True))
        seen.append(refused[0])

    check()
    assert 0 < sum(seen) < len(seen)


@pytest.mark.exhaustive
def test_what_no_read_out_depends_on_is_not_refused(model: avjax.Model):
    """After the last layer's keys and values, positions that are not read may hold anything."""
    prompt = sound_prompt(model)
    for site in ("resid_mid", "resid_post"):
        edits = scaled("audio", site, L - 1)
        np.testing.assert_allclose(
            avjax.run(model, prompt, *edits).logits, avjax.run(model, prompt).logits, rtol=1e-5, atol=1e-5
        )
        avjax.sweep(model, prompt, [edits], Logits(VOCABULARY), executor="reference", progress=False, allow_noop=True)
        with pytest.raises(OverflowError):  # captured positions are read, all of them
            avjax.run(model, prompt, *edits, capture=["resid_post"])


@pytest.mark.exhaustive
def test_generated_tokens_alone_may_overflow(model: avjax.Model):
    """In a layer whose excess a later norm hides."""
    edits = scaled("generated", "value", 2)
    prompt = sound_prompt(model)
    avjax.run(model, prompt, *edits, allow_noop=True)  # nothing is generated
    for executor in ("replay", "reference"):
        with pytest.raises(OverflowError, match="activations reach"):
            avjax.generate(model, prompt, *edits, max_new_tokens=4, executor=executor)


@pytest.mark.exhaustive
@pytest.mark.parametrize("value", [1e30, np.inf, np.nan])
def test_a_broken_checkpoint_is_refused_by_analyses(model: avjax.Model, value: float):
    """Layer 2 gives one dimension of the residual a value beyond a norm, at every position."""
    down = model.network.decoder.layers.mlp.down
    good = down.kernel[...]
    prompt, metric = {"clip": sound_prompt(model)}, LogitDiff(3, 4)
    sound = np.sin(np.arange(16_000, dtype=np.float32)) / 9
    pair = {words: model.prompt(words, audio=(sound, 16_000)) for words in ("And this?", "What is it?")}
    down.kernel[...] = good.at[2, :, 5].set(jnp.float32(value))
    calls = {
        "attribute": lambda: analysis.attribute(model, prompt, metric, top=0, progress=False),
        "gates": lambda: analysis.learn_gates(
            model, prompt, metric, held_out=pair, key="audio", steps=1, num_random=1, progress=False
        ),
        "lens": lambda: analysis.logit_lens(model, prompt, layers=[L - 1], site="attn_out", progress=False),
        "tuned lens": lambda: analysis.train_tuned_lens(model, prompt, pair, site="attn_out", steps=1, progress=False),
        "latent": lambda: analysis.latent_audio_understanding(
            model, prompt, ["dog"], ["music"], site="attn_out", progress=False
        ),
        "probes": lambda: analysis.probe_features(model, prompt, ["attn_out"], progress=False),
        "sinks": lambda: analysis.find_sinks(model, prompt, progress=False),
        "attention": lambda: analysis.attention_mass(model, prompt, keys=["audio"], captions=[3, 4], progress=False),
        "patch": lambda: avjax.run(model, prompt["clip"], avjax.Patch("audio", prompt["clip"], site="value")),
        "clean run": lambda: avjax.sweep(model, prompt, ["last->audio"], metric, progress=False),
    }
    try:
        for name, call in calls.items():
            with pytest.raises(avjax.ActivationOverflow):
                pytest.fail(f"{name}: {call()}")
    finally:
        down.kernel[...] = good


@pytest.mark.exhaustive
def test_embeddings_beyond_a_norm(model: avjax.Model):
    """Of a family whose encoders are not ported, or by mistake."""
    prompt = sound_prompt(model)
    inputs = model.encode(prompt)
    embeddings = np.asarray(inputs.embeddings).copy()
    embeddings[2] = 1e25
    types = ["text"] * len(prompt)
    broken = model.prompt_from_embeddings(embeddings, np.asarray(inputs.positions), types)
    for call in (
        lambda: avjax.run(model, broken),
        lambda: avjax.generate(model, broken, max_new_tokens=2),
        lambda: analysis.find_sinks(model, broken, progress=False),
    ):
        with pytest.raises(avjax.ActivationOverflow, match=r"activations reach 1e\+25"):
            call()


@pytest.mark.exhaustive
def test_forward_leaves_the_check_to_its_caller(model: avjax.Model):
    prompt = sound_prompt(model)
    inputs, fine = avjax.lower_edits(model, prompt, "last->audio")
    _, seen = avjax.forward(model, inputs, fine, capture=(avjax.Site.PEAK,))
    assert seen[avjax.Site.PEAK].shape == (L, len(prompt), 3)
    residual = avjax.run(
        model, prompt, "last->audio", capture=["resid_pre", "resid_mid", "resid_post", "peak"]
    ).captures
    for place, site in enumerate(("resid_pre", "resid_mid", "resid_post")):
        sizes = np.abs(np.asarray(residual[site])).max(-1)
        np.testing.assert_allclose(residual["peak"][..., place], sizes, rtol=1e-6)
    np.testing.assert_allclose(seen[avjax.Site.PEAK], residual["peak"], rtol=1e-4, atol=1e-5)
    avjax.refuse_overflow(seen[avjax.Site.PEAK])
    inputs, huge = avjax.lower_edits(model, prompt, *scaled("audio", "embed", None))
    logits, seen = jax.jit(avjax.forward, static_argnames="capture")(model, inputs, huge, capture=(avjax.Site.PEAK,))
    assert np.isfinite(logits[-1]).all(), "nothing in the result tells of it"
    with pytest.raises(avjax.ActivationOverflow, match="this pass: activations reach"):
        avjax.refuse_overflow(seen[avjax.Site.PEAK])
    assert "refuse_overflow" in (avjax.forward.__doc__ or "")


def test_a_peak_cannot_be_edited(model: avjax.Model):
    with pytest.raises(ValueError, match="peak"):
        avjax.Scale("audio", 2.0, site="peak")
