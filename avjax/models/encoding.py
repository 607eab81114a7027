"""Clips through their towers, on padded static shapes: one executable per bucket, whatever the clip's length."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from avjax.devices.arrays import on_device
from avjax.models.audio import AudioTower, chunk_lengths, num_audio_tokens
from avjax.models.buckets import call_bucket
from avjax.models.config import AudioConfig, VisionConfig
from avjax.models.vision import VisionTower, WindowLayout, window_layout

SCORE_BYTES = 256 * 2**20  # attention scores of one call of the vision tower, at most
MAX_STEPS = 16  # grid steps of one call


def encode_audio(tower: AudioTower, mel: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """Tokens [n, D] of one clip's log-mel frames [frames, bins]."""
    num_chunks, frames = audio_chunks(tower.cfg, len(mel))
    padded = np.pad(mel, ((0, num_chunks * frames - len(mel)), (0, 0))).reshape(num_chunks, frames, -1)
    lengths = chunk_lengths(len(mel), frames, num_chunks)
    tokens, _ = audio_program(tower, on_device(padded, dtype), on_device(lengths))
    return tokens[: num_audio_tokens(len(mel))]


def encode_vision(tower: VisionTower, patches: np.ndarray, grid: tuple[int, int, int], dtype: DTypeLike) -> jax.Array:
    """Merged tokens [t * h * w / merge^2, D] of one image or video, in reading order.

    Args:
      patches: [t * h * w, patch_dim], in the processor's order.
    """
    steps, height, width = grid
    layout, sizes = vision_calls(tower.cfg, grid)
    per_step = patches.reshape(steps, height * width, -1)
    outputs, start = [], 0
    for size in sizes:
        window_patches = per_step[start : start + size][:, layout.patch_index]
        window_patches = np.where(layout.valid[..., None], window_patches, 0)
        outputs.append(vision_program(tower, on_device(window_patches, dtype), layout.rows_columns, layout.valid))
        start += size
    return _in_reading_order(outputs, on_device(layout.merged_index))


@jax.jit
def _in_reading_order(steps: Sequence[jax.Array], index: jax.Array) -> jax.Array:
    """Tokens [n, D] of grid steps whose tokens lie window by window."""
    return jnp.concatenate([merged[:, index].reshape(-1, merged.shape[-1]) for merged in steps])


def audio_chunks(cfg: AudioConfig, mel_frames: int) -> tuple[int, int]:
    """Chunks of one clip with the padding, and the frames of each."""
    frames = 2 * cfg.n_window
    return call_bucket(-(-mel_frames // frames)), frames


def vision_calls(cfg: VisionConfig, grid: tuple[int, int, int]) -> tuple[WindowLayout, list[int]]:
    """How windows lie in a grid step, and the grid steps of each call.

    Grid steps never attend to each other, so a clip is cut into calls of few sizes: full ones, then the rest.
    """
    steps, height, width = grid
    exact = window_layout(cfg, height, width)
    layout = window_layout(cfg, height, width, num_windows=call_bucket(len(exact.patch_index)))
    slots = layout.patch_index.size
    per_call = int(np.clip(SCORE_BYTES // (4 * cfg.num_heads * slots**2), 1, MAX_STEPS))
    per_call = 1 << (per_call.bit_length() - 1)
    sizes: list[int] = []
    while (left := steps - sum(sizes)) > 0:
        sizes.append(min(per_call, 1 << (left.bit_length() - 1)))
    return layout, sizes


@functools.partial(jax.jit, static_argnames="capture_layers")
def audio_program(tower: AudioTower, mel: jax.Array, lengths: jax.Array, capture_layers: bool = False):
    return tower(mel, lengths, capture_layers=capture_layers)


@jax.jit
def vision_program(tower: VisionTower, patches: jax.Array, rows_columns: jax.Array, valid: jax.Array) -> jax.Array:
    return tower(patches, rows_columns, valid)[0]
