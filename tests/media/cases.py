"""Prompts of every kind of media, with the tokens that they must have, worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from transformers import AutoTokenizer

from avjax.media.decode import read_audio
from tests.tiny_hf import TinyCheckpoint

TEXT = "Describe what you see and hear."
SOUND_SECONDS = 1.3
# The clip: 4 s at 10 fps, 112 x 168. At 2 fps 8 frames make 4 grid steps; the least area of a frame is 128 tokens, so
# 112 x 168 grows by sqrt(128 * 784 / (112 * 168)) and rounds up: 280 x 392, or 10 x 14 merged tokens.
CLIP_STEPS, CLIP_SIZE = 4, 10 * 14


def write_files(directory: Path, clip: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    for name, size in (("wide", (84, 140)), ("tall", (112, 56))):  # merged tokens: 3 x 5 and 4 x 2
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(directory / f"{name}.png")
    samples = 0.3 * np.sin(np.arange(round(SOUND_SECONDS * 16_000)) * 0.2)
    soundfile.write(directory / "tone.wav", samples.astype(np.float32), 16_000, subtype="FLOAT")
    return {
        "clip": clip,
        "wide": directory / "wide.png",
        "tall": directory / "tall.png",
        "tone": directory / "tone.wav",
    }


def audio_tokens(num_samples: int) -> int:
    """One per 40 ms, rounded as two strided convolutions do."""
    mel = math.ceil(num_samples / 160)
    return ((mel - 1) // 2 + 1 - 2) // 2 + 1


CASES: dict[str, Callable[[dict[str, Path]], dict[str, Any]]] = {
    "text": lambda f: {},
    "image": lambda f: {"image": f["wide"]},
    "two images": lambda f: {"image": [f["wide"], str(f["tall"])]},
    "video": lambda f: {"video": f["clip"], "audio": None},
    "audio": lambda f: {"audio": str(f["tone"])},
    "audio in video": lambda f: {"video": f["clip"], "audio": "from_video"},
    "audio and image": lambda f: {"image": f["tall"], "audio": f["tone"]},
    "audio beside video": lambda f: {"video": f["clip"], "audio": f["tone"]},
}
VL_CASES = ("text", "image", "two images", "video")


def clip_kinds(case: str, files: dict[str, Path]) -> list[str]:
    """The kind of every token of the clips, from sizes and durations alone."""
    kinds: list[str] = []
    images = {"image": [15], "two images": [15, 8], "audio and image": [8]}.get(case, [])
    for count in images:
        kinds += ["vision_bos", *["image"] * count, "vision_eos"]
    if case == "audio in video":
        kinds += ["vision_bos", "audio_bos"]
        sound = audio_tokens(len(read_audio(files["clip"])))
        # Two grid steps and 50 audio tokens make a chunk of 2 s; what is left of the sound follows.
        kinds += [*["video"] * 2 * CLIP_SIZE, *["audio"] * 50, *["video"] * 2 * CLIP_SIZE, *["audio"] * (sound - 50)]
        kinds += ["audio_eos", "vision_eos"]
    elif "video" in case:
        kinds += ["vision_bos", *["video"] * CLIP_STEPS * CLIP_SIZE, "vision_eos"]
    if case in ("audio", "audio and image", "audio beside video"):
        kinds += ["audio_bos", *["audio"] * audio_tokens(round(SOUND_SECONDS * 16_000)), "audio_eos"]
    return kinds


def expected_ids(tiny: TinyCheckpoint, case: str, files: dict[str, Path], system: str) -> np.ndarray:
    """The whole prompt by hand: what the chat template writes, with the clips written out between."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.directory)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return np.array(
        [
            *encode(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"),
            *(tiny.ids[kind] for kind in clip_kinds(case, files)),
            *encode(f"{TEXT}<|im_end|>\n<|im_start|>assistant\n"),
        ]
    )
