"""The audio tower of Qwen2.5-Omni: a Whisper-like encoder that attends inside chunks of 2 seconds only.

Axes: C chunks, T mel frames of a chunk, S positions of a chunk (T / 2), N heads, H head dim, D embed, L layer,
O output.

A chunk is 2 * n_window mel frames and never reads another. The last chunk of a clip may be shorter; it and the chunks
that pad a clip to its bucket are masked, so one executable serves every length in the bucket.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from avjax.models.clip_features import num_audio_tokens as num_audio_tokens
from avjax.models.config import AudioConfig
from avjax.models.layers import Embedding, LayerNorm, Linear, add, dot, gelu, masked_softmax, rounded, scaled


def chunk_lengths(num_mel_frames: int, chunk_frames: int, num_chunks: int) -> np.ndarray:
    """Mel frames in each of `num_chunks` chunks, 0 for those that only pad. int32 [C]."""
    starts = np.arange(num_chunks) * chunk_frames
    return np.clip(num_mel_frames - starts, 0, chunk_frames).astype(np.int32)


class Convolution(nnx.Module):
    """Width 3, padding 1."""

    def __init__(self, inputs: int, outputs: int, *, stride: int):
        self.kernel = nnx.Param(jnp.zeros((3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.stride = stride

    def __call__(self, x: Float[Array, "C T inputs"]) -> Float[Array, "C S outputs"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            window_strides=(self.stride,),
            padding=((1, 1),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        return rounded(y + self.bias[...], x.dtype)


class AudioAttention(nnx.Module):
    def __init__(self, cfg: AudioConfig, *, stack: tuple[int, ...]):
        heads = [cfg.num_heads, cfg.head_dim]
        self.q = Linear([cfg.embed_dim], heads, stack=stack, bias=True)
        self.k = Linear([cfg.embed_dim], heads, stack=stack)
        self.v = Linear([cfg.embed_dim], heads, stack=stack, bias=True)
        self.out = Linear(heads, [cfg.embed_dim], stack=stack, bias=True)

    def __call__(self, x_CSD: Array, valid_CS: Array) -> Array:
        q, k, v = self.q(x_CSD), self.k(x_CSD), self.v(x_CSD)
        scores = scaled(dot("cqnh,csnh->cnqs", q, k), q.shape[-1], q.dtype)
        weights = rounded(masked_softmax(scores, valid_CS[:, None, None, :]), x_CSD.dtype)
        return self.out(rounded(dot("cnqs,csnh->cqnh", weights, v), x_CSD.dtype))


class AudioBlock(nnx.Module):
    def __init__(self, cfg: AudioConfig, *, stack: tuple[int, ...]):
        self.attn_norm = LayerNorm(cfg.embed_dim, stack=stack)
        self.attn = AudioAttention(cfg, stack=stack)
        self.mlp_norm = LayerNorm(cfg.embed_dim, stack=stack)
        self.fc1 = Linear([cfg.embed_dim], [cfg.mlp_dim], stack=stack, bias=True)
        self.fc2 = Linear([cfg.mlp_dim], [cfg.embed_dim], stack=stack, bias=True)

    def __call__(self, x_CSD: Array, valid_CS: Array) -> Array:
        x_CSD = add(x_CSD, self.attn(self.attn_norm(x_CSD), valid_CS))
        return add(x_CSD, self.fc2(gelu(self.fc1(self.mlp_norm(x_CSD)))))


class AudioTower(nnx.Module):
    def __init__(self, cfg: AudioConfig):
        self.cfg = cfg
        self.conv1 = Convolution(cfg.num_mel_bins, cfg.embed_dim, stride=1)
        self.conv2 = Convolution(cfg.embed_dim, cfg.embed_dim, stride=2)
        self.layers = AudioBlock(cfg, stack=(cfg.num_layers,))
        self.final_norm = LayerNorm(cfg.embed_dim)
        self.proj = Linear([cfg.embed_dim], [cfg.output_dim], bias=True)
        # The thinker never reads these two rows; they are kept so that an export gives back every tensor.
        self.bos_eos = Embedding(2, cfg.output_dim)

    def __call__(
        self, mel_CTB: Float[Array, "C T bins"], lengths_C: Int[Array, "C"], *, capture_layers: bool = False
    ) -> tuple[Float[Array, "tokens O"], Array | None]:
        """One token per 40 ms, in order; the first `num_audio_tokens` rows are the clip's.

        Args:
          mel_CTB: log-mel frames, chunk by chunk.
          lengths_C: real frames of each chunk; only the last real chunk may be short.

        Returns:
          The tokens, and with `capture_layers` the residual after each block [L, C, S, D].
        """
        chunks, frames, _ = mel_CTB.shape
        valid_CT = jnp.arange(frames) < lengths_C[:, None]
        x_CSD = gelu(self.conv1(mel_CTB)) * valid_CT[..., None].astype(mel_CTB.dtype)
        x_CSD = gelu(self.conv2(x_CSD))
        slots = x_CSD.shape[1]
        x_CSD = add(x_CSD, jnp.asarray(_sinusoids(self.cfg.max_positions, self.cfg.embed_dim)[:slots], x_CSD.dtype))
        valid_CS = jnp.arange(slots) < ((lengths_C + 1) // 2)[:, None]

        def step(x: Array, block: AudioBlock) -> tuple[Array, Array | None]:
            x = block(x, valid_CS)
            return x, x if capture_layers else None

        x_CSD, captures = jax.lax.scan(step, x_CSD, self.layers)
        # Only the last chunk is short, so the real positions are the first ones of the flat sequence.
        x_SD = x_CSD.reshape(chunks * slots, -1)
        x_SD = x_SD[: chunks * slots // 2 * 2]
        pooled = (x_SD[0::2] + x_SD[1::2]) / 2
        return self.proj(self.final_norm(pooled)), captures


def _sinusoids(length: int, channels: int) -> np.ndarray:
    """float32 [length, channels]: sines, then cosines, of geometrically spaced time scales (Vaswani et al. 2017)."""
    step = np.log(10_000.0) / (channels // 2 - 1)
    inverse_scales = np.exp(np.float32(-step) * np.arange(channels // 2, dtype=np.float32))
    scaled = np.arange(length, dtype=np.float32)[:, None] * inverse_scales
    return np.concatenate([np.sin(scaled), np.cos(scaled)], axis=1)
