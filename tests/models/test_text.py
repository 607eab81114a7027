"""Text-only parity of the whole model with Hugging Face, over the decoder's variants."""

from pathlib import Path

import numpy as np
import pytest
import torch

import avjax
from tests.tiny_hf import write_checkpoint

VARIANTS = {
    "mha": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "gqa": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "mqa": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "eps": {"rms_norm_eps": 1e-3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0, "mrope_section": [4, 1, 3]}},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen2_5_vl"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_hf(name: str, tied: bool, family: str, tmp_path: Path):
    tiny = write_checkpoint(
        tmp_path / "checkpoint",
        family,
        text_config={**VARIANTS[name], "num_hidden_layers": 3},
        tie_word_embeddings=tied,
    )
    token_ids = np.random.default_rng(0).integers(0, tiny.ids["endoftext"], 200)[None]
    model = avjax.load(tiny.directory)
    expected = tiny.torch_model(
        input_ids=torch.tensor(token_ids), attention_mask=torch.ones_like(torch.tensor(token_ids))
    ).logits[0]
    got = avjax.run(model, model.prompt_from_hf({"input_ids": token_ids}), at="all").logits
    assert np.abs(np.asarray(got) - expected.numpy()).max() <= 1e-4
    assert expected.std() > 0.5, "the random model must not be flat"
