"""Every media file of a folder as avjax reads it, held against ffprobe and ffmpeg."""

import dataclasses
import functools
import io
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps

from avjax.media.decode import SAMPLE_RATE, media_kind, read_audio, read_image, read_video
from avjax.media.errors import MediaError
from avjax.media.frames import FrameChoice, choose_frames
from avjax.media.options import MediaOptions
from avjax.media.video import VideoInfo

MAX_LEVELS = 1.0  # of 255, on average over the frame that is furthest off
MAX_PICTURE_LEVELS = 2.0  # decoders of JPEG round otherwise
MAX_LOUDNESS = 1e-3  # mean difference of samples within -1 to 1
MAX_SHARE = 0.02  # the same, of the sound's own loudness
ROUNDING = 1e-5
MAX_SHIFT_SECONDS = 0.002
GAP_SECONDS = 0.02
RESTART_SECONDS = 1.0
# What ffprobe calls still images; each also has formats named "..._pipe".
STILLS = {"image2", "ico", "tiff", "dds"}
# Raw samples and pixels, and text: ffprobe takes a file for one by its name alone.
MARKLESS = {"tty", "rawvideo", "bin", "xbin", "adf", "idf", "alaw", "mulaw", "s8", "u8"}
MARKLESS |= {f"{kind}{bits}{end}" for kind in "suf" for bits in (16, 24, 32, 64) for end in ("le", "be")}
FOREIGN_MODES = ("CMYK", "LAB", "F")  # of pictures that ffmpeg shows otherwise
ORIENTATION = 0x112  # of EXIF
RESTART_SLACK_SECONDS = 0.05  # where one song follows another, versions of libav cut otherwise
BEST_TIME = "best_effort_timestamp_time"
BARE = {"aac", "ac3", "amr", "dts", "eac3", "mp3"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """What avjax has otherwise than ffmpeg."""

    path: Path
    what: str
    expected: object
    got: object

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: expected {self.expected}, got {self.got}"


def media_files(folder: Path) -> list[Path]:
    """Every file of a folder, for what is no medium must be refused."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def differences(path: Path) -> Iterator[Difference]:
    """Compares kind, pixels, times and sound of one file."""
    kind = expected_kind(path)
    try:
        got = media_kind(path)
    except MediaError as error:
        if kind is not None:
            yield Difference(path, "kind", kind, error)
        return
    if kind is None and got == "image" and _pillow_picture(path) is not None:
        return  # a format that ffprobe does not know
    if kind != got:
        yield Difference(path, "kind", kind or "a refusal", got)
    if kind == "image":
        yield from _picture_differences(path)
    if kind == "video":
        yield from _video_differences(path)
    if kind in ("video", "audio") and _streams(path, "a"):
        yield from _sound_differences(path)


def _is_clean(path: Path) -> bool:
    """Whether ffmpeg decodes all of the file without a complaint."""
    return not _run("ffmpeg", "-v", "error", "-i", f"file:{path}", "-f", "null", "-")[1]


def _run(*command: str) -> tuple[bytes, str]:
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout, done.stderr.decode(errors="replace").strip()


def _probe(path: Path, *options: str) -> dict[str, Any]:
    stdout, _ = _run("ffprobe", "-v", "quiet", *options, "-of", "json", f"file:{path}")
    try:
        return json.loads(stdout.decode(errors="replace"))
    except json.JSONDecodeError:  # what ffprobe begins to write before it gives up
        return {}


def _streams(path: Path, letter: str) -> list[dict[str, Any]]:
    """Of one type; V are videos without covers."""
    return _probe(path, "-select_streams", letter, "-show_streams").get("streams", [])


@functools.cache
def _chosen(path: Path, letter: str) -> str:
    """The index of the stream that a player takes: the default one, else the largest, else the first."""

    def rank(stream: dict[str, Any]) -> tuple[int, int]:
        size = stream.get("channels", 0) if letter == "a" else stream.get("width", 0) * stream.get("height", 0)
        return stream["disposition"]["default"], size

    streams = sorted(_streams(path, letter), key=rank, reverse=True)
    return str(streams[0]["index"]) if streams else letter


def expected_kind(path: Path) -> str | None:
    """By ffprobe; None when it finds neither picture nor sound, as in text."""
    probe = _probe(path, "-show_format", "-show_streams")
    name = probe.get("format", {}).get("format_name", "")
    if name == "" or name in MARKLESS or not probe.get("streams"):
        return None
    brand = probe["format"].get("tags", {}).get("major_brand", "")
    if name in STILLS:
        return "image" if _frames(path, "V", "pts") else None
    if brand in ("heic", "heix", "mif1", "avif"):
        return "image"
    if name in ("gif", "apng") or name.endswith("_pipe"):
        return "video" if len(_frames(path, "V", "pts")) > 1 else "image"
    if _streams(path, "V"):
        return "video"
    return "audio" if _streams(path, "a") else None


def _frames(path: Path, letter: str, *entries: str) -> list[dict[str, Any]]:
    shown = "frame=" + ",".join(entries)
    options = ("-select_streams", _chosen(path, letter), "-show_frames", "-show_entries", shown)
    return _probe(path, *options).get("frames", [])


def _frame_times(path: Path, letter: str) -> list[float | None]:
    name = _probe(path, "-show_format")["format"]["format_name"]
    if name == "avi" and letter == "V":  # whose frames are shown at their places in the file
        shown = ("-show_packets", "-show_entries", "packet=dts_time,size")
        packets = _probe(path, "-select_streams", _chosen(path, letter), *shown).get("packets", [])
        return sorted(float(packet["dts_time"]) for packet in packets if int(packet["size"]))
    return [_number(f.get(BEST_TIME)) for f in _frames(path, letter, BEST_TIME)]


def _number(text: str | None) -> float | None:
    return None if text in (None, "N/A") else float(text)


def _video_differences(path: Path) -> Iterator[Difference]:
    choices: list[FrameChoice] = []

    def choose(info: VideoInfo) -> tuple[int, ...]:
        choices.append(choose_frames(info, MediaOptions()))
        return choices[-1].indices

    try:
        frames, info = read_video(path, choose)
    except MediaError as error:
        if _is_clean(path):
            yield Difference(path, "frames", "what ffmpeg decodes", error)
        return
    choice = choose_frames(info, MediaOptions())
    wanted = set(choice.indices)
    count, pictures = _ffmpeg_frames(path, wanted, frames.shape[1:])
    if count != info.num_frames:
        yield Difference(path, "number of frames", count, info.num_frames)
        return
    offs = [np.abs(f.astype(int) - pictures[i]).mean() for f, i in zip(frames, choice.indices, strict=True)]
    worst = int(np.argmax(offs))
    if offs[worst] > MAX_LEVELS:
        what = f"mean difference of frame {choice.indices[worst]}"
        yield Difference(path, what, f"at most {MAX_LEVELS} levels", f"{offs[worst]:.3f}")
    times = _frame_times(path, "V")
    if None not in times and len(times) == count > 1:
        yield from _time_differences(path, _continuous(np.array(times, float)), info, choice)


def _continuous(times: np.ndarray) -> np.ndarray:
    """Seconds after the first, ascending; a clock that starts anew goes on where it was."""
    steps = np.diff(times)
    steps[steps < -RESTART_SECONDS] = np.median(steps)
    return np.maximum.accumulate(np.concatenate([[0.0], np.cumsum(steps)]))


def _time_differences(path: Path, times: np.ndarray, info: VideoInfo, choice: FrameChoice) -> Iterator[Difference]:
    """Each sampled frame is the one on the screen at its time, and the times are spread over the clip."""
    interval = float(np.median(np.diff(times)))
    last = float(_frames(path, "V", "pkt_duration_time")[-1].get("pkt_duration_time") or interval)
    seconds = float(times[-1]) + max(last, interval)
    if not times[-1] <= info.seconds + interval / 2 or info.seconds > seconds + 1.5 * interval:
        yield Difference(path, "seconds", f"{seconds:.3f}", f"{info.seconds:.3f}")
    ends = [*times[1:], seconds]
    off = max(max(times[i] - t, t - ends[i]) for i, t in zip(choice.indices, choice.seconds, strict=True))
    if off > interval / 2 + MAX_SHIFT_SECONDS:
        yield Difference(path, "times of sampled frames", f"within {interval / 2:.3f} s", f"{off:.3f} s off")
    steps = np.diff(choice.seconds)
    if len(steps) and np.ptp(steps) > 2 * interval + MAX_SHIFT_SECONDS:
        yield Difference(path, "steps between sampled frames", "even ones", f"{steps.min():.3f} to {steps.max():.3f} s")
    if choice.seconds[-1] < seconds - last - 1.5 * interval:
        yield Difference(
            path, "time of the last sampled frame", f"about {seconds:.3f} s", f"{choice.seconds[-1]:.3f} s"
        )


def _ffmpeg_frames(path: Path, wanted: set[int], shape: tuple[int, ...]) -> tuple[int, dict[int, np.ndarray]]:
    """The number of frames that ffmpeg shows, and those that are wanted."""
    command = [
        "ffmpeg",
        "-v",
        "quiet",
        "-i",
        f"file:{path}",
        "-map",
        f"0:{_chosen(path, 'V')}",
        "-vsync",
        "passthrough",
    ]
    pictures, size, count = {}, int(np.prod(shape)), 0
    with subprocess.Popen([*command, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(size)) == size:
            if count in wanted:
                pictures[count] = np.frombuffer(data, np.uint8).reshape(shape)
            count += 1
    return count, pictures


def _picture_differences(path: Path) -> Iterator[Difference]:
    reference = _pillow_picture(path)
    if reference is None:
        return
    mode, orientation, pillow = reference
    expected = None if mode in FOREIGN_MODES else _ffmpeg_picture(path, orientation)
    try:
        got = read_image(path)
    except MediaError as error:
        yield Difference(path, "picture", f"{pillow.shape[1]} x {pillow.shape[0]} pixels", error)
        return
    if got.shape != pillow.shape:
        yield Difference(path, "height, width and channels", pillow.shape, got.shape)
        return
    if expected is None or expected.shape != pillow.shape:  # an icon of several sizes, for one
        if mode.startswith(("I", *FOREIGN_MODES)):  # which Pillow clips or leaves without a profile
            return
        expected = pillow
    off = float(np.abs(got.astype(int) - expected).mean())
    if off > MAX_PICTURE_LEVELS:
        yield Difference(path, "mean difference of the picture", f"at most {MAX_PICTURE_LEVELS} levels", f"{off:.3f}")


def _pillow_picture(path: Path) -> tuple[str, int, np.ndarray] | None:
    """Mode, EXIF's orientation, and the picture upright on white; None where Pillow knows no such picture."""
    try:
        image = Image.open(io.BytesIO(path.read_bytes()))
        orientation = image.getexif().get(ORIENTATION, 1)
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    except Exception:  # noqa: BLE001 - damaged ones raise whatever their parser does
        return None
    return image.mode, orientation, _on_white(pixels)


def _ffmpeg_picture(path: Path, orientation: int) -> np.ndarray | None:
    """uint8 [height, width, 3] of the first picture, upright on white; None where ffmpeg does not decode it."""
    streams = _streams(path, "v")
    if not streams or not streams[0].get("width"):
        return None
    command = ("ffmpeg", "-v", "quiet", "-noautorotate", "-i", f"file:{path}", "-map", "0:v:0", "-frames:v", "1")
    data, _ = _run(*command, "-pix_fmt", "rgba", "-f", "rawvideo", "-")
    shape = streams[0]["height"], streams[0]["width"], 4
    if len(data) != np.prod(shape):
        return None
    return _turned(_on_white(np.frombuffer(data, np.uint8).reshape(shape)), orientation)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    opacity = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF says which sides of the stored picture are its top and its left."""
    if orientation in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return picture[::down, ::across]


def _sound_differences(path: Path) -> Iterator[Difference]:
    for sync in ("clock", "published"):
        try:
            expected, changes, restarts = _ffmpeg_sound(path, clocked=sync == "clock")
        except soundfile.LibsndfileError:
            return  # ffmpeg decodes nothing either
        try:
            got = read_audio(path, sync=sync)
        except MediaError as error:
            if len(expected) and _is_clean(path):
                yield Difference(path, f"sound ({sync})", f"{len(expected) / SAMPLE_RATE:.3f} s", error)
            return
        slack = 2 + changes + SAMPLE_RATE * (MAX_SHIFT_SECONDS * (sync == "clock") + restarts * RESTART_SLACK_SECONDS)
        if abs(len(got) - len(expected)) > slack:
            yield Difference(path, f"samples ({sync})", len(expected), len(got))
            continue
        size = min(len(got), len(expected))
        off = float(np.abs(got[:size] - expected[:size]).mean())
        limit = min(MAX_LOUDNESS, ROUNDING + MAX_SHARE * float(np.abs(expected).mean()))
        if off > limit and sync == "clock":  # half a sample may be rounded either way
            nudged = [_ffmpeg_sound(path, clocked=True, nudge=nudge)[0][:size] for nudge in (-0.5, 0.5)]
            off = min(float(np.abs(got[: len(other)] - other).mean()) for other in nudged)
        if restarts:
            continue
        if changes:  # ffmpeg weighs channels otherwise than by their mean
            same = float(np.corrcoef(got[:size], expected[:size])[0, 1])
            if not same > 0.9:
                yield Difference(path, f"sound ({sync})", "correlation above 0.9", f"{same:.3f}")
        elif off > limit:
            yield Difference(path, f"mean difference of sound ({sync})", f"at most {limit:.6f}", f"{off:.6f}")


def _ffmpeg_sound(path: Path, *, clocked: bool, nudge: float = 0.0) -> tuple[np.ndarray, int, int]:
    """Mono at 16 kHz as ffmpeg decodes it, and how often its format changes and its clock starts anew.

    Args:
      clocked: whether each frame is put at its time.
      nudge: samples by which the picture is thought later.
    """
    with tempfile.TemporaryDirectory() as folder:
        wav = f"{folder}/sound.wav"
        _run("ffmpeg", "-v", "quiet", "-i", f"file:{path}", "-map", f"0:{_chosen(path, 'a')}", "-c:a", "pcm_f32le", wav)
        samples, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    frames = _frames(path, "a", BEST_TIME, "nb_samples", "channels")
    changes = sum(a != b for a, b in itertools.pairwise(frame.get("channels") for frame in frames))
    sizes = [int(frame["nb_samples"]) for frame in frames]
    changes += sum(sizes) != len(mono)  # of the rate, which ffprobe does not say
    times = [_number(frame.get(BEST_TIME)) for frame in frames]
    known = [time for time in times if time is not None]
    restarts = sum(b < a - RESTART_SECONDS for a, b in itertools.pairwise(known))
    name = _probe(path, "-show_format")["format"]["format_name"]
    if clocked and not changes and name not in BARE:
        mono = _placed(path, mono, rate, sizes, times, nudge)
    sound = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ") if rate != SAMPLE_RATE else mono
    return sound, changes, restarts


def _placed(
    path: Path, mono: np.ndarray, rate: int, sizes: list[int], times: list[float | None], nudge: float
) -> np.ndarray:
    """The samples on the clock of the picture, or of the sound itself where there is none."""
    first = next((time for time in times if time is not None), None)
    if first is None:
        return mono
    pictures = [t for t in _frame_times(path, "V") if t is not None] if _streams(path, "V") else []
    origin = min(pictures, default=first)
    if abs(first - origin) < GAP_SECONDS / 2:
        origin = first
    else:
        origin += nudge / rate
    blocks: list[np.ndarray] = []
    begin = position = round((first - origin) * rate)  # where the next sample comes, in samples after the origin
    start = restarted = 0
    for time, size in zip(times, sizes, strict=True):
        target = position if time is None else round((time - origin) * rate) + restarted
        if target < position - RESTART_SECONDS * rate:  # a clock that starts anew
            restarted, target = restarted + position - target, position
        block, start = mono[start : start + size], start + size
        if abs(target - position) > GAP_SECONDS * rate:
            blocks.append(np.zeros(max(target - position, 0), np.float32))
            block = block[max(position - target, 0) :]
            position = max(target, position)
        blocks.append(block)
        position += len(block)
    placed = np.concatenate(blocks)
    return np.pad(placed, (begin, 0)) if begin > 0 else placed[-begin:]
