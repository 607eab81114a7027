"""A scaling by 1 counts nothing, whatever its kind; differences and devices are called what they are."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax.edits.edits import Edit
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.touched import count_touched
from avjax.metrics import Prob
from avjax.provenance import device_name

D, L, N, K = 64, 8, 4, 2
TYPES = ["text"] * 3 + ["audio"] * 3 + ["video"] * 3 + ["text"] * 2
VECTOR = np.ones(D, np.float32)
IDENTITIES: dict[str, Edit] = {
    "attention": avjax.ScaleAttention(query="answer", key="audio", factor=1.0),
    "attention, in float32": avjax.ScaleAttention(query="answer", key="audio", factor=1 + 1e-9, layers=[2]),
    "embeddings": avjax.Scale("audio", 1.0),
    "heads": avjax.Scale("audio", 1, site="z", layers=[3], heads=[0, 2]),
    "values": avjax.Scale("audio | video", 1 - 1e-12, site="value"),
    "steering": avjax.Steer("last", VECTOR, scale=0.0),
    "steering, in float32": avjax.Steer("last", VECTOR, scale=1e-60, layers=[1]),
    "a vector of zeros": avjax.Steer("last", 0 * VECTOR, scale=2.0),
    "noise": avjax.Ablate("audio", mode="noise", noise=0.0, site="resid_pre", layers=[1]),
}


@pytest.fixture(scope="module")
def tokens(omni_model: avjax.Model) -> avjax.Prompt:
    embeddings = np.random.default_rng(0).normal(size=(len(TYPES), D))
    return omni_model.prompt_from_embeddings(embeddings, np.tile(np.arange(len(TYPES)), (3, 1)), TYPES)


@pytest.mark.exhaustive
@pytest.mark.parametrize("edit", IDENTITIES.values(), ids=IDENTITIES)
def test_an_edit_written_to_change_nothing_is_refused(omni_model: avjax.Model, tokens: avjax.Prompt, edit: Edit):
    refused = pytest.raises(ValueError, match=r"touches nothing: .*pass allow_noop=True")
    with refused:
        avjax.run(omni_model, tokens, edit)
    with refused:
        avjax.generate(omni_model, tokens, edit, max_new_tokens=2)
    with refused:
        avjax.lower_edits(omni_model, tokens, edit)
    for grid in (edit, [[], edit], avjax.grid(edit, avjax.Scale("last", avjax.axis("by", [2.0])))):
        with refused:
            avjax.sweep(omni_model, tokens, grid, Prob([5]), progress=False)
    with refused:
        avjax.plan(omni_model, tokens, [edit], Prob([5]), calibrate=False)
    found = avjax.run(omni_model, tokens, edit, allow_noop=True)
    assert found.touched == avjax.run(omni_model, tokens).touched
    np.testing.assert_allclose(found.logits, avjax.run(omni_model, tokens).logits, atol=1e-5)


def test_rules_and_each_samples_edits_are_refused_too(omni_model: avjax.Model, tokens: avjax.Prompt):
    with pytest.raises(
        ValueError, match=r"rule answer->audio\*1@2:4 touches nothing: multiplying by 1 changes nothing"
    ):
        avjax.sweep(omni_model, tokens, "answer->audio*1@2:4", Prob([5]), progress=False)
    by_layer = avjax.ScaleAttention(query="answer", key="audio", factor=1.0, layers=avjax.each_layer())
    with pytest.raises(ValueError, match="touches nothing"):
        avjax.sweep(omni_model, tokens, by_layer, Prob([5]), progress=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "edit",
    [
        avjax.ScaleAttention(query="answer", key="audio", factor=avjax.axis("dose", [0.0, 1.0, 2.0])),
        avjax.Scale("audio", avjax.axis("dose", [0.0, 1.0, 2.0])),
        avjax.Scale("audio", avjax.axis("dose", [0.0, 1.0, 2.0]), site="value", layers=[1, 2]),
        avjax.Steer("last", VECTOR, scale=avjax.axis("dose", [-1.0, 0.0, 1.0]), layers=[5]),
    ],
    ids=str,
)
def test_the_neutral_dose_of_a_curve_is_kept_and_counts_nothing(
    omni_model: avjax.Model, tokens: avjax.Prompt, edit: Edit, tmp_path
):
    found = avjax.sweep(omni_model, tokens, edit, Prob([5]), progress=False)
    stored = avjax.sweep(omni_model, tokens, edit, Prob([5]), store=tmp_path / "run", progress=False)
    for one in (found, stored):
        touched = (one["edges"] + one["positions"]).values.ravel()
        assert touched[1] == 0 and touched[0] == touched[2] > 0
        np.testing.assert_allclose(one["prob"][1], one["prob_clean"], atol=1e-6)


scales = st.sampled_from([0.0, 0.5, 1.0, 2.0])
layers = st.sets(st.integers(0, L - 1), min_size=1, max_size=3).map(sorted)
where = st.sampled_from(["audio", "video", "last", "text", "all", "answer"])
edits = st.one_of(
    st.builds(avjax.Scale, where, scales, site=st.sampled_from(["resid_pre", "attn_out"]), layers=layers),
    st.builds(avjax.Scale, where, scales, site=st.just("z"), layers=layers, heads=st.just([1]) | st.just([1, 3])),
    st.builds(avjax.Steer, where, st.just(VECTOR), scales, site=st.just("attn_out"), layers=layers),
)


@settings(max_examples=80)
@given(several=st.lists(edits, min_size=1, max_size=4), decoded=st.integers(0, 2))
def test_positions_are_those_that_change(omni_model: avjax.Model, tokens: avjax.Prompt, several: list, decoded: int):
    """One by one: at each site, layer and position, whether some head's value would come out another."""
    config = omni_model.config.decoder
    lowered = lower(tokens, config, [several], num_decoded=decoded, allow_noop=True, clean=CleanRuns(omni_model))
    expected = 0
    masks = [avjax.prompts.selectors.select(tokens, e.where) for e in several]
    for site, layer in itertools.product({e.site for e in several}, range(L)):
        here = [(e, m) for e, m in zip(several, masks, strict=True) if e.site == site and layer in e.layers]
        for at in range(len(tokens) + 1):
            values = [3.0] * N  # of each head
            for edit, mask in here:
                for head in range(N) if mask[at] and edit.heads is None else edit.heads or () if mask[at] else ():
                    values[head] = (
                        values[head] * edit.factor if isinstance(edit, avjax.Scale) else values[head] + edit.scale
                    )
            if values != [3.0] * N:
                expected += decoded if at == len(tokens) else 1
    # 3 * 0.5 + 1.5 and the like cannot be told from 3: sums of drawn scales that come back to it are no law.
    if not any(isinstance(e, avjax.Steer) for e in several):
        assert count_touched(lowered, 0, decoded).positions == expected
    else:
        assert count_touched(lowered, 0, decoded).positions >= expected


def test_differences_do_not_say_that_they_are_clean(omni_model: avjax.Model, tokens: avjax.Prompt, tmp_path):
    edit = avjax.Knockout(query="answer", key=avjax.axis("key", ["audio", "video"]), layers=avjax.windows(4))
    prompts = {"a": tokens, "b": tokens}
    found = avjax.sweep(omni_model, prompts, edit, Prob([5]), progress=False)
    stored = avjax.sweep(omni_model, prompts, edit, Prob([5]), store=tmp_path / "run", progress=False)
    for one in (found, stored):
        assert one["prob_clean"].attrs["cell"] == "clean"
        for keep in (True, False, "default"):
            with xr.set_options(keep_attrs=keep):
                change = one["prob"] - one["prob_clean"]
                ratio = one["prob"] / one["prob_clean"]
                of_clean = one["prob_clean"] - one["prob"].isel(key=0)
            for array in (change, ratio, of_clean):
                assert array.attrs.get("cell") != "clean" or (keep is True and array is of_clean)
                assert array["cell"].dims and "clean" not in array["cell"].values.ravel().tolist()
        summary = avjax.bootstrap(one, draws=50)
        assert "cell" not in summary["prob_change"].attrs and summary["prob_change"].attrs["units"] == "probability"
        assert summary["prob_change"]["cell"].equals(one["cell"])
        relative = avjax.statistics.relative_change(one["prob"], one["prob_clean"])
        assert "cell" not in relative.attrs and relative["cell"].equals(one["cell"])


@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("cpu", "cpu", "cpu"),
        ("gpu", "NVIDIA H200", "gpu NVIDIA H200"),
        ("tpu", "TPU v5 lite", "TPU v5 lite"),
        ("tpu", "", "tpu"),
    ],
)
def test_a_device_is_named_once(platform: str, kind: str, name: str):
    assert device_name(platform, kind) == name


def test_a_dataset_names_its_device(omni_model: avjax.Model, tokens: avjax.Prompt):
    words = avjax.sweep(omni_model, tokens, "last->audio", Prob([5]), progress=False).attrs["device"].lower().split()
    assert len(words) == len(set(words))
