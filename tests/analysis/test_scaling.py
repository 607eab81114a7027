"""Modality scaling: against single edits, its neutral point, and the dose on tiny-av."""

import numpy as np
import pytest

import avjax
from avjax.analysis import scale_modalities
from avjax.metrics import LogProb
from avjax.organism.conflict import Conflict


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["embed", "value", "attention"])
def test_cells_are_single_edits(omni_model: avjax.Model, prompt: avjax.Prompt, what):
    width = None if what == "embed" else 2
    found = scale_modalities(
        omni_model, prompt, LogProb([5]), what=what, factors=[0, 1, 2], width=width, placement="leading", progress=False
    )
    layers = None if width is None else range(1, 3)
    if what == "attention":
        edit = avjax.ScaleAttention(query="answer", key="audio", factor=2.0, layers=layers)
    else:
        edit = avjax.Scale("audio", factor=2.0, site=what, layers=layers)
    one = avjax.sweep(omni_model, prompt, edit, LogProb([5]), progress=False)
    cell = found["log_prob"].sel(modality="audio", factor=2.0)
    cell = cell if width is None else cell.sel(layers=1)
    np.testing.assert_allclose(cell, one["log_prob"][0], atol=1e-6)
    assert abs(cell - found["log_prob_clean"]).item() > 1e-5
    neutral = found["log_prob"].sel(factor=1.0)
    np.testing.assert_allclose(neutral, found["log_prob_clean"].broadcast_like(neutral), atol=1e-5)


def test_refusals(omni_model: avjax.Model, prompt: avjax.Prompt):
    with pytest.raises(ValueError, match="embeddings have no layers"):
        scale_modalities(omni_model, prompt, LogProb([5]), what="embed", width=2)
    with pytest.raises(ValueError, match="expected what= to be embed, value or attention"):
        scale_modalities(omni_model, prompt, LogProb([5]), what="pattern")  # pyright: ignore[reportArgumentType]


@pytest.mark.exhaustive
def test_less_picture_is_more_sound(tiny_av: avjax.Model, clashing: Conflict):
    """The dose-response curve of the picture falls, that of the sound rises."""
    found = scale_modalities(tiny_av, clashing.prompts, clashing.metrics, factors=[0.25, 1, 4], progress=False)
    mean = found["logit_diff"].mean("sample")
    video, audio = (mean.sel(modality=m).values for m in ("video", "audio"))
    assert (np.diff(video) < -0.2).all() and (np.diff(audio) > 0.2).all()
    assert video[0] - video[-1] > 1.5
