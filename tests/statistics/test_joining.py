"""What is cut into samples, blocks or calls says the same as one sweep: counts, reasons and noise floors too."""

import csv
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis import edge_sufficiency, sweep_samples
from avjax.runs import sweep as sweeping
from avjax.runs.captures import Captured
from avjax.runs.export import export
from avjax.runs.store import Store

RULES = ["answer->[0:3]", "last->[0:3]", "generated->[0:3]"]
SETTINGS: dict[str, Any] = {"allow_noop": True, "progress": False}


@dataclasses.dataclass(frozen=True)
class Favourite(metrics.Metric):
    name: str = "favourite"

    def __call__(self, view: metrics.View) -> jax.Array:
        return view.logits[3] > 0


@dataclasses.dataclass(frozen=True)
class Pair(metrics.Metric):
    name: str = "pair"
    dims: ClassVar[tuple[str, ...]] = ("noise",)

    def __call__(self, view: metrics.View) -> jax.Array:
        return view.logits[:2]


@pytest.fixture(scope="module")
def model() -> avjax.Model:
    return avjax.load("tiny-av")


@pytest.fixture(scope="module")
def prompts(model) -> dict[str, avjax.Prompt]:
    rng = np.random.default_rng(0)
    return {f"s{i}": model.prompt_from_hf({"input_ids": rng.integers(0, 300, 16)[None]}) for i in range(6)}


@pytest.mark.exhaustive
def test_samples_with_words_of_other_lengths(model, prompts):
    """Each metric's counts are there for every sample."""
    words = [("xylophone", "I"), ("I", "a")]
    named = dict(list(prompts.items())[:2])
    asked = {
        n: [metrics.Prob(w, name=f"p{i}") for i, w in enumerate(pair)] for n, pair in zip(named, words, strict=True)
    }
    data = sweep_samples(model, named, RULES[:2], asked, **SETTINGS)
    for name, prompt in named.items():
        alone = avjax.sweep(model, {name: prompt}, RULES[:2], asked[name], **SETTINGS)
        for metric in ("p0", "p1"):
            counts = alone[f"{metric}_edges"] if f"{metric}_edges" in alone else alone["edges"]
            np.testing.assert_array_equal(data[f"{metric}_edges"].sel(sample=name), counts.isel(sample=0))
    assert data["p0_floor"].shape == () and data["p0_floor"].attrs["draws"] == 2


@pytest.mark.exhaustive
def test_blocks_keep_counts_reasons_and_floors(model, prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where only one block has cells that cannot be reached."""
    asked = [metrics.Prob(5), metrics.LogLikelihood((4, 9, 7)), Pair()]
    whole = avjax.sweep(model, prompts, RULES, asked, **SETTINGS)
    monkeypatch.setattr(sweeping, "CELLS_PER_BLOCK", 1)
    cut = avjax.sweep(model, prompts, RULES, asked, store=tmp_path / "run", **SETTINGS)
    assert cut.prob.attrs["missing"] == whole.prob.attrs["missing"] and cut.pair.dims == whole.pair.dims
    np.testing.assert_array_equal(np.isnan(cut.prob), np.isnan(whole.prob))
    for name in ("prob_edges", "log_likelihood_edges", "edges"):
        np.testing.assert_array_equal(cut[name], whole[name])
    np.testing.assert_allclose(cut.prob_floor, whole.prob_floor, rtol=0.5)
    out = tmp_path / "rows.csv"
    export(Store(tmp_path / "run"), out)
    rows = [*csv.DictReader(out.open())]
    assert {float(row["prob_floor"]) for row in rows} == {float(cut.prob_floor)}
    edges = [int(row["prob_edges"]) for row in rows if row["cell"] == RULES[0]]
    assert edges == cut.prob_edges.sel(variant=RULES[0]).values.tolist()


def test_what_cannot_be_missing_is_refused(model, prompts):
    with pytest.raises(ValueError, match=r"'favourite': expected floats, which can be missing.*got bool"):
        avjax.sweep(model, prompts, RULES, [Favourite(), metrics.LogLikelihood((4, 9))], **SETTINGS)
    assert avjax.sweep(model, prompts, RULES[0], Favourite(), progress=False).favourite.dtype == bool


@pytest.mark.exhaustive
def test_the_neutral_point_of_an_axis_is_planned_and_captured(model, prompts):
    grid = avjax.grid(avjax.Scale("all", factor=avjax.axis("factor", [0.5, 1.0]), site="embed"))
    prompt = prompts["s0"]
    assert avjax.plan(model, prompt, grid, metrics.Prob(5), floor=False, calibrate=False).cells == 2
    cells = grid.cells(model.config.decoder).cells
    seen = Captured(sites=("resid_post",), at="last").of(
        model, prompt, [(i, cell.name, cell.edits) for i, cell in enumerate(cells)]
    )
    clean = avjax.run(model, prompt, capture=["resid_post"]).captures["resid_post"][:, -1:]
    np.testing.assert_allclose(seen.resid_post.isel(cell_index=1), clean, atol=1e-5)


@pytest.mark.exhaustive
def test_pathways_have_intervals_floors_and_the_edges_of_whole_words(model, prompts):
    typed = {
        name: model.prompt_from_embeddings(
            np.random.default_rng(i).normal(size=(14, 128)),
            np.tile(np.arange(14), (3, 1)),
            ["audio"] * 6 + ["text"] * 8,
        )
        for i, name in enumerate(prompts)
    }
    data = edge_sufficiency(
        model,
        typed,
        metrics.Prob("xylophone"),
        query="answer",
        pathways=["audio"],
        always="last",
        num_random=2,
        progress=False,
    )
    means = avjax.bootstrap(data)
    assert "prob_low" in means and data.prob_floor.shape == ()
    fed = max(len(model.encode_text(form)) - 1 for form in ("xylophone", " xylophone"))
    np.testing.assert_array_equal(data.kept_edges, 6 * (1 + fed))
    np.testing.assert_array_equal(
        data.kept_edges_random, np.broadcast_to(data.kept_edges, data.kept_edges_random.shape)
    )
