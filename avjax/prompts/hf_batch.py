"""What a Hugging Face processor returns for one conversation, read without torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avjax.families.registry import family_of
from avjax.models.audio import num_audio_tokens
from avjax.models.config import ModelConfig
from avjax.prompts.prompt import AudioFeatures, VisionFeatures

HF_KEYS = frozenset(
    """
    input_ids attention_mask pixel_values image_grid_thw pixel_values_videos video_grid_thw video_second_per_grid
    second_per_grid_ts input_features feature_attention_mask mm_token_type_ids num_audio_tokens video_metadata
    use_audio_in_video
    """.split()
)


def read_batch(batch: Mapping[str, Any], config: ModelConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """Token ids int32 [T] without padding, and the features of the clips as `Processor.assemble` takes them.

    Raises:
      ValueError: a key is missing or unknown, or its shape or dtype is not what a processor writes.
    """
    known = {name: as_numpy(value) for name, value in batch.items() if value is not None}
    unknown = known.keys() - HF_KEYS
    if unknown:
        raise ValueError(f"batch: expected keys among {sorted(HF_KEYS)}, got also {sorted(unknown)}")
    if "input_ids" not in known:
        raise ValueError("batch: expected input_ids, got none; pass what the HF processor returned")
    ids = np.atleast_2d(known["input_ids"])
    mask = np.atleast_2d(known.get("attention_mask", np.ones_like(ids)))
    require_integers("input_ids", ids)
    if len(ids) != 1 or mask.shape != ids.shape:
        raise ValueError(
            f"batch: expected one prompt, input_ids [1, T] and attention_mask of the same shape, got {list(ids.shape)} "
            f"and {list(mask.shape)}; call once per prompt"
        )
    token_ids = ids[0][mask[0].astype(bool)].astype(np.int32)
    if "use_audio_in_video" in known:
        _check_audio_in_video(known["use_audio_in_video"], token_ids, config)
    seconds = known.get("video_second_per_grid", known.get("second_per_grid_ts"))
    if seconds is None and "video_grid_thw" in known:
        if family_of(config).requires_step_seconds:
            raise ValueError("batch: expected video_second_per_grid beside video_grid_thw, got none; pass it on")
        seconds = np.ones(len(known["video_grid_thw"]))
    patch_dim = int(np.prod(config.vision.patch_shape))
    clips = {
        "images": _vision(known.get("pixel_values"), known.get("image_grid_thw"), None, "image", patch_dim),
        "videos": _vision(known.get("pixel_values_videos"), known.get("video_grid_thw"), seconds, "video", patch_dim),
        "audio": _audio(known.get("input_features"), known.get("feature_attention_mask"), config),
    }
    return token_ids, clips


def _check_audio_in_video(flag: Any, token_ids: np.ndarray, config: ModelConfig) -> None:
    """Scripts pass the flag on to `generate`; here the tokens say it themselves, so both must agree."""
    value = np.asarray(flag)
    if value.dtype != bool or not value.size or value.any() != value.all():
        raise ValueError(f"batch: expected use_audio_in_video to be True or False, got {flag!r}; pass it as a bool")
    ids = config.tokens
    after = token_ids[1:][token_ids[:-1] == ids.vision_bos]
    inside, silent = int(np.sum(after == ids.audio_bos)), int(np.sum(after == ids.video))
    if value.all() and silent:
        raise ValueError(
            f"batch: use_audio_in_video is True, but {silent} video(s) have no sound among their tokens; pass "
            "use_audio_in_video=True to the processor too, or leave it out here"
        )
    if not value.all() and inside:
        raise ValueError(
            f"batch: use_audio_in_video is False, but {inside} video(s) have their sound among their tokens; pass the "
            'same flag as to the processor, or leave it out and pass compat="published-script" to number positions '
            "as if it were off"
        )


def as_numpy(value: Any) -> Any:
    """numpy from numpy, jax, lists or torch tensors, without importing torch; text and mappings stay as they are."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()
    return value if isinstance(value, str | Mapping) else np.asarray(value)


def require_finite(name: str, values: np.ndarray) -> None:
    bad = int(values.size - np.isfinite(np.asarray(values, np.float32)).sum())
    if bad:
        raise ValueError(
            f"{name}: expected finite numbers, got {bad} NaN or infinite ones; fix the code that made them"
        )


def require_integers(name: str, values: np.ndarray) -> None:
    if not np.issubdtype(values.dtype, np.integer) or np.any(np.abs(values.astype(np.int64)) >= 2**31):
        raise ValueError(f"{name}: expected integers of 32 bits, got {values.dtype} up to {values.max()}")


def _vision(
    patches: np.ndarray | None, grids: np.ndarray | None, seconds: np.ndarray | None, kind: str, patch_dim: int
) -> tuple[VisionFeatures, ...]:
    if patches is None and grids is None:
        return ()
    if patches is None or grids is None:
        raise ValueError(f"batch: expected both the pixel values and the grid of each {kind}, got one of them")
    sizes = np.prod(grids, axis=1)
    if patches.shape != (sizes.sum(), patch_dim):
        raise ValueError(
            f"batch: expected {kind} patches [{sizes.sum()}, {patch_dim}] for grids {grids.tolist()}, got "
            f"{list(patches.shape)}"
        )
    if seconds is not None and np.shape(seconds) != (len(grids),):
        raise ValueError(f"batch: expected seconds per grid for each of {len(grids)} videos, got {np.shape(seconds)}")
    parts = np.split(patches.astype(np.float32), np.cumsum(sizes)[:-1])
    return tuple(
        VisionFeatures(
            patches=part,
            grid=(int(grid[0]), int(grid[1]), int(grid[2])),
            seconds_per_grid=None if seconds is None else float(seconds[i]),
            source=f"batch {kind} {i}",
        )
        for i, (part, grid) in enumerate(zip(parts, grids, strict=True))
    )


def _audio(features: np.ndarray | None, mask: np.ndarray | None, config: ModelConfig) -> tuple[AudioFeatures, ...]:
    if features is None:
        return ()
    if config.audio is None:
        raise ValueError(f"batch: {config.family} has no audio tower; leave input_features out")
    if mask is None:
        raise ValueError("batch: expected feature_attention_mask beside input_features; ask the processor for it")
    bins = config.audio.num_mel_bins
    if features.ndim != 3 or features.shape[1] != bins or mask.shape != (features.shape[0], features.shape[2]):
        raise ValueError(
            f"batch: expected input_features [clips, {bins}, frames] and feature_attention_mask [clips, frames], got "
            f"{list(features.shape)} and {list(mask.shape)}"
        )
    clips = tuple(
        AudioFeatures(mel=clip[:, keep.astype(bool)].T.astype(np.float32), source=f"batch audio {i}")
        for i, (clip, keep) in enumerate(zip(features, mask, strict=True))
    )
    for clip in clips:
        if len(clip.mel) < 2 or num_audio_tokens(len(clip.mel)) < 1:
            raise ValueError(f"{clip.source}: {len(clip.mel)} mel frames are too few for a token")
    return clips
