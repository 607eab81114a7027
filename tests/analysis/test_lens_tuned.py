"""The tuned lens: starts as the logit lens, learns what can be learnt, is stored whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax.analysis import TunedLens, logit_lens, train_tuned_lens
from avjax.analysis.lens_projection import Translators
from avjax.analysis.tuned_lens import Data, slope_of

L, D = 8, 64


def prompt_of(model: avjax.Model, seed: int, size: int = 200) -> avjax.Prompt:
    rng = np.random.default_rng(seed)
    types = ["text"] * 5 + ["audio"] * (size - 10) + ["text"] * 5
    return model.prompt_from_embeddings(rng.normal(size=(size, D)), np.tile(np.arange(size), (3, 1)), types)


@pytest.fixture(scope="module")
def prompts(omni_model: avjax.Model) -> list[avjax.Prompt]:
    return [prompt_of(omni_model, seed) for seed in range(10)]


@pytest.fixture(scope="module")
def tuned(omni_model: avjax.Model, prompts) -> TunedLens:
    return train_tuned_lens(omni_model, prompts[:8], prompts[8:], steps=120, batch_size=32, progress=False)


def log_probs(model: avjax.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(model.network.decoder.logits(jnp.asarray(x))), np.float64)


def divergences(model: avjax.Model, prompts, lens: TunedLens | None) -> np.ndarray:
    """KL(final || lens) [L] from whole captures, in numpy."""
    found = []
    for prompt in prompts:
        rows = np.flatnonzero(prompt.kinds == 1)
        x = np.asarray(avjax.run(model, prompt, capture=["resid_post"]).captures["resid_post"])[:, rows]
        y = x
        if lens is not None:
            kernel, bias = np.asarray(lens.translators.kernel), np.asarray(lens.translators.bias)
            y = x + np.einsum("lpd,lde->lpe", x, kernel) + bias[:, None]
        p, q = log_probs(model, x[-1]), log_probs(model, y)
        found.append((np.exp(p) * (p - q)).sum(-1).mean(1))
    return np.mean(found, 0)


@pytest.mark.exhaustive
def test_held_out_divergence_falls_and_is_what_it_says(omni_model: avjax.Model, prompts, tuned: TunedLens):
    before, after = tuned.report["kl_before"].values, tuned.report["kl_after"].values
    np.testing.assert_allclose(before, divergences(omni_model, prompts[8:], None), atol=1e-4)
    np.testing.assert_allclose(after, divergences(omni_model, prompts[8:], tuned), atol=1e-4)
    assert (after[:-1] < 0.95 * before[:-1]).all(), (before, after)
    assert before[-1] == pytest.approx(0, abs=1e-6) and after[-1] == before[-1]
    assert not np.asarray(tuned.translators.kernel[-1]).any()


@pytest.mark.exhaustive
def test_before_the_first_step_it_is_the_logit_lens(omni_model: avjax.Model, prompts, tuned: TunedLens):
    nothing = jax.tree.map(jnp.zeros_like, tuned.translators)
    fresh = TunedLens(translators=nothing, site=tuned.site, report=tuned.report)
    plain = logit_lens(omni_model, prompts[0], answers=[3], progress=False)
    through = logit_lens(omni_model, prompts[0], answers=[3], lens=fresh, progress=False)
    trained = logit_lens(omni_model, prompts[0], answers=[3], lens=tuned, progress=False)
    for name in ("top_token", "top_prob", "entropy", "log_prob", "rank"):
        np.testing.assert_array_equal(through[name], plain[name])
    assert np.abs(trained["entropy"] - plain["entropy"]).max() > 0.01
    assert tuned.report["loss"].dims == ("step", "layer") and tuned.report.sizes["step"] == 120


@pytest.mark.exhaustive
def test_the_slope_is_that_of_finite_differences(omni_model: avjax.Model):
    rng = np.random.default_rng(0)
    data = Data(
        seen=jnp.asarray(rng.normal(size=(L, 12, D)), jnp.float32),
        final=jnp.asarray(rng.normal(size=(12, D)), jnp.float32),
    )
    maps = Translators(
        kernel=jnp.asarray(0.05 * rng.normal(size=(L, D, D)), jnp.float32),
        bias=jnp.asarray(0.05 * rng.normal(size=(L, D)), jnp.float32),
    )
    decoder = omni_model.network.decoder
    rows = jnp.arange(12).reshape(3, 4)
    of = jax.jit(slope_of)
    loss, slope = of(decoder, maps, data, rows)
    once, same = of(decoder, maps, data, rows.reshape(1, 12))
    np.testing.assert_allclose(loss, once, rtol=1e-5)
    np.testing.assert_allclose(slope.kernel, same.kernel, atol=1e-6)
    for name in ("kernel", "bias"):
        way = rng.normal(size=getattr(maps, name).shape).astype(np.float32)
        h = 1e-2 / np.sqrt(way[0].size)

        def at(step: float, name=name, way=way) -> np.ndarray:
            moved = {n: getattr(maps, n) + (step * way if n == name else 0) for n in ("kernel", "bias")}
            return np.asarray(of(decoder, Translators(**moved), data, rows)[0], np.float64)

        measured = (at(h) - at(-h)) / (2 * h)
        analytic = (np.asarray(getattr(slope, name)) * way).reshape(L, -1).sum(1)
        np.testing.assert_allclose(measured, analytic, rtol=0.02, atol=0.02 * np.abs(analytic).max())


def test_stored_and_read(omni_model: avjax.Model, prompts, tuned: TunedLens, tmp_path):
    tuned.save(tmp_path / "lens")
    back = TunedLens.load(tmp_path / "lens")
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(getattr(back.translators, name), getattr(tuned.translators, name))
    assert back.site is tuned.site and back.report.attrs == tuned.report.attrs
    np.testing.assert_allclose(back.report["kl_after"], tuned.report["kl_after"], rtol=1e-6)
    a, b = (logit_lens(omni_model, prompts[0], lens=lens, progress=False) for lens in (back, tuned))
    np.testing.assert_array_equal(a["top_prob"], b["top_prob"])
    assert a.attrs["lens"] == "tuned on audio of 8 prompts"
    (tmp_path / "lens" / "tuned_lens.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no tuned_lens\.json"):
        TunedLens.load(tmp_path / "lens")


def test_a_lens_of_something_else_is_refused(omni_model: avjax.Model, prompts, tuned: TunedLens):
    with pytest.raises(ValueError, match="expected site resid_post, where it was trained, got resid_pre"):
        logit_lens(omni_model, prompts[0], site="resid_pre", lens=tuned)
    with pytest.raises(ValueError, match="a tuned lens needs the final norm"):
        logit_lens(omni_model, prompts[0], norm=False, lens=tuned)
    fewer = jax.tree.map(lambda leaf: leaf[:4], tuned.translators)
    other = TunedLens(translators=fewer, site=tuned.site, report=tuned.report)
    with pytest.raises(ValueError, match="maps for 8 layers of width 64, got 4 of 64"):
        logit_lens(omni_model, prompts[0], lens=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "z"}, "it does not have the residual stream's width"),
        ({"site": "blocks.1.hook_resid_post"}, "a tuned lens covers all layers"),
        ({"where": "video"}, "where='video': the prompt of sample 0 has no such token"),
        ({"steps": 0}, "steps: expected"),
        ({"batch_size": 2.5}, "batch_size: expected"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected"),
    ],
)
def test_what_cannot_be_trained_is_refused(omni_model: avjax.Model, prompts, change: dict, message: str, monkeypatch):
    def compiled(*args, **kwargs):
        raise AssertionError("refused too late")

    monkeypatch.setattr("avjax.analysis.tuned_lens.rows_pass", compiled)
    with pytest.raises(ValueError, match=message):
        train_tuned_lens(omni_model, prompts[:2], prompts[2:3], **change)
    with pytest.raises(ValueError, match="held_out: sample 0 is in prompts too, as 1"):
        train_tuned_lens(omni_model, prompts[:2], prompts[1:2])


def test_training_that_diverges_is_refused(omni_model: avjax.Model, prompts):
    with pytest.raises(ValueError, match=r"not finite after step 3; lower learning_rate=1e\+30"):
        train_tuned_lens(omni_model, prompts[0], prompts[1], steps=3, batch_size=4, learning_rate=1e30, progress=False)


@pytest.mark.exhaustive
def test_a_checkpoint_in_bfloat16(omni, prompts):
    model = avjax.load(omni.directory, dtype="bfloat16")
    lens = train_tuned_lens(model, prompts[:8], prompts[8:], steps=60, batch_size=32, progress=False)
    assert (lens.report["kl_after"] < lens.report["kl_before"])[:-1].all()
