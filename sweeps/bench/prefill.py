"""Prefill of one prompt against Hugging Face, eager and sdpa, on the same random weights.

Command: `python -m sweeps.bench.prefill` (needs the test extra). About two minutes on two cores.
Expected on a CPU: avjax is not slower than the faster of the two (ratio at least 1).
The model: 12 layers, width 256, 8 heads over 2 kv heads, float32. Every method gives the final hidden states of all
positions and the key-value cache; encoders and logits are left out.
"""

import argparse
import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.engine.reference import prefill
from avjax.families.qwen2_5 import DECODER
from avjax.models.config import DecoderConfig
from avjax.models.decoder import Decoder
from avjax.models.intervention import Intervention
from avjax.models.parameters import fill, parameter_paths
from avjax.prompts.prompt import Inputs
from sweeps.bench.timing import hardware, interleave

CONFIG = DecoderConfig(
    num_layers=12,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    embed_dim=256,
    mlp_dim=1024,
    vocab_size=512,
    norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(4, 6, 6),
    tied_embeddings=True,
)


def torch_decoder(attention: str) -> Any:
    """HF's text model with seeded weights of the size of `CONFIG`."""
    import torch
    import transformers
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

    config = transformers.models.qwen2_5_omni.configuration_qwen2_5_omni.Qwen2_5OmniTextConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.embed_dim,
        intermediate_size=CONFIG.mlp_dim,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": CONFIG.rope_theta,
            "mrope_section": list(CONFIG.mrope_section),
        },
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    return Qwen2_5OmniThinkerTextModel(config).eval()


def jax_decoder(module: Any) -> Decoder:
    """The same weights, through the converter's own key table."""
    tensors = {name: value.numpy() for name, value in module.state_dict().items()}
    network = jax.eval_shape(lambda: Decoder(CONFIG))
    shapes = parameter_paths(network)
    arrays = {}
    for rule in DECODER:
        target = rule.target.removeprefix("decoder.")
        shape = shapes[target].shape
        array = np.empty(shape, np.float32)
        for places, name in rule.entries(shape[0]):
            array[places] = rule.to_target(tensors[name.removeprefix("model.")], shape[len(places) :])
        arrays[target] = jnp.asarray(array)
    return fill(network, arrays)


def measure(num_tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds, ratios and parity at one prompt length."""
    import torch

    modules = {name: torch_decoder(name) for name in ("eager", "sdpa")}
    decoder = jax_decoder(modules["eager"])
    embeddings = np.random.default_rng(0).normal(size=(num_tokens, CONFIG.embed_dim)).astype(np.float32)
    positions = np.broadcast_to(np.arange(num_tokens), (3, num_tokens))
    inputs = Inputs(
        embeddings=jnp.asarray(embeddings),
        positions=jnp.asarray(positions, jnp.int32),
        groups=jnp.asarray(np.arange(num_tokens) * 4 // num_tokens, jnp.int32),
        generated_group=jnp.int32(3),
        length=jnp.int32(num_tokens),
        num_groups=4,
    )
    factor = np.ones((CONFIG.num_layers, CONFIG.num_heads, 4, 4), np.float32)
    factor[6:, :, 3, 1] = 0.0
    edited = Intervention(attention_factor=jnp.asarray(factor))
    compiled = jax.jit(prefill)

    def ours(intervention: Intervention | None) -> jax.Array:
        x, cache, _ = compiled(decoder, inputs, intervention)
        return jax.block_until_ready((decoder.final_norm(x), cache))[0]

    torch_inputs = {
        "inputs_embeds": torch.tensor(embeddings)[None],
        "position_ids": torch.tensor(positions.copy())[:, None],
        "use_cache": True,
    }

    def theirs(name: str) -> Any:
        with torch.no_grad():
            return modules[name](**torch_inputs).last_hidden_state

    methods = {name: functools.partial(theirs, name) for name in modules}
    methods |= {"avjax": lambda: ours(None), "avjax, knockout": lambda: ours(edited)}
    timings = interleave(methods, rounds=rounds)
    parity = float(np.abs(np.asarray(ours(None)) - theirs("eager")[0].numpy()).max())
    fastest = min(timings[name].median for name in modules)
    return {
        "tokens": num_tokens,
        "seconds": {name: round(t.median, 5) for name, t in timings.items()},
        "best": {name: round(t.best, 5) for name, t in timings.items()},
        "ratio": {n: round(fastest / t.median, 2) for n, t in timings.items() if n not in modules},
        "max_difference": parity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    import torch

    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    print(f"{hardware()}; {cores} threads for torch {torch.__version__} and for XLA")
    for num_tokens in arguments.tokens:
        print(json.dumps(measure(num_tokens, arguments.rounds)))


if __name__ == "__main__":
    main()
