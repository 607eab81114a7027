"""Noise is not an effect: what rounding alone changes lies within the floor, and the floor says which sign to trust."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from flax import nnx

import avjax
from avjax import metrics

SAMPLES, SIZE = 12, 48
FAINT, IDLE = 1e-2, 0.0  # what the output of a head is multiplied with
ASKED = (metrics.LogProb((70,)), metrics.LogitDiff((70,), (75,)), metrics.KL(), metrics.TotalVariation())


def decoder_with(dtype: str, strengths: dict[tuple[int, int], float]) -> avjax.Model:
    """tiny-av whose heads write as much of what they did as given, with weights that bfloat16 holds exactly."""
    model = avjax.load("tiny-av", dtype=dtype)
    output = model.network.decoder.layers.attn.o
    factor = np.ones(output.kernel.shape[:2])
    for place, strength in strengths.items():
        factor[place] = strength
    output.kernel[...] = output.kernel[...] * jnp.asarray(factor, output.kernel.dtype)[..., None, None]
    for _, leaf in nnx.iter_graph(model.network.decoder):
        if isinstance(leaf, nnx.Param):
            leaf[...] = leaf[...].astype(jnp.bfloat16).astype(leaf.dtype)
    return model


@functools.cache
def study(dtype: str, strength: float, idle: int = 0) -> xr.Dataset:
    """Thirty heads of such a decoder knocked out, one by one, on drawn prompts; the first few of them write nothing."""
    heads = list(itertools.product(range(2, 7), range(6)))
    model = decoder_with(dtype, {head: IDLE if i < idle else strength for i, head in enumerate(heads)})
    rng = np.random.default_rng(8)
    prompts = [model.prompt_from_hf({"input_ids": rng.integers(0, 400, SIZE)[None]}) for _ in range(SAMPLES)]
    rules = [f"answer->[0:{SIZE}]@{layer}#h{head}" for layer, head in heads]
    return avjax.sweep(model, prompts, rules, list(ASKED), progress=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_no_edit_changed_is_below_the_floor(dtype: str):
    """Heads that write nothing: all that their knockouts change is rounding."""
    data = study(dtype, IDLE)
    for metric in ASKED:
        change = np.abs(data[metric.name] - data[f"{metric.name}_clean"])
        within = float((change <= data[f"{metric.name}_floor"]).mean())
        assert within >= 0.95, (metric.name, within)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("strength", "least", "most"), [(IDLE, 0, 1), (FAINT, 0, 30), (1.0, 5, 30)])
def test_intervals_above_the_floor_have_the_right_sign(strength: float, least: int, most: int):
    """In bfloat16, against the same weights in float32; of heads that write nothing, little, and all that they do.

    `least` and `most`: how many of thirty intervals exclude 0 above the floor; 5% of those without effect are one.
    """
    rounded, exact = avjax.bootstrap(study("bfloat16", strength)), study("float32", strength)
    for name in ("log_prob", "logit_diff"):
        truth = (exact[name] - exact[f"{name}_clean"]).mean("sample")
        low, high = rounded[f"{name}_change_low"], rounded[f"{name}_change_high"]
        sure = ((low > 0) | (high < 0)) & ~rounded[f"{name}_below_floor"]
        assert least <= int(sure.sum()) <= most, (name, int(sure.sum()))
        wrong = sure & (np.sign(rounded[f"{name}_change"]) != np.sign(truth))
        assert strength == IDLE or int(wrong.sum()) == 0, name


@pytest.mark.exhaustive
def test_cells_that_flip_no_bit_do_not_lower_the_floor():
    """Of heads that write nothing beside such that write little."""
    few, many = (float(study("bfloat16", FAINT, idle)["log_prob_floor"]) for idle in (0, 26))
    assert many > few / 4


@pytest.mark.exhaustive
def test_distances_are_never_tested_against_zero():
    assert avjax.bootstrap(study("bfloat16", IDLE))["kl_below_floor"].all()
    means = avjax.bootstrap(study("bfloat16", FAINT))
    assert {"kl", "kl_below_floor", "kl_floor"} <= set(means) and "kl_change" not in means


@pytest.mark.exhaustive
def test_the_floor_says_how_it_was_measured():
    for dtype, how in (("float32", "replay's own program"), ("bfloat16", "float32 activations")):
        floor = study(dtype, FAINT)["logit_diff_floor"]
        assert floor.shape == () and how in floor.attrs["how"] and floor.attrs["draws"] >= SAMPLES
        assert floor.attrs["units"] == "nats" and 0 < float(floor) < 1


@pytest.mark.exhaustive
def test_a_store_keeps_the_floor(tmp_path):
    """Cut into parts and read again, it is what one sweep in memory says."""
    model = avjax.load("tiny-av", dtype="bfloat16")
    prompt = model.prompt_from_hf({"input_ids": np.arange(20)[None]})
    settings = {"progress": False, "metrics": [metrics.LogProb((70,))]}
    grid = avjax.grid(avjax.Knockout(query="answer", key="all", layers=avjax.windows(1), heads=avjax.each_head()))
    in_memory = avjax.sweep(model, prompt, grid, **settings)
    stored = avjax.sweep(model, prompt, grid, store=tmp_path / "run", **settings)
    again = avjax.sweep(model, prompt, grid, store=tmp_path / "run", **settings)
    xr.testing.assert_identical(stored.log_prob_floor, again.log_prob_floor)
    np.testing.assert_allclose(stored.log_prob_floor, in_memory.log_prob_floor, rtol=1e-6)
    assert stored.log_prob_floor.attrs == in_memory.log_prob_floor.attrs
