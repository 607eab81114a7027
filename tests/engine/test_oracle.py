"""The oracle itself: it must not pass for the wrong reason."""

from pathlib import Path

import numpy as np
import pytest
import torch

import avjax
from tests.engine.knockout_oracle import Oracle, Rule
from tests.tiny_hf import TinyCheckpoint

ALL_LAYERS = tuple(range(8))


@pytest.fixture(scope="module")
def prompt(omni_model: avjax.Model, clip: Path) -> avjax.Prompt:
    return omni_model.prompt("What is it?", video=clip, audio="from_video", max_pixels=56 * 84, min_pixels=28 * 28)


@pytest.fixture
def oracle(omni: TinyCheckpoint, prompt: avjax.Prompt) -> Oracle:
    return Oracle(omni.torch_model, prompt)


def test_no_rules_is_the_model_itself(oracle: Oracle):
    expected = oracle.model(**oracle.batch).logits[0].numpy()
    np.testing.assert_array_equal(oracle.prefill(()), expected)
    assert not oracle.model.model.language_model.layers[0].self_attn._forward_pre_hooks, "hooks must be removed"


def test_a_missing_mask_is_an_error(oracle: Oracle, monkeypatch: pytest.MonkeyPatch):
    """The published hook does nothing then, silently. SDPA drops the mask of a plain causal prompt."""
    config = oracle.model.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "sdpa")
    with pytest.raises(RuntimeError, match="no additive attention mask"):
        oracle.prefill([Rule("query_text", "video", ALL_LAYERS)])


def test_an_unknown_type_is_an_error(oracle: Oracle):
    with pytest.raises(ValueError, match="vidoe"):
        oracle.prefill([Rule("query_text", "vidoe", ALL_LAYERS)])


def test_weights_under_both_semantics(oracle: Oracle):
    """Text before the media attends uniformly to the whole prompt, or not at all; later text attends to the media."""
    rules = [Rule("query_text", "query_text", (2,), (1,))]
    text = oracle.members("query_text", oracle.prompt_length)
    first, last = 0, oracle.prompt_length - 1
    seen = {}

    def attention(module, args, output):
        seen["weights"] = output[1][0]  # [heads, query, key]

    def output(module, args):
        seen["z"] = args[0][0].view(oracle.prompt_length, oracle.num_heads, -1)

    layer = oracle.layers[2].self_attn
    for zero_rows in (False, True):
        with oracle._hooked(rules, zero_rows):  # ours come after the oracle's
            hooks = layer.register_forward_hook(attention), layer.o_proj.register_forward_pre_hook(output)
            oracle.model(**oracle.batch)
            for hook in hooks:
                hook.remove()
        weights, z = seen["weights"], seen["z"]
        torch.testing.assert_close(weights[1, first], torch.full_like(weights[1, first], 1 / oracle.prompt_length))
        assert weights[1, last, text].sum() == 0 and weights[1, last, ~text].sum() > 0.99
        assert weights[0, last, text].sum() > 0 and weights[0, first, first] == 1
        assert bool((z[first, 1] == 0).all()) == zero_rows
        assert z[first, 0].abs().sum() > 0 and z[last, 1].abs().sum() > 0


def test_positions_are_the_prompt_s(oracle: Oracle, prompt: avjax.Prompt):
    batch = oracle.batch
    positions, deltas = oracle.model.get_rope_index(
        batch["input_ids"],
        video_grid_thw=batch["video_grid_thw"],
        attention_mask=batch["attention_mask"],
        use_audio_in_video=True,
        audio_seqlens=batch["feature_attention_mask"].sum(-1),
        second_per_grids=batch["video_second_per_grid"],
    )
    np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.next_position() == len(prompt) + int(deltas)
