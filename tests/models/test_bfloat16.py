"""bfloat16 computation against Hugging Face's own bfloat16."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import avjax
from tests.tiny_hf import write_checkpoint

NUM_TOKENS = 160
NUM_PROMPTS = 4


def test_top_1_agrees_with_hf(tmp_path: Path):
    """At 99% of the positions where HF's own float32 and bfloat16 agree on the most likely token."""
    tiny = write_checkpoint(tmp_path / "checkpoint", "qwen2_5_omni")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, tiny.ids["endoftext"], NUM_TOKENS)[None] for _ in range(NUM_PROMPTS)]

    def hf_top_1(torch_model: Any) -> np.ndarray:
        outputs = [
            torch_model(input_ids=torch.tensor(ids), attention_mask=torch.ones(1, NUM_TOKENS)).logits[0]
            for ids in prompts
        ]
        return torch.cat(outputs).float().argmax(-1).numpy()

    exact, rounded = hf_top_1(tiny.torch_model), hf_top_1(tiny.in_bfloat16())

    model = avjax.load(tiny.directory, dtype="bfloat16")
    assert str(model.dtype) == "bfloat16"
    logits = [avjax.run(model, model.prompt_from_hf({"input_ids": ids}), at="all").logits for ids in prompts]
    ours = np.concatenate([np.asarray(x) for x in logits]).argmax(-1)

    agreed = exact == rounded
    assert agreed.mean() > 0.8, "the random model must be decided enough to compare"
    assert (ours == rounded)[agreed].mean() >= 0.99
