"""bfloat16 computation against Hugging Face's own bfloat16."""

from pathlib import Path

import numpy as np
import pytest

import avjax
from converters.verify import hf_batch
from tests.models.test_media_logits import AUDIO_CASES, CASES
from tests.tiny_hf import write_checkpoint

ALL_CASES = {"qwen2_5_omni": {**CASES, **AUDIO_CASES}, "qwen2_5_vl": CASES}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ALL_CASES)
def test_top_1_agrees_with_hf(family: str, tmp_path: Path):
    """At 99% of the positions where HF's own float32 and bfloat16 agree on the most likely token, media included."""
    tiny = write_checkpoint(tmp_path / "checkpoint", family)
    rounded = tiny.in_bfloat16()
    model = avjax.load(tiny.directory, dtype="bfloat16")
    assert str(model.dtype) == "bfloat16"
    agreed, ours = [], []
    for make in ALL_CASES[family].values():
        prompt = make(model)
        batch = hf_batch(prompt, model)
        exact, theirs = (m(**batch).logits[0].float().numpy().argmax(-1) for m in (tiny.torch_model, rounded))
        agreed.append(exact == theirs)
        ours.append(np.asarray(avjax.run(model, prompt, at="all").logits).argmax(-1) == theirs)
    agreed, ours = np.concatenate(agreed), np.concatenate(ours)
    assert agreed.mean() > 0.8, "the random model must be decided enough to compare"
    assert agreed.sum() > 250
    assert ours[agreed].mean() >= 0.99
