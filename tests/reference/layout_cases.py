"""Prompts whose tokens, positions and features the original code is asked for."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.reference import clips, tiny_omni

NTSC_FILM = Fraction(24000, 1001)  # 23.976 frames per second
NTSC = Fraction(30000, 1001)
QUESTION = "Describe what you see and hear."


@dataclasses.dataclass(frozen=True)
class Text:
    text: str = QUESTION


@dataclasses.dataclass(frozen=True)
class Image:
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Sound:
    samples: int  # at 16 kHz


@dataclasses.dataclass(frozen=True)
class Video:
    """A clip of `frames` frames at `rate` per second, sampled at `fps`; its sound, if any, has `samples` samples."""

    frames: int
    rate: Fraction | int
    height: int = 56
    width: int = 84
    samples: int = 0
    fps: float | None = None  # None: nobody asks, and the originals take 2


Item = Text | Image | Sound | Video
Turn = tuple[Literal["system", "user", "assistant"], tuple[Item, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutCase:
    name: str
    family: Literal["qwen2_5_omni", "qwen2_5_vl"]
    turns: tuple[Turn, ...]
    audio_in_video: bool = False

    @property
    def items(self) -> list[Item]:
        return [item for _, items in self.turns for item in items]

    @property
    def fps(self) -> float | None:
        """What a user hands to the processor, too: Qwen2.5-Omni's takes one number for all videos."""
        rates = {item.fps for item in self.items if isinstance(item, Video)}
        return rates.pop() if len(rates) == 1 else None


def _user(*items: Item) -> tuple[Turn, ...]:
    return (("user", items),)


def _seconds(seconds: float) -> int:
    return round(seconds * clips.SAMPLE_RATE)


VIDEOS = {
    "0.5 s at 8 fps": Video(4, 8),
    "1 s at 5 fps, odd": Video(5, 5),
    "2.5 s at 10 fps": Video(25, 10),
    "3 s at 23.976 fps": Video(72, NTSC_FILM),
    "6.1 s at 23.976 fps": Video(146, NTSC_FILM),
    "10 s at 29.97 fps": Video(300, NTSC),
    "10.2 s at 5 fps, asked for 1": Video(51, 5, fps=1.0),
    "31 s at 10 fps, asked for 2.6": Video(310, 10, fps=2.6),
    "5 s at 23.976 fps, asked for all": Video(120, NTSC_FILM, fps=23.976),
    "7 s at 3 fps, asked for 4": Video(21, 3, fps=4.0),
    "40 s at 4 fps": Video(160, 4),
    "wide": Video(12, 4, height=40, width=400),
    "tall": Video(12, 4, height=300, width=56),
}
SOUNDS = {"0.3 s": 0.3, "1.3 s": 1.3, "2 s": 2.0, "29.99 s": 29.99, "31 s": 31.0}
IMAGES = {"one image": (Image(84, 140),), "three images": (Image(84, 140), Image(112, 56), Image(28, 560))}
# The sound's length against the picture's, in seconds.
WITH_SOUND = {
    "0.5 s at 8 fps": -0.2,
    "1 s at 5 fps, odd": 0.0,
    "2.5 s at 10 fps": 2.6,
    "3 s at 23.976 fps": 0.01,
    "6.1 s at 23.976 fps": -2.3,
    "10.2 s at 5 fps, asked for 1": 0.0,
    "31 s at 10 fps, asked for 2.6": 0.0,
    "5 s at 23.976 fps, asked for all": 0.0,
    "40 s at 4 fps": -25.0,
}


def with_sound(video: Video, longer_seconds: float) -> Video:
    return dataclasses.replace(video, samples=_seconds(float(video.frames / video.rate) + longer_seconds))


def _omni() -> list[LayoutCase]:
    short, long = with_sound(VIDEOS["2.5 s at 10 fps"], 0.7), with_sound(VIDEOS["6.1 s at 23.976 fps"], 0.0)
    mixed = (
        ("system", (Text("You hear well."),)),
        ("user", (Image(84, 140), Text("What is it?"))),
        ("assistant", (Text("A square."),)),
        ("user", (Sound(_seconds(1.3)), Text("And this?"), Video(25, 10), Text())),
    )
    mixed_sound = (
        ("user", (Text("First:"), short, Text("second:"), Image(112, 56), Sound(_seconds(0.7)))),
        ("assistant", (Text("Two."),)),
        ("user", (long, Text())),
    )
    make = lambda name, turns, **more: LayoutCase(  # noqa: E731
        name=f"omni: {name}", family="qwen2_5_omni", turns=turns, **more
    )
    cases = [make("text", _user(Text()))]
    cases += [make(name, _user(*images, Text())) for name, images in IMAGES.items()]
    cases += [make(f"sound of {name}", _user(Sound(_seconds(s)), Text())) for name, s in SOUNDS.items()]
    cases += [make(f"video of {name}", _user(video, Text())) for name, video in VIDEOS.items()]
    cases += [
        make(f"video with its sound, {name}", _user(with_sound(VIDEOS[name], longer), Text()), audio_in_video=True)
        for name, longer in WITH_SOUND.items()
    ]
    cases += [
        make("question before a video with its sound", _user(Text(), long), audio_in_video=True),
        make("two videos with their sounds", _user(short, long, Text()), audio_in_video=True),
        make("sound beside a video", _user(Sound(_seconds(1.3)), Video(25, 10), Text())),
        make("mixed turns", mixed),
        make("mixed turns, videos with their sounds", mixed_sound, audio_in_video=True),
    ]
    return cases


def _vl() -> list[LayoutCase]:
    mixed = (
        ("system", (Text("You see well."),)),
        ("user", (Image(84, 140), Text("What is it?"), Video(21, 3, fps=4.0))),
        ("assistant", (Text("A square."),)),
        ("user", (Text("And this?"), VIDEOS["6.1 s at 23.976 fps"], Text())),
    )
    make = lambda name, turns: LayoutCase(name=f"vl: {name}", family="qwen2_5_vl", turns=turns)  # noqa: E731
    cases = [make("text", _user(Text()))]
    cases += [make(name, _user(*images, Text())) for name, images in IMAGES.items()]
    cases += [make(f"video of {name}", _user(video, Text())) for name, video in VIDEOS.items()]
    cases += [
        make("question before a video", _user(Text(), VIDEOS["10 s at 29.97 fps"])),
        make("two videos", _user(VIDEOS["2.5 s at 10 fps"], VIDEOS["10 s at 29.97 fps"], Text())),
        make("mixed turns", mixed),
    ]
    return cases


CASES = [*_omni(), *_vl()]


def messages(case: LayoutCase, folder: Path) -> list[dict[str, Any]]:
    """Hugging Face's chat form; writes the files that it names."""
    return [
        {"role": role, "content": [content(item, folder / f"{i}-{j}") for j, item in enumerate(items)]}
        for i, (role, items) in enumerate(case.turns)
    ]


def placeholders(case: LayoutCase) -> list[dict[str, Any]]:
    """The same conversation for a chat template alone; no files are written."""
    kinds = {Image: "image", Sound: "audio", Video: "video"}
    return [
        {
            "role": role,
            "content": [
                {"type": "text", "text": item.text} if isinstance(item, Text) else {"type": kinds[type(item)]}
                for item in items
            ],
        }
        for role, items in case.turns
    ]


def content(item: Item, stem: Path) -> dict[str, Any]:
    from PIL import Image as pillow

    if isinstance(item, Text):
        return {"type": "text", "text": item.text}
    if isinstance(item, Image):
        path = stem.with_suffix(".png")
        pillow.fromarray(clips.picture(3, item.height, item.width)).save(path)
        return {"type": "image", "image": str(path)}
    if isinstance(item, Sound):
        path = stem.with_suffix(".wav")
        write_wav(path, clips.tone(item.samples))
        return {"type": "audio", "audio": str(path)}
    path = stem.with_suffix(".mkv")
    size = {"height": item.height, "width": item.width}
    clips.write_clip(path, frames=item.frames, frames_per_second=item.rate, samples=item.samples, **size)
    return {"type": "video", "video": str(path), **({} if item.fps is None else {"fps": item.fps})}


def write_wav(path: Path, samples: np.ndarray) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(clips.SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def hf_config(family: str) -> dict[str, Any]:
    """`config.json` of a tiny model of either family, with the one tokenizer, as current transformers writes it."""
    raw = tiny_omni.thinker_config()
    if family == "qwen2_5_omni":
        return raw
    of_audio = ("audio_config", "audio_token_id", "audio_start_token_id", "audio_end_token_id", "architectures")
    vision = {**tiny_omni.VISION, "tokens_per_second": 2}  # as published; the class's own default is 4
    kept = {key: value for key, value in raw.items() if key not in of_audio}
    return {**kept, "model_type": family, "vision_config": vision}
