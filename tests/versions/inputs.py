"""One prompt with every modality, and weights that depend on nothing but their names: the same under every version."""

import re
import zlib
from typing import Any

import numpy as np

PATCH, MERGE, TEMPORAL, CHANNELS = 4, 2, 2, 3
MEL_BINS, AUDIO_FRAMES = 8, 100
IMAGE_GRID, VIDEO_GRID = (1, 4, 6), (2, 6, 6)  # frame pairs and patches; all versions place what follows alike
AUDIO_TOKENS = 25  # two strides of two
VOCABULARY = 48
GENERATED = 6  # tokens that each version says

IDS = {
    "image": 40,
    "video": 41,
    "vision_start": 42,
    "vision_end": 43,
    "audio": 44,
    "audio_start": 45,
    "audio_end": 46,
}


def token_ids(*, audio: bool) -> list[int]:
    """Words, an image, a video, perhaps a sound, and words."""
    merged = MERGE**2
    image = [IDS["image"]] * (int(np.prod(IMAGE_GRID)) // merged)
    video = [IDS["video"]] * (int(np.prod(VIDEO_GRID)) // merged)
    sound = [IDS["audio_start"], *[IDS["audio"]] * AUDIO_TOKENS, IDS["audio_end"]] if audio else []
    start, end = IDS["vision_start"], IDS["vision_end"]
    return [1, 2, 3, start, *image, end, 4, start, *video, end, 5, *sound, 6, 7, 8]


def batch(*, audio: bool) -> dict[str, Any]:
    """What a Hugging Face processor would return for the prompt, in numpy."""
    rng = np.random.default_rng(0)
    ids = np.array([token_ids(audio=audio)], np.int64)
    pixels = CHANNELS * TEMPORAL * PATCH**2
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": rng.normal(size=(int(np.prod(IMAGE_GRID)), pixels)).astype(np.float32),
        "image_grid_thw": np.array([IMAGE_GRID], np.int64),
        "pixel_values_videos": rng.normal(size=(int(np.prod(VIDEO_GRID)), pixels)).astype(np.float32),
        "video_grid_thw": np.array([VIDEO_GRID], np.int64),
    }
    if not audio:
        return {**inputs, "second_per_grid_ts": np.array([1.0], np.float32)}
    mel = rng.normal(size=(1, MEL_BINS, AUDIO_FRAMES)).astype(np.float32)
    sound = {"input_features": mel, "feature_attention_mask": np.ones((1, AUDIO_FRAMES), np.int64)}
    return {**inputs, **sound, "video_second_per_grid": np.array([1.0], np.float32)}


def published_name(name: str) -> str:
    """A tensor's name without what some versions put before it."""
    name = re.sub(r"^thinker\.", "", name)
    return re.sub(
        r"^model\.(?:(language_model)\.|(?=visual\.|audio_tower\.))", lambda m: "model." if m[1] else "", name
    )


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 tensor that bfloat16 holds exactly, from a tensor's published name and its shape."""
    rng = np.random.default_rng(zlib.crc32(published_name(name).encode()))
    noise = rng.normal(size=shape)
    if len(shape) > 1:
        noise = noise / np.prod(shape[1:]) ** 0.5
    else:
        noise = noise * 0.1 + (("norm" in name or "ln_" in name) and not name.endswith("bias"))
    bits = noise.astype(np.float32).view(np.uint32)
    return ((bits >> 16) << 16).astype(np.uint32).view(np.float32).reshape(shape)
