"""What Hugging Face's own forward pass, with eager attention, says of a prompt with media and the tokens after it."""

import dataclasses
from typing import Any

import numpy as np
import torch

import avjax
from converters.verify import hf_batch, media_prompt
from tests.models.test_media_logits import sound, video
from tests.tiny_hf import TinyCheckpoint


@dataclasses.dataclass(frozen=True)
class Readings:
    """float64, of one prompt."""

    pattern: np.ndarray  # L N T T
    value_norm: np.ndarray  # L N T, of each query head's values
    hidden: np.ndarray  # L T D, what each layer is fed


def media(model: avjax.Model, frames: int = 10, seconds: float = 5.0) -> avjax.Prompt:
    """Frames and sound in one stream: video and audio tokens take turns."""
    return media_prompt(model, videos=(video(model, frames),), audio=(sound(model, seconds),), audio_in_video=True)


def readings(tiny: TinyCheckpoint, model: avjax.Model, prompt: avjax.Prompt, tokens: Any = ()) -> Readings:
    """Of a prompt with `tokens` after it; positions and the towers are HF's."""
    whole = prompt.continued(np.asarray(tokens, np.int32))
    text = tiny.torch_model.model.language_model
    config = tiny.torch_model.config.get_text_config()
    seen: list[torch.Tensor] = []
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, out: seen.append(out[0]))
        for layer in text.layers
    ]
    try:
        out = tiny.torch_model(**hf_batch(whole, model), output_attentions=True, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    values = torch.stack(seen).reshape(len(seen), len(whole), config.num_key_value_heads, -1)
    norms = values.double().norm(dim=-1).permute(0, 2, 1)
    norms = norms.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, dim=1)
    return Readings(
        pattern=torch.stack([a[0] for a in out.attentions]).double().numpy(),
        value_norm=norms.numpy(),
        hidden=torch.stack([h[0] for h in out.hidden_states[: len(seen)]]).double().numpy(),
    )
