"""Captions of videos in Qwen2.5-VL: by the rule that the weights were trained with, HF is given our positions; by the
other one it counts for itself, also while it decodes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import avjax
from tests.engine.knockout_oracle import hf_batch
from tests.tiny_hf import TinyCheckpoint

NEW_TOKENS = 8
TOLERANCE = 1e-4  # on logits, float32


@pytest.mark.parametrize("order", ["media-first", "text-first"])
@pytest.mark.parametrize("rule", ["trained", "transformers-5.3"])
def test_captions(vl: TinyCheckpoint, vl_model: avjax.Model, clip: Path, rule: str, order: str):
    sizes = {"max_pixels": 56 * 84, "min_pixels": 28 * 28, "fps": 4.0}
    prompt = vl_model.prompt("What is there?", video=clip, order=order, positions=rule, **sizes)
    batch = hf_batch(vl.torch_model.config, prompt)
    own, _ = vl.torch_model.model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        None,
        batch["video_grid_thw"],
        batch["second_per_grid_ts"],
        attention_mask=batch["attention_mask"],
    )
    counts_as_here = np.array_equal(own[:, 0].numpy(), prompt.positions)
    if rule == "trained":
        assert not counts_as_here, "the rules must differ on this clip"
        batch["position_ids"] = torch.tensor(prompt.positions[:, None].astype(np.int64))
    elif not counts_as_here:
        pytest.skip("this version of transformers counts by another rule")
    expected = vl.torch_model.generate(
        **batch, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    got = avjax.generate(vl_model, prompt, max_new_tokens=NEW_TOKENS)
    np.testing.assert_array_equal(got.tokens, expected.sequences[0, len(prompt) :].numpy())
    assert np.abs(got.logits - torch.cat(expected.logits).numpy()).max() <= TOLERANCE
