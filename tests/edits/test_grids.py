"""Grids: which cells they span, what they are called, and what is refused."""

import numpy as np
import pytest

import avjax
from avjax.edits.grids import as_cells
from avjax.metrics import Logits, LogLikelihood, Prob

D = 64


@pytest.fixture(scope="module")
def prompt(omni_model) -> avjax.Prompt:
    rng = np.random.default_rng(0)
    types = ["text"] * 4 + ["audio", "video"] * 4 + ["text"] * 4
    return omni_model.prompt_from_embeddings(rng.normal(size=(16, D)), np.tile(np.arange(16), (3, 1)), types)


@pytest.mark.exhaustive
def test_axes_become_dimensions(omni_model, prompt):
    grid = avjax.grid(
        avjax.ScaleAttention(
            query=avjax.axis("query", ["last", "text"]),
            key=avjax.axis("key", ["audio", "video", "text"], labels=["sound", "picture", "words"]),
            factor=avjax.axis("factor", [0.0, 2.0]),
            layers=[1, 2],
        ),
        "all->[0]@3",
    )
    vocab = range(omni_model.config.decoder.vocab_size)
    prompts = {"a": prompt, "b": prompt}
    got = avjax.sweep(omni_model, prompts, grid, Logits(vocab), progress=False)
    assert got["logits"].dims == ("query", "key", "factor", "sample", "token")
    assert got["logits_clean"].dims == ("sample", "token")
    assert got["key"].values.tolist() == ["sound", "picture", "words"]
    assert got["factor"].values.tolist() == [0.0, 2.0]
    assert got["sample"].values.tolist() == ["a", "b"]
    assert got["cell"].sel(query="text", key="sound", factor=2.0).item() == "text->audio*2@1:3; all->[0]@3"
    for at in ({"query": "last", "key": "picture", "factor": 2.0}, {"query": "text", "key": "words", "factor": 0.0}):
        key = {"picture": "video", "words": "text"}[at["key"]]
        rule = f"{at['query']}->{key}*{at['factor']:g}@1:3"
        expected = avjax.run(omni_model, prompt, rule, "all->[0]@3")
        for sample in prompts:
            found = got["logits"].sel({**at, "sample": sample}).values
            np.testing.assert_allclose(found, expected.logits[0], atol=1e-5)
            assert got["edges"].sel({**at, "sample": sample}).item() == expected.touched.edges


@pytest.mark.parametrize(
    ("width", "stride", "placement", "expected"),
    [
        (3, 1, "trailing", ["0:1", "0:2", "0:3", "1:4", "2:5", "3:6", "4:7", "5:8"]),
        (3, 1, "leading", ["0:3", "1:4", "2:5", "3:6", "4:7", "5:8", "6:8", "7:8"]),
        (3, 1, "centred", ["0:2", "0:3", "1:4", "2:5", "3:6", "4:7", "5:8", "6:8"]),
        (4, 2, "centred", ["0:2", "0:4", "2:6", "4:8"]),
        (1, 3, "trailing", ["0:1", "3:4", "6:7"]),
        (20, 4, "leading", ["0:8", "4:8"]),
    ],
)
def test_windows(omni_model, width: int, stride: int, placement, expected: list[str]):
    windows = avjax.windows(width, stride=stride, placement=placement)
    cells = as_cells(avjax.grid(avjax.Knockout(query="last", key="text", layers=windows)), omni_model.config.decoder)
    assert cells.dims == ("layers",)
    assert cells.coordinates["layers"] == tuple(range(0, 8, stride))
    assert list(cells.notes["layers_window"][1]) == expected
    for cell, window in zip(cells.cells, expected, strict=True):
        assert cell.edits[0].layers == tuple(range(*map(int, window.split(":"))))


@pytest.mark.parametrize(("site", "count"), [("z", 4), ("value", 2)])
def test_each_head(omni_model, site: str, count: int):
    grid = avjax.grid(avjax.Ablate("last", "zero", site=site, layers=avjax.each_layer(), heads=avjax.each_head()))
    cells = as_cells(grid, omni_model.config.decoder)
    assert cells.shape == (8, count)
    assert [c.edits[0].heads for c in cells.cells[: count + 1]] == [*((h,) for h in range(count)), (0,)]
    assert [c.edits[0].layers for c in cells.cells[::count]] == [(i,) for i in range(8)]
    edges = avjax.grid(avjax.Knockout(query="last", key="text", heads=avjax.each_head("h")))
    assert as_cells(edges, omni_model.config.decoder).shape == (4,)


def test_each_head_needs_a_site_with_heads(omni_model):
    with pytest.raises(ValueError, match="head"):
        as_cells(avjax.grid(avjax.Scale("last", 2.0, heads=avjax.each_head())), omni_model.config.decoder)


def test_names_of_variants(omni_model, prompt):
    vector = np.ones(D, np.float32)
    variants = [[], "last->audio@0:2#h1", [avjax.Scale("audio", 0.5), avjax.Steer("last", vector, 2.0)], []]
    cells = as_cells(variants, omni_model.config.decoder)
    assert cells.dims == ("variant",)
    assert cells.coordinates["variant"] == (
        "clean (1)",
        "last->audio@0:2#h1",
        "audio*0.5 at embed; last+2 vector at resid_post",
        "clean (2)",
    )
    got = avjax.sweep(omni_model, prompt, "last->audio@0:2#h1", Prob(3), progress=False)
    assert got["cell"].values.item() == "last->audio@0:2#h1"


def test_labels_tell_ranges_apart(omni_model):
    spans = [range(0, 8), range(0, 8, 2), [1, 5], range(3, 5)]
    cells = as_cells(
        avjax.grid(avjax.Knockout(query="last", key="text", layers=avjax.axis("layers", spans))),
        omni_model.config.decoder,
    )
    assert len(set(cells.coordinates["layers"])) == 4
    assert [c.edits[0].layers for c in cells.cells] == [tuple(range(8)), (0, 2, 4, 6), (1, 5), (3, 4)]


def test_grids_are_refused(omni_model):
    key = avjax.axis("key", ["audio", "video"])
    with pytest.raises(ValueError, match="'key' is used twice"):
        avjax.grid(avjax.Knockout(query=key, key=key))
    with pytest.raises(ValueError, match="at least one edit"):
        avjax.grid()
    with pytest.raises(ValueError, match="at least one variant"):
        as_cells([], omni_model.config.decoder)
    with pytest.raises(ValueError, match="at least one value"):
        avjax.axis("key", [])
    with pytest.raises(ValueError, match="2 different labels"):
        avjax.axis("key", ["audio", "video"], labels=["a", "a"])
    with pytest.raises(ValueError, match="'sample' is reserved for another dimension"):
        avjax.grid(avjax.Knockout(query="last", key=avjax.axis("sample", ["audio"])))
    with pytest.raises(ValueError, match="width and stride"):
        avjax.windows(0)
    with pytest.raises(ValueError, match="expected variants without axes, got an axis in a list of variants"):
        as_cells([avjax.Knockout(query="last", key=key)], omni_model.config.decoder)


NAN = float("nan")
OTHER = np.zeros((8, 16, D), np.float32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: avjax.ScaleAttention(query="last", key="audio", factor=NAN), "finite factor"),
        (lambda: avjax.ScaleAttention(query="last", key="audio", factor=-1), "0 or within 1e-6 to 1e6"),
        (lambda: avjax.Scale("audio", float("inf")), "finite factor"),
        (lambda: avjax.Steer("audio", np.full(D, NAN)), "finite vector"),
        (lambda: avjax.Steer("audio", np.ones(D + 1)), r"expected a vector \[64\]"),
        (lambda: avjax.Knockout(query="last", key="audio", layers=[8]), "layers within 0:8"),
        (lambda: avjax.Knockout(query="last", key="audio", heads=[-1]), "heads within 0:4"),
        (lambda: avjax.Scale("audio", 2, site="value", heads=[2]), "heads within 0:2"),
        (lambda: avjax.Knockout(query="last", key="audio", layers=[]), "empty"),
        (lambda: avjax.Knockout(query="last", key="image"), "no image tokens"),
        (lambda: avjax.Knockout(query="[0:17]", key="audio"), "within 0:16"),
        (lambda: avjax.Knockout(query="last", key="sound"), "unknown token type"),
        (lambda: avjax.Knockout(query="[0:4]", key="video"), "causal attention has no such edge"),
        (lambda: avjax.Scale("audio", 2, site="pattern"), "captured, not edited"),
        (lambda: avjax.Scale("audio", 2, site="resid_pre", heads=[0]), "has no heads"),
        (lambda: avjax.Patch("audio", OTHER[..., :-1]), r"\[64\] at each position"),
        (lambda: avjax.Patch("audio", OTHER[:7]), "source of 8 layers"),
        (lambda: avjax.Patch("audio", OTHER[:, :5]), "16 positions.*or 4"),
        (lambda: avjax.Patch("audio", OTHER + NAN), "finite source"),
        (lambda: avjax.Patch("audio | generated", OTHER), "no activations for generated tokens"),
    ],
)
def test_edits_are_refused_before_anything_runs(omni_model, prompt, make, message: str, monkeypatch):
    def ran(*args, **kwargs):
        raise AssertionError("it must be refused before anything runs")

    monkeypatch.setattr("avjax.engine.session.clean_pass", ran)
    monkeypatch.setattr("avjax.engine.session.replay", ran)
    with pytest.raises(ValueError, match=message):
        avjax.sweep(omni_model, prompt, [[], [make()]], [LogLikelihood([3, 4])], progress=False)


def test_patches_of_prompts_that_cannot_be_aligned(omni_model, prompt):
    types = ["text"] * 4 + ["audio", "video"] * 3 + ["text"] * 6
    there = omni_model.prompt_from_embeddings(np.ones((16, D)), np.tile(np.arange(16), (3, 1)), types)
    source = avjax.run(omni_model, there, capture=["resid_post"])
    with pytest.raises(ValueError, match=r"cannot be aligned: audio has 4 .* 3 in the source"):
        avjax.run(omni_model, prompt, avjax.Patch("audio", source))
    with pytest.raises(ValueError, match="has not captured z"):
        avjax.run(omni_model, prompt, avjax.Patch("text", source, site="z"))


@pytest.mark.exhaustive
def test_patches_align_by_order_within_a_modality(omni_model, prompt):
    """The n-th audio token there replaces the n-th here, wherever both stand."""
    rng = np.random.default_rng(1)
    types = ["audio"] * 4 + ["text"] * 9 + ["video"] * 4
    there = omni_model.prompt_from_embeddings(rng.normal(size=(17, D)), np.tile(np.arange(17), (3, 1)), types)
    source = avjax.run(omni_model, there, capture=["resid_mid"])
    got = avjax.run(omni_model, prompt, avjax.Patch("audio | video", source, site="resid_mid"), capture=["resid_mid"])
    held, here = np.asarray(source.captures["resid_mid"]), np.asarray(got.captures["resid_mid"])
    np.testing.assert_array_equal(here[:, 4:12:2], held[:, :4])
    np.testing.assert_array_equal(here[:, 5:12:2], held[:, 13:])


@pytest.mark.parametrize("name", ["prob", "prob_clean", "token", "edges", "cell"])
def test_an_axis_named_like_a_part_of_the_dataset_is_refused(omni_model: avjax.Model, name: str):
    prompt = omni_model.prompt_from_embeddings(np.zeros((4, 64)), np.zeros((3, 4), int), ["text"] * 4)
    grid = avjax.grid(avjax.Scale("last", avjax.axis(name, [0.5, 2.0])))
    with pytest.raises(ValueError, match=f"the axis name '{name}' is also .*; pass another name="):
        avjax.sweep(omni_model, prompt, grid, [avjax.metrics.Prob(3), avjax.metrics.Logits([1])], progress=False)
