"""Clips of the tiny world: which thing is seen, which sound is heard, and whether the two belong together.

A draw is a function of its split and number alone, so that training, selection and test draws never meet.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from avjax.media.decode import SAMPLE_RATE
from avjax.organism import pictures, sounds

FRAMES_PER_SECOND = 8
# On some processors x264's macroblock tree encodes one clip in another way each time.
H264 = {"crf": "18", "x264-params": "mbtree=0"}
NUM_FRAMES = round(sounds.SECONDS * FRAMES_PER_SECOND)
Split = Literal["train", "selection", "test"]
Condition = Literal["factual", "counterfactual", "muted", "blank"]
SPLITS: tuple[Split, ...] = ("train", "selection", "test")
CONDITIONS: tuple[Condition, ...] = ("factual", "counterfactual", "muted", "blank")
Question = Literal["see and hear", "see", "hear"]
QUESTIONS: tuple[Question, ...] = ("see and hear", "see", "hear")
_PICTURE, _SOUND = 0, 1  # streams of draws


def ask(question: Question) -> str:
    """A prompt of the tiny world, as its clips are asked about."""
    return f"Describe what you {question}."


PROMPT = ask("see and hear")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A thing that is seen, and the sound that belongs to it; both in one word."""

    thing: str
    sound: str
    draw: pictures.Thing
    synthesise: Callable[[np.random.Generator], np.ndarray]


KINDS = (
    Kind("dog", "barking", pictures.dog, sounds.barking),
    Kind("bell", "ringing", pictures.bell, sounds.ringing),
    Kind("car", "engine", pictures.car, sounds.engine),
    Kind("ambulance", "siren", pictures.ambulance, sounds.siren),
    Kind("drum", "drumming", pictures.drum, sounds.drumming),
    Kind("kettle", "whistling", pictures.kettle, sounds.whistling),
    Kind("cloud", "rain", pictures.cloud, sounds.pouring),
    Kind("clock", "ticking", pictures.clock, sounds.ticking),
    Kind("piano", "music", pictures.piano, sounds.playing),
    Kind("phone", "beeping", pictures.phone, sounds.beeping),
    Kind("fridge", "humming", pictures.fridge, sounds.humming),
    Kind("bird", "chirping", pictures.bird, sounds.chirping),
    Kind("man", "talking", pictures.man, sounds.talking),
    Kind("fountain", "splashing", pictures.fountain, sounds.splashing),
    Kind("bee", "buzzing", pictures.bee, sounds.buzzing),
    Kind("cat", "meowing", pictures.cat, sounds.meowing),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Two seconds of the world.

    Attributes:
      seen, heard: indices into `KINDS`; None for a blank picture, and for silence.
      frames: uint8 [NUM_FRAMES, SIDE, SIDE, 3], 8 a second.
      samples: float32 [NUM_SAMPLES], mono at 16 kHz.
    """

    seen: int | None
    heard: int | None
    frames: np.ndarray
    samples: np.ndarray

    def write(self, path: Path) -> None:
        """An mp4 file with h264 and AAC."""
        import av

        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=H264)
            video.width, video.height, video.pix_fmt = self.frames.shape[2], self.frames.shape[1], "yuv420p"
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            audio.bit_rate = 96_000
            for picture in self.frames:
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
            for start in range(0, len(self.samples), 1024):
                block = np.ascontiguousarray(self.samples[None, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def clip(split: Split, number: int, condition: Condition = "factual") -> Clip:
    """A clip of a split; kinds follow each other, so that any run of `len(KINDS)` numbers has every kind once.

    The picture is the same in every condition but `blank`. A counterfactual sound is of another kind, drawn.
    """
    seen = heard = number % len(KINDS)
    if condition == "counterfactual":
        other = _generator(split, number, _SOUND).integers(1, len(KINDS))
        heard = (seen + int(other)) % len(KINDS)
    frames, samples = picture(split, number), sound(split, number, heard)
    if condition == "muted":
        return Clip(seen, None, frames, np.zeros_like(samples))
    if condition == "blank":
        return Clip(None, heard, np.zeros_like(frames), samples)
    return Clip(seen, heard, frames, samples)


def picture(split: Split, number: int) -> np.ndarray:
    """Frames of the kind that the number stands for."""
    rng = _generator(split, number, _PICTURE)
    return pictures.scene(KINDS[number % len(KINDS)].draw, rng, NUM_FRAMES)


def sound(split: Split, number: int, kind: int) -> np.ndarray:
    """Samples of one kind; another kind with the same number is another draw."""
    rng = _generator(split, number, _SOUND + 1 + kind)
    return sounds.in_a_room(KINDS[kind].synthesise(rng), rng)


def caption(seen: int | None, heard: int | None) -> str:
    """What a good listener and watcher says. Sound first: after the thing, its word would follow from that."""
    parts = [] if heard is None else [f"I hear {KINDS[heard].sound}"]
    parts += [] if seen is None else [f"I see a {KINDS[seen].thing}"]
    return " and ".join(parts) + "."


def _generator(split: Split, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([SPLITS.index(split), number, stream])
