"""Each tower alone against Hugging Face, to 1e-5, over lengths, sizes and configs."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import avjax
from avjax.models import encoding
from avjax.models.encoding import encode_audio, encode_vision
from tests.tiny_hf import TinyCheckpoint, write_checkpoint

TOLERANCE = 1e-5
GRIDS = [(1, 2, 2), (1, 8, 6), (3, 10, 14), (2, 26, 46), (5, 8, 8), (1, 4, 30)]
AUDIO_SECONDS = [0.05, 0.3, 0.7, 1.99, 2.0, 2.01, 31.0]


def audio_difference(model: avjax.Model, tiny: TinyCheckpoint, num_frames: int) -> float:
    bins = model.config.audio.num_mel_bins
    mel = np.random.default_rng(num_frames).normal(size=(num_frames, bins)).astype(np.float32)
    tower = tiny.torch_model.model.audio_tower
    expected = tower(torch.tensor(mel.T), feature_lens=torch.tensor([num_frames])).last_hidden_state.numpy()
    got = np.asarray(encode_audio(model.network.audio, mel, jnp.float32))
    assert got.shape == expected.shape
    assert expected.std() > 0.1
    return float(np.abs(got - expected).max())


def vision_difference(model: avjax.Model, tiny: TinyCheckpoint, grid: tuple[int, int, int]) -> float:
    size = (int(np.prod(grid)), int(np.prod(model.config.vision.patch_shape)))
    patches = np.random.default_rng(sum(grid)).normal(size=size).astype(np.float32)
    expected = tiny.torch_model.model.visual(torch.tensor(patches), grid_thw=torch.tensor([grid])).pooler_output.numpy()
    got = np.asarray(encode_vision(model.network.vision, patches, grid, jnp.float32))
    assert got.shape == expected.shape
    assert expected.std() > 0.1
    return float(np.abs(got - expected).max())


@pytest.mark.parametrize("seconds", AUDIO_SECONDS)
def test_audio_tower(seconds: float, omni: TinyCheckpoint, omni_model: avjax.Model):
    assert audio_difference(omni_model, omni, round(seconds * 100)) <= TOLERANCE


@pytest.mark.exhaustive
@pytest.mark.parametrize("n_window", [25, 40])
def test_audio_tower_with_other_chunks(n_window: int, tmp_path: Path):
    """An odd chunk makes the pooling pair positions across chunks."""
    tiny = write_checkpoint(tmp_path / "checkpoint", "qwen2_5_omni", audio_config={"n_window": n_window})
    model = avjax.load(tiny.directory)
    for num_frames in (49, 50, 51, 149, 150, 333):
        assert audio_difference(model, tiny, num_frames) <= TOLERANCE


@pytest.mark.parametrize("grid", GRIDS)
def test_vision_tower(grid: tuple[int, int, int], omni: TinyCheckpoint, omni_model: avjax.Model):
    assert vision_difference(omni_model, omni, grid) <= TOLERANCE


@pytest.mark.parametrize("grid", GRIDS[1:3])
def test_vision_tower_with_fused_projections(grid: tuple[int, int, int], vl: TinyCheckpoint, vl_model: avjax.Model):
    assert vision_difference(vl_model, vl, grid) <= TOLERANCE


@pytest.mark.exhaustive
def test_vision_tower_with_other_config(tmp_path: Path):
    vision = {
        "depth": 4,
        "num_heads": 4,
        "window_size": 56,
        "fullatt_block_indexes": [0, 3],
        "rope_parameters": {"rope_type": "axial", "rope_theta": 77.0},
    }
    tiny = write_checkpoint(tmp_path / "checkpoint", "qwen2_5_omni", vision_config=vision)
    model = avjax.load(tiny.directory)
    for grid in GRIDS[1:3]:
        assert vision_difference(model, tiny, grid) <= TOLERANCE


def test_cutting_a_clip_into_calls_changes_nothing(omni_model: avjax.Model, monkeypatch: pytest.MonkeyPatch):
    """To rounding: calls of another size are other kernels."""
    patches = np.random.default_rng(0).normal(size=(7 * 8 * 8, 1176)).astype(np.float32)
    together = encode_vision(omni_model.network.vision, patches, (7, 8, 8), jnp.float32)
    monkeypatch.setattr(encoding, "MAX_STEPS", 1)
    alone = encode_vision(omni_model.network.vision, patches, (7, 8, 8), jnp.float32)
    np.testing.assert_allclose(alone, together, atol=1e-5, rtol=0)


def test_grid_steps_never_attend_to_each_other(omni_model: avjax.Model):
    """Bit for bit: one step's patches change that step's tokens alone."""
    patches = np.random.default_rng(0).normal(size=(4, 8 * 8, 1176)).astype(np.float32)
    before = encode_vision(omni_model.network.vision, patches.reshape(-1, 1176), (4, 8, 8), jnp.float32)
    patches[2] *= -2
    after = encode_vision(omni_model.network.vision, patches.reshape(-1, 1176), (4, 8, 8), jnp.float32)
    changed = np.asarray(before != after).reshape(4, -1).any(1)
    np.testing.assert_array_equal(changed, [False, False, True, False])


@pytest.mark.exhaustive
def test_no_recompilation_inside_a_bucket(omni_model: avjax.Model):
    """Clips of many lengths share the executables of few buckets."""
    for seconds in range(9, 13):
        encode_audio(omni_model.network.audio, np.zeros((seconds * 100 + 7, 128), np.float32), jnp.float32)
    before = encoding.audio_program._cache_size()
    for seconds in range(9, 12):
        encode_audio(omni_model.network.audio, np.zeros((seconds * 100 + 31, 128), np.float32), jnp.float32)
    assert encoding.audio_program._cache_size() == before

    for steps in (1, 3, 7, 15):
        encode_vision(omni_model.network.vision, np.zeros((steps * 64, 1176), np.float32), (steps, 8, 8), jnp.float32)
    before = encoding.vision_program._cache_size()
    for steps in range(1, 16):
        encode_vision(omni_model.network.vision, np.zeros((steps * 64, 1176), np.float32), (steps, 8, 8), jnp.float32)
    assert encoding.vision_program._cache_size() == before
