"""Attribution: slopes against finite differences through the engine, exact effects against runs, tiny-av's headline."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis import attribute, attribution
from avjax.analysis.gradient_cases import cases
from avjax.analysis.gradient_pass import final_rows, objective, prepared
from avjax.models.intervention import Intervention

D, SIZE, STEP = 64, 40, 0.1
TYPES = ["text"] * 8 + ["audio"] * 12 + ["video"] * 12 + ["text"] * 8
ANSWER = metrics.LogProb([7])


def drawn(model: avjax.Model, seed: int, types: list[str] = TYPES) -> avjax.Prompt:
    rng = np.random.default_rng(seed)
    return model.prompt_from_embeddings(rng.normal(size=(len(types), D)), np.tile(np.arange(len(types)), (3, 1)), types)


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    return drawn(omni_model, 0)


@pytest.fixture(scope="module")
def screen(omni_model, prompt):
    sites = (*attribution.SITES, "attn_in", "mlp_in")
    return attribute(omni_model, prompt, ANSWER, queries=["text", "last"], keys=["audio", "video"], sites=sites, top=0)


def check_slopes(model: avjax.Model, prompt: avjax.Prompt, estimate: np.ndarray, edit_at) -> None:
    """Minus the estimate is the slope of every cell, to 0.5% of the largest: what float32 values can say.

    Central differences of the fourth order, from full passes of the engine.

    Args:
      edit_at: the edit of a cell's index and a factor.
    """
    factors = [1 - 2 * STEP, 1 - STEP, 1 + STEP, 1 + 2 * STEP]
    variants = [edit_at(cell, factor) for cell in np.ndindex(estimate.shape) for factor in factors]
    swept = avjax.sweep(model, prompt, variants, ANSWER, executor="reference", progress=False)["log_prob"]
    at = swept.to_numpy().astype(np.float64).reshape(*estimate.shape, 4)
    expected = (8 * (at[..., 2] - at[..., 1]) - (at[..., 3] - at[..., 0])) / (12 * STEP)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(-estimate, expected, rtol=0, atol=5e-3 * scale)


@pytest.mark.exhaustive
def test_edge_estimates_are_slopes_of_every_edge(omni_model, prompt, screen):
    def edit(cell, factor: float):
        layer, head, query, key = cell
        names = {"query": ["text", "last"][query], "key": ["audio", "video"][key]}
        return avjax.ScaleAttention(**names, factor=factor, layers=[layer], heads=[head])

    check_slopes(omni_model, prompt, screen["edge_estimate"].to_numpy()[0], edit)


@pytest.mark.exhaustive
@pytest.mark.parametrize("site", ["z", "value", "attn_out", "mlp_out", "resid_post", "attn_in", "mlp_in"])
def test_scale_estimates_are_slopes_of_every_scale(omni_model, prompt, screen, site: str):
    def edit(cell, factor: float):
        layer, *heads, group = cell
        where = ["text", "audio", "video"][group]
        return avjax.Scale(where, factor, site=site, layers=[layer], heads=heads or None)

    check_slopes(omni_model, prompt, screen[f"{site}_estimate"].to_numpy()[0], edit)


@pytest.mark.exhaustive
def test_the_pass_over_few_rows_is_the_reference_pass(omni_model):
    """Values and gradients of the rows over a clean run's keys, against `avjax.forward` over the whole prompt."""
    prompt = drawn(omni_model, 1, TYPES + ["text"] * 60)
    [case] = cases(omni_model, prompt, ANSWER).values()
    masks = [case.select(s) for s in ("[95:100]", "audio", "video")]
    whole = prepared(omni_model, case, masks)
    few = prepared(omni_model, case, masks, first_row=95, with_clean=True)
    assert few.rows.embeddings.shape[0] == 8 and few.rows.keys is not None and whole.rows.keys is None
    cfg, size = omni_model.config.decoder, few.rows.num_groups
    pairs = np.outer(few.members[0], few.members[1] | few.members[2])
    rng = np.random.default_rng(0)
    drawn_LNMM = rng.uniform(0, 2, (cfg.num_layers, cfg.num_heads, size, size)) * (rng.random(pairs.shape) > 0.2)
    factor = jnp.asarray(np.where(pairs, drawn_LNMM, 1), jnp.float32)
    inputs, _ = avjax.lower_edits(omni_model, prompt)
    inputs = dataclasses.replace(inputs, groups=few.rows.groups[: len(prompt)], num_groups=size)

    def reference(factor):
        logits, _ = avjax.forward(omni_model, inputs, Intervention(attention_factor=factor))
        return jax.nn.log_softmax(logits[-1])[7]

    value, slope = jax.jit(jax.value_and_grad(reference))(factor)
    clean = float(reference(jnp.ones_like(factor)))
    assert abs(float(value) - clean) > 1e-3
    decoder = omni_model.network.decoder
    for made in (few, whole):
        edit = Intervention(attention_factor=factor)
        found, gradient = jax.jit(
            jax.value_and_grad(lambda e, made=made: objective(decoder, made.rows, e, made.target, ANSWER))
        )(edit)
        np.testing.assert_allclose(found, value, rtol=0, atol=2e-5)
        close = np.abs(np.asarray(gradient.attention_factor) - slope)[:, :, pairs]
        assert close.max() <= 1e-4 * np.abs(slope[:, :, pairs]).max()
    rows = [final_rows(decoder, made.rows, Intervention(attention_factor=factor)) for made in (few, whole)]
    np.testing.assert_allclose(rows[0], rows[1][len(prompt) - 8 : len(prompt)], rtol=0, atol=2e-5)


@pytest.mark.exhaustive
def test_one_backward_pass_per_prompt_and_one_program_for_all(omni_model, monkeypatch: pytest.MonkeyPatch):
    calls, compiled = [], attribution.gate_slopes

    def counted(*args, **kwargs):
        calls.append(1)
        return compiled(*args, **kwargs)

    monkeypatch.setattr(attribution, "gate_slopes", counted)
    prompts = {i: drawn(omni_model, i, ["text"] * i + TYPES) for i in range(4)}
    by_sample = {i: metrics.LogitDiff([i], [20 + i]) for i in prompts}
    before = compiled._cache_size()
    found = attribute(omni_model, prompts, by_sample, sites="z", top=0, progress=False)
    assert len(calls) == 4 and compiled._cache_size() == before + 1
    assert found.sizes["sample"] == 4
    alone = attribute(omni_model, prompts[2], by_sample[2], sites="z", top=0)
    np.testing.assert_array_equal(alone["edge_estimate"][0], found["edge_estimate"][2])


@pytest.mark.exhaustive
def test_no_array_of_queries_and_keys_is_kept(omni_model):
    """The backward pass over 2,048 tokens takes less than the weights of one layer's four heads would, of eight."""
    size = 2048
    [case] = cases(omni_model, drawn(omni_model, 0, TYPES[:32] + ["text"] * (size - 32)), ANSWER).values()
    ready = prepared(omni_model, case, [case.select("audio"), case.select("last")])
    lowered = attribution.gate_slopes.lower(
        omni_model.network.decoder, ready.rows, ready.target, metric=ANSWER, sites=()
    )
    memory = lowered.compile().memory_analysis()
    cfg = omni_model.config.decoder
    assert cfg.num_layers == 8
    assert memory.temp_size_in_bytes < cfg.num_heads * size * size * 4


@pytest.mark.exhaustive
def test_exact_effects_are_those_of_runs(tiny_av, clashing):
    """On an opened answer, whose positions are written out here, against one run per candidate."""
    name, prompt = next(iter(clashing.prompts.items()))
    metric = clashing.metrics[name]
    found = attribute(tiny_av, prompt, metric, keys="video", groups="audio", sites="value", top=3)
    answer = list(range(len(prompt) - 3, len(prompt)))  # the last of what is asked, and "I hear"
    a, b = metric.a[0], metric.b[0]

    def value(*edits: avjax.Knockout | avjax.Scale) -> float:
        logits = np.asarray(avjax.run(tiny_av, prompt, *edits).logits[0])
        return float(logits[a] - logits[b])

    clean = value()
    assert found["clean"].item() == pytest.approx(clean, abs=2e-4)
    assert found["edges"].item() == 3 * prompt.counts()["video"]
    kinds = found["candidate_kind"].values.tolist()
    assert kinds == ["edge"] * 3 + ["value"] * 3
    size = np.abs(found["edge_estimate"].to_numpy())
    for candidate, kind, effect in zip(found["candidate"].values, kinds, found["exact"].values[:, 0], strict=True):
        if kind == "value":
            layer, head = candidate.split("@")[1].split("#h")
            edit = avjax.Scale("audio", 0.0, site="value", layers=[int(layer)], heads=[int(head)])
        else:
            [rule] = avjax.parse_rules(candidate)
            assert (rule.query, rule.key) == ("answer", "video")
            edit = avjax.Knockout(query=answer, key="video", layers=rule.layers, heads=rule.heads)
        assert value(edit) - clean == pytest.approx(effect, abs=5e-4), candidate
    best = np.unravel_index(size.argmax(), size.shape)
    assert found["candidate"].values[0] == f"answer->video@{best[1]}#h{best[2]}"
    assert abs(found["estimate"].values[0, 0]) == size.max()
    assert np.abs(found["exact"].values - found["estimate"].values).max() > 0.01  # the two are not mixed


@pytest.mark.exhaustive
def test_deep_edges_to_the_picture_speak_against_the_true_sound(tiny_av, clashing):
    found = attribute(tiny_av, clashing.prompts, clashing.metrics, sites=(), top=16, progress=False)
    per_layer = found["edge_estimate"].mean("sample").sum("head").isel(query=0)
    video, audio = per_layer.sel(key="video"), per_layer.sel(key="audio")
    assert video.sel(layer=slice(4, 7)).sum() > 1.5 * video.sel(layer=slice(0, 3)).sum() > 0
    assert audio.sum() < -0.5
    assert found["rank_correlation"].sel(kind="edge") > 0.5
    means = found[["estimate", "exact"]].mean("sample")
    to_video = ["->video@" in str(name) for name in means["candidate"].values]
    assert (means["exact"][to_video] > 0).all()
    assert means["exact"][to_video].sum() > 1.5 * means["estimate"][to_video].sum()


BAD = [
    ({"metric": metrics.Rank([7])}, "'rank': its gradient is zero"),
    ({"metric": metrics.TopK(2)}, "'top_k': expected one number"),
    ({"metric": metrics.AttentionMass("audio")}, "'attention_mass': expected one number"),
    ({"metric": metrics.Caption()}, "'caption': expected one number"),
    ({"metric": metrics.KL()}, "'kl': at the clean run its gradient is zero"),
    ({"metric": metrics.TotalVariation()}, "at the clean run its gradient is zero"),
    ({"metric": {"other": ANSWER}}, "metric: expected one for each sample, got none for 0"),
    ({"queries": "image"}, "queries 'image': the prompt of sample 0 has no such tokens"),
    ({"keys": ["audio", "image"]}, "keys 'image': the prompt of sample 0 has no such tokens"),
    ({"groups": "image"}, "groups 'image': the prompt of sample 0 has no such tokens"),
    ({"keys": ["audio", "audio"]}, "keys: expected different selectors"),
    ({"queries": "[0:3]", "keys": "video"}, "sample 0 has no such edge"),
    ({"sites": ["pattern"]}, "sites: expected some of resid_pre"),
    ({"sites": "embed"}, "embed is resid_pre of layer 0"),
    ({"sites": (), "keys": ()}, "expected queries and keys, or sites and groups, got neither"),
    ({"top": -1}, "top: expected a whole number of candidates, at least 0, got -1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_screened_is_refused_before_anything_compiles(
    omni_model, prompt, monkeypatch: pytest.MonkeyPatch, changes, message: str
):
    monkeypatch.setattr(attribution, "gate_slopes", None)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        attribute(omni_model, prompt, **({"metric": ANSWER} | changes))


def test_no_prompts_a_class_and_features_that_are_not_finite_are_refused(omni_model, prompt):
    with pytest.raises(ValueError, match="prompts: expected at least one, got none"):
        attribute(omni_model, [], ANSWER)
    with pytest.raises(TypeError, match="got the class LogProb; call it"):
        attribute(omni_model, prompt, metrics.LogProb)
    bad = dataclasses.replace(prompt, embeddings=np.full_like(prompt.embeddings, np.nan))
    with pytest.raises(ValueError, match="got a NaN or infinity in sample 'b'"):
        attribute(omni_model, {"a": prompt, "b": bad}, ANSWER)
    kinds = {"a": ANSWER, "b": metrics.Prob([7])}
    with pytest.raises(ValueError, match="expected one kind for all samples, got log_prob, prob"):
        attribute(omni_model, {"a": prompt, "b": prompt}, kinds)
