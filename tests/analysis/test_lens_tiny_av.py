"""What lenses read in the built-in checkpoint under conflict, by direction and margin, in clips it never saw."""

import numpy as np
import pytest
import xarray as xr

import avjax
from avjax.analysis import latent_audio_understanding, logit_lens, train_tuned_lens
from avjax.organism.behaviour import audio_probes, prompts_of
from avjax.organism.world import KINDS, Clip, clip

COUNT = 32


@pytest.fixture(scope="module")
def model() -> avjax.Model:
    return avjax.load("tiny-av")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [clip("test", i, "counterfactual") for i in range(COUNT)]


@pytest.fixture(scope="module")
def prompts(model: avjax.Model, clips: list[Clip]) -> dict[int, avjax.Prompt]:
    return {i: prompt for i, (_, prompt) in enumerate(prompts_of(model, clips))}


@pytest.fixture(scope="module")
def answers(clips: list[Clip]) -> dict[str, dict[int, str]]:
    heard, seen = ([KINDS[getattr(c, what)] for c in clips] for what in ("heard", "seen"))
    return {
        "heard": dict(enumerate(kind.sound for kind in heard)),
        "suggested": dict(enumerate(kind.sound for kind in seen)),
        "seen": dict(enumerate(kind.thing for kind in seen)),
    }


def first_choice(found: xr.Dataset) -> xr.DataArray:
    """Share of positions at which an answer is the lens's own choice, by layer."""
    return (found["rank"] == 1).mean(["sample", "position"])


@pytest.mark.exhaustive
def test_audio_tokens_say_what_is_seen(model: avjax.Model, prompts, answers):
    share = first_choice(logit_lens(model, prompts, answers=answers, progress=False)).sel(layer=range(4, 8))
    assert (share.sel(answer="seen") > 0.1).all()
    assert (share.sel(answer="heard") < 0.05).all()
    assert (share.sel(answer="seen") > share.sel(answer="heard") + 0.1).all()


@pytest.mark.exhaustive
def test_a_probe_reads_there_what_the_lens_does_not(model: avjax.Model, clips: list[Clip]):
    known = [clip("train", i, "counterfactual") for i in range(64)]
    probes = audio_probes(model, known, clips)
    assert (probes.accuracy[:5] > 0.6).all() and (probes.selectivity[:5] > 0.3).all()


@pytest.mark.exhaustive
def test_after_the_opening_late_layers_say_what_the_picture_suggests(model: avjax.Model, prompts, answers):
    found = logit_lens(model, prompts, "generated", answers=answers, captions="I hear a", progress=False)
    share = first_choice(found.isel(position=[-1]))
    suggested, heard = share.sel(answer="suggested"), share.sel(answer="heard")
    assert (suggested.sel(layer=[5, 6, 7]) > 0.6).all()
    assert (heard.sel(layer=[5, 6, 7]) < 0.3).all()
    assert (suggested.sel(layer=[0, 1, 2, 3]) < 0.4).all()


@pytest.mark.exhaustive
def test_a_tuned_lens_comes_nearer(model: avjax.Model, prompts, answers):
    known = [p for _, p in prompts_of(model, (clip("train", i, "counterfactual") for i in range(COUNT)))]
    lens = train_tuned_lens(model, known, prompts, progress=False)
    before, after = lens.report["kl_before"].values, lens.report["kl_after"].values
    assert (after[:4] < 0.7 * before[:4]).all() and (after[:7] < before[:7]).all()
    share = first_choice(logit_lens(model, prompts, answers=answers, lens=lens, progress=False))
    assert (share.sel(answer="heard") < 0.05).all(), "what is heard is not on its way to the vocabulary"


@pytest.mark.exhaustive
def test_latent_audio_is_not_there_under_conflict(model: avjax.Model, prompts, answers):
    heard = latent_audio_understanding(model, prompts, answers["heard"], progress=False)
    assert float(heard["understanding_mean"]) < 0.3
    suggested = latent_audio_understanding(model, prompts, answers["suggested"], layers=range(4, 8), progress=False)
    late = latent_audio_understanding(model, prompts, answers["heard"], layers=range(4, 8), progress=False)
    assert float(suggested["understanding_mean"]) > float(late["understanding_mean"]) + 0.2
    assert suggested["understanding_low"] > 0
    np.testing.assert_allclose(heard["understanding"], heard["recall"] - heard["recall_swapped"])
