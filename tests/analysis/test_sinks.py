"""Sinks against numpy over Hugging Face's hidden states and attention, in a model with planted outlier dimensions."""

from pathlib import Path

import jax
import numpy as np
import pytest

import avjax
from avjax.analysis import find_sinks, select_sinks, sinks
from avjax.analysis.sinks import default_threshold, dominance
from avjax.edits.json_forms import from_json, to_json
from avjax.families.registry import abstract_network, read_config
from avjax.metrics import LogProb
from avjax.organism import behaviour, world
from avjax.prompts.prompt import Inputs
from avjax.prompts.selectors import MODALITIES, BySample, select
from tests.analysis.torch_readings import Readings, media, readings
from tests.hub_configs import HUB_OMNI
from tests.tiny_hf import TinyCheckpoint, write_checkpoint

L, D = 8, 64
BY_EMBEDDING, BY_MLP = 11, 37  # planted dimensions
THRESHOLD = 6.0


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """One dimension stands out of one word from its embedding on, another of the tokens that layer 2's MLP writes."""
    tiny = write_checkpoint(tmp_path_factory.mktemp("planted") / "checkpoint", "qwen2_5_omni", seed=1)
    text = tiny.torch_model.model.language_model
    text.embed_tokens.weight.data[3, BY_EMBEDDING] = 200.0
    text.layers[2].mlp.down_proj.weight.data[BY_MLP] *= 100.0
    tiny.torch_model.save_pretrained(tiny.directory)
    return tiny


@pytest.fixture(scope="module")
def model(planted) -> avjax.Model:
    return avjax.load(planted.directory)


@pytest.fixture(scope="module")
def prompts(model) -> dict[str, avjax.Prompt]:
    return {"long": media(model, 10, 5.0), "short": media(model, 6, 3.0)}


@pytest.fixture(scope="module")
def hf(planted, model, prompts) -> dict[str, Readings]:
    return {name: readings(planted, model, prompt) for name, prompt in prompts.items()}


@pytest.fixture(scope="module")
def found(model, prompts):
    return find_sinks(model, prompts, threshold=THRESHOLD, progress=False)


def normed(seen: Readings) -> np.ndarray:
    """[L, T, D]"""
    return np.abs(seen.hidden) / np.sqrt((seen.hidden**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.exhaustive
def test_planted_outlier_dimensions_are_found(found, hf):
    assert np.flatnonzero(found.outlier).tolist() == [BY_EMBEDDING, BY_MLP]
    assert found.attrs["outliers"] == "estimated" and found.attrs["threshold"] == THRESHOLD
    largest = np.max([normed(seen).max(1) for seen in hf.values()], axis=0)
    np.testing.assert_allclose(found.dimension_peak, largest, rtol=0, atol=1e-4)


def test_sinks_are_where_torch_exceeds_the_threshold(found, hf, prompts):
    for name, prompt in prompts.items():
        peak = normed(hf[name])[..., [BY_EMBEDDING, BY_MLP]].max(-1)
        assert (np.abs(peak - THRESHOLD) > 1e-3).all(), "not a matter of rounding"
        expected = peak > THRESHOLD
        size = len(prompt)
        one = found.sel(sample=name)
        np.testing.assert_array_equal(one.sink[:, :size], expected)
        np.testing.assert_allclose(one.peak[:, :size], np.where(expected, peak, 0), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(one.sink_layers[:size], expected.sum(0))
        assert not one.sink[:, size:].any()
        assert one.token_modality[:size].values.tolist() == [MODALITIES[k] for k in prompt.kinds]
        word = prompt.token_ids == 3
        assert word.any() and expected[0].tolist() == word.tolist(), "from the embedding on, one word alone"
        assert expected[3:].sum() > expected[:3].sum()


def test_given_dimensions_are_taken(model, prompts, found):
    one = find_sinks(model, prompts, threshold=THRESHOLD, dimensions=[BY_EMBEDDING], progress=False)
    assert np.flatnonzero(one.outlier).tolist() == [BY_EMBEDDING] and one.attrs["outliers"] == "given"
    assert (one.sink.values <= found.sink.values).all() and one.sink.sum() < found.sink.sum()


def test_a_dimension_of_few_prompts_is_none_of_the_model(model, prompts):
    """The planted word stands in one prompt of three."""
    ids = np.arange(20, 60)[None]
    others = {str(i): model.prompt_from_hf({"input_ids": ids + i}) for i in range(2)}
    three = find_sinks(model, {"long": prompts["long"], **others}, threshold=THRESHOLD, progress=False)
    assert not three.outlier[BY_EMBEDDING] and three.outlier[BY_MLP]
    assert np.isnan(three.mds.sel(sample="0")).all(), "no video or sound is there to attend"


def expected_paid(seen: Readings, prompt: avjax.Prompt) -> np.ndarray:
    """[2, L, T], over heads, by loops: as the published code does it."""
    pattern = seen.pattern.mean(1)
    paid = np.full((2, L, len(prompt)), np.nan)
    for m, modality in enumerate(("video", "audio")):
        queries = np.flatnonzero(prompt.kinds == MODALITIES.index(modality))
        for token in range(len(prompt)):
            later = queries[queries > token]
            if len(later):
                paid[m, :, token] = pattern[:, later, token].mean(1)
    return paid


def test_modality_dominance_over_whole_patterns(model, prompts, found, hf):
    published = find_sinks(model, prompts, threshold=THRESHOLD, compat="published", progress=False)
    for name, prompt in prompts.items():
        size, (v, a) = len(prompt), expected_paid(hf[name], prompt)
        one = found.sel(sample=name)
        np.testing.assert_allclose(one.paid[:, :, :size], [v, a], rtol=0, atol=1e-5)
        score = (v - a) / (v + a)
        np.testing.assert_allclose(one.mds_layer[:, :size], score, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.mds[:size], score.mean(0), rtol=0, atol=1e-3)
        assert np.isnan(one.mds[size:]).all() and np.isfinite(one.mds[:size]).any() and np.ptp(score[:, :9]) > 0.01
        v, a = np.nan_to_num(v), np.nan_to_num(a)
        score = ((v - a) / (v + a + 1e-9)).mean(0)
        np.testing.assert_allclose(published.mds.sel(sample=name)[:size], score, rtol=0, atol=1e-3)


def test_dominance():
    v, a = np.array([3.0, 1.0, 0.0, np.nan, 0.0, np.nan]), np.array([1.0, 1.0, 2.0, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(dominance(v, a), [0.5, 0, -1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(dominance(v, a, published=True), [0.5, 0, -1, -1, 0, 0])


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_uni_and_cross_modal_sinks_are_the_halves_by_dominance(found, prompts, modality: str):
    every, uni, cross = (select_sinks(found, modality, kind, most=1.0) for kind in (None, "uni", "cross"))
    sign = 1 if modality == "video" else -1
    assert str(every) == f"{modality} sinks" and str(cross) == f"cross-modal {modality} sinks"
    for name, prompt in prompts.items():
        places = np.flatnonzero(prompt.kinds == MODALITIES.index(modality))
        score = found.mds.sel(sample=name).values
        sinks = [p for p in places if found.sink.sel(sample=name)[:, p].any()]
        assert every.at(name) == tuple(sinks)
        scored = sorted((p for p in sinks if np.isfinite(score[p])), key=lambda p: -sign * score[p])
        assert len(scored) >= 4
        assert uni.at(name) == tuple(sorted(scored[: len(scored) // 2]))
        assert cross.at(name) == tuple(sorted(scored[len(scored) // 2 :]))
        assert min(sign * score[list(uni.at(name))]) >= max(sign * score[list(cross.at(name))])
    quarter = select_sinks(found, modality, "uni", uni_share=0.25, most=1.0)
    assert set(quarter.at("long")) < set(uni.at("long"))
    stubborn = select_sinks(found, modality, min_layers=5, most=1.0)
    assert 0 < len(stubborn.at("long")) < len(every.at("long"))
    assert found.sink_layers.sel(sample="long").values[list(stubborn.at("long"))].min() == 5


def test_of_too_many_sinks_those_of_the_most_layers_stay(found, prompts):
    few = select_sinks(found, "video", most=0.2), select_sinks(found, "audio", most=0.2), select_sinks(found, "text")
    kept = sum(len(s.at("long")) for s in few[:2])
    assert 0 < kept <= int(0.2 * len(prompts["long"]))
    layers = found.sink_layers.sel(sample="long").values
    chosen = [p for s in few[:2] for p in s.at("long")]
    left = sorted(set(np.flatnonzero(layers)) - set(chosen) - set(np.flatnonzero(prompts["long"].kinds == 0)))
    assert min(layers[chosen]) >= max(layers[left])


@pytest.mark.exhaustive
def test_sinks_select_in_a_sweep_of_several_prompts(model, prompts, found):
    """Each sample's own positions, as a run with those positions written out."""
    cross, uni = (select_sinks(found, "video", kind) for kind in ("cross", "uni"))
    assert cross.at("long") != cross.at("short")
    grid = avjax.grid(avjax.Knockout(query="last", key=avjax.axis("sinks", [cross, uni]), layers=[2, 5]))
    data = avjax.sweep(model, prompts, grid, LogProb([7]), progress=False)
    assert data.sinks.values.tolist() == ["cross-modal video sinks", "uni-modal video sinks"]
    assert data.cell.values.tolist() == [f"last->{name}@2,5" for name in data.sinks.values]
    for name, prompt in prompts.items():
        for selector in (cross, uni):
            edit = avjax.Knockout(query="last", key=selector.at(name), layers=[2, 5])
            logits = np.asarray(avjax.run(model, prompt, edit).logits[0], np.float64)
            expected = logits[7] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            assert abs(float(data.log_prob.sel(sample=name, sinks=str(selector))) - expected) < 1e-4
            assert int(data.edges.sel(sample=name, sinks=str(selector))) == 2 * 4 * len(selector.at(name))
    scaled = avjax.sweep(model, prompts, avjax.Scale(cross, 0.5), LogProb([7]), progress=False)
    assert scaled.positions.values.ravel().tolist() == [len(cross.at(name)) for name in prompts]


@pytest.mark.exhaustive
def test_a_sample_without_positions_is_refused_by_name(model, prompts):
    some = BySample.of({"long": [3], "short": []}, "sinks")
    edit = avjax.Knockout(query="last", key=some)
    metric = LogProb([7])
    with pytest.raises(
        ValueError, match=r"rule last->sinks: sample 'short' has no sinks \(key\); leave the sample out"
    ):
        avjax.sweep(model, prompts, edit, metric, progress=False)
    let = avjax.sweep(model, prompts, edit, metric, allow_noop=True, progress=False)
    assert let.edges.values.ravel().tolist() == [L * 4, 0]
    with pytest.raises(ValueError, match="expected its key to include sample 'other', got 'long', 'short'"):
        avjax.sweep(model, {"other": prompts["long"]}, edit, metric, progress=False)
    with pytest.raises(ValueError, match="expected its key to include sample None"):
        avjax.run(model, prompts["long"], edit)
    with pytest.raises(TypeError, match=r"expected one sample's positions; take selector\.at\(sample\)"):
        select(prompts["long"], some)
    with pytest.raises(TypeError, match="expected integers"):
        avjax.Knockout(query="last", key={"long": "video"})


def test_positions_by_sample_have_a_json_form():
    edit = avjax.Scale(BySample.of({"a": [1, 4], "b": ()}, "sinks"), 2.0)
    assert from_json(to_json(edit)) == edit


def test_on_tiny_av_no_dimension_is_an_outlier():
    model = avjax.load("tiny-av")
    clips = [world.clip("test", i, "counterfactual") for i in range(4)]
    prompts = {str(i): prompt for i, (_, prompt) in enumerate(behaviour.prompts_of(model, clips))}
    found = find_sinks(model, prompts, progress=False)
    assert not found.outlier.any() and not found.sink.any()
    assert found.dimension_peak.max() < found.attrs["threshold"] == default_threshold(128) == 5.0
    with pytest.raises(ValueError, match="video sinks: no sample has any: no video token exceeds 5 in an outlier"):
        select_sinks(found, "video")


def test_the_default_threshold_is_the_published_one_at_its_width():
    assert default_threshold(3584) == 25
    assert default_threshold(2048) == pytest.approx(25 * (2048 / 3584) ** 0.5)
    assert all(default_threshold(d) < d**0.5 for d in (32, 64, 128, 1024))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 8.0}, "at least 1 and less than 8, the largest |RMSNorm| possible at width 64, got 8"),
        ({"threshold": float("nan")}, "got nan"),
        ({"threshold": 0.0}, "got 0"),
        ({"dimensions": [64]}, r"within 0:64, got \[64\]"),
        ({"dimensions": []}, "within 0:64"),
        ({"modalities": ("video", "video")}, "expected two of text, audio, video, image"),
        ({"modalities": ("video", "sound")}, "expected two of text, audio, video, image"),
        ({"compat": "publshed"}, "compat: expected None or 'published'"),
        ({"prompts": {}}, "expected at least one"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(model, prompts, monkeypatch, changes: dict, message: str):
    monkeypatch.setattr("avjax.analysis.sinks._read", lambda *a, **k: pytest.fail("something was computed"))
    options = {"prompts": prompts, "progress": False} | changes
    with pytest.raises(ValueError, match=message):
        find_sinks(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "sound"}, "expected a modality among"),
        ({"modality": "video", "kind": "both"}, "kind 'uni' or 'cross'; got 'video' and 'both'"),
        ({"modality": "text", "kind": "uni"}, "or video or audio with kind"),
        ({"modality": "image"}, "image sinks: no sample has any"),
        ({"modality": "video", "uni_share": 1.0}, "uni_share within 0 to 1"),
        ({"modality": "video", "most": 0.0}, "most above 0"),
        ({"modality": "video", "min_layers": 0}, "min_layers of at least 1"),
        (
            {"modality": "video", "min_layers": 9},
            r"none of the \d+ video sinks is left after selection; see sink_layers and mds",
        ),
    ],
)
def test_what_cannot_be_selected_is_refused(found, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        select_sinks(found, **options)


def test_a_dataset_survives_a_file(found, tmp_path: Path):
    xr = pytest.importorskip("xarray")
    found.to_netcdf(tmp_path / "sinks.nc")
    back = xr.load_dataset(tmp_path / "sinks.nc")
    assert select_sinks(back, "video", "cross") == select_sinks(found, "video", "cross")


def test_no_residual_of_all_layers_is_kept():
    """Of a full-size model: the program's results and temporaries, by XLA's own account."""
    config, size = read_config(HUB_OMNI), 3264
    shapes = {"embeddings": (size, config.decoder.embed_dim), "positions": (3, size), "groups": (size,)}
    arrays = {name: jax.ShapeDtypeStruct(s, np.int32) for name, s in shapes.items()}
    arrays["embeddings"] = jax.ShapeDtypeStruct(shapes["embeddings"], np.float32)
    scalar = jax.ShapeDtypeStruct((), np.int32)
    inputs = Inputs(**arrays, generated_group=scalar, length=scalar, num_groups=3)
    members = jax.ShapeDtypeStruct((2, 3), np.float32)
    decoder = abstract_network(config, "float32").decoder
    analysis = sinks._read.lower(decoder, inputs, members, most=6).compile().memory_analysis()
    # A CPU copies one layer's parameters as it walks them, in any forward pass.
    layer = sum(leaf.size for leaf in jax.tree.leaves(decoder.layers)) / config.decoder.num_layers
    residuals = config.decoder.num_layers * size * config.decoder.embed_dim
    assert analysis.output_size_in_bytes + analysis.temp_size_in_bytes < 4 * (layer + residuals / 3)
