"""Decoding: sound of any rate and channel count, upright pictures, and truncated or foreign files."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avjax.media import sound as sound_module
from avjax.media.container import frame_seconds, plain_reason
from avjax.media.decode import has_sound, media_kind, read_audio, read_frames, read_image, read_video, video_info
from avjax.media.errors import MediaError

RATE = 16_000


def sine(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def assert_sine(samples: np.ndarray, frequency: float, seconds: float, amplitude: float, *, slack: int = 1) -> None:
    """Length, pitch and loudness, away from the filter's edges."""
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - seconds * RATE) <= slack
    middle = samples[len(samples) // 4 :][: RATE // 2]  # half a second: bins of 2 Hz
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * RATE / len(middle) == frequency
    assert math.isclose(np.sqrt(2 * np.mean(middle**2)), amplitude, rel_tol=0.02)


@pytest.mark.parametrize("extension", ["wav", "flac"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 6)])
def test_rates_and_channels(tmp_path: Path, extension: str, rate: int, channels: int):
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, np.tile(sine(440, 1.5, rate)[:, None], (1, channels)), rate)
    assert_sine(read_audio(path), 440, 1.5, 0.5)


def test_channels_are_averaged(tmp_path: Path):
    left = sine(440, 1.5, 44_100, 0.8)
    soundfile.write(tmp_path / "left.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100)
    assert_sine(read_audio(tmp_path / "left.wav"), 440, 1.5, 0.4)
    soundfile.write(tmp_path / "opposed.wav", np.stack([left, -left], axis=1), 44_100)
    assert np.abs(read_audio(tmp_path / "opposed.wav")).max() <= 1e-3


def test_16_khz_mono_is_left_as_it_is(tmp_path: Path):
    samples = sine(440, 0.5, RATE)
    soundfile.write(tmp_path / "tone.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "tone.wav"), samples)


def test_sound_above_8_khz_is_filtered_out(tmp_path: Path):
    soundfile.write(tmp_path / "high.wav", sine(12_000, 1.0, 48_000), 48_000)
    inner = read_audio(tmp_path / "high.wav")[1000:-1000]
    assert np.abs(inner).max() <= 1e-3, "it must not fold down to 4 kHz"


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "stereo"), (48_000, "mono"), (22_050, "mono")])
def test_aac_of_an_mp4(tmp_path: Path, rate: int, layout: str):
    path = tmp_path / "tone.mp4"
    write_aac(path, sine(440, 1.5, rate), rate, layout)
    # AAC comes in packets of 1,024 samples; the encoder adds at most two of them.
    assert_sine(read_audio(path), 440, 1.5, 0.5, slack=math.ceil(2 * 1024 * RATE / rate))


def write_aac(path: Path, samples: np.ndarray, rate: int, layout: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout, bit_rate=192_000)
        planes = np.tile(samples, (2 if layout == "stereo" else 1, 1))
        for start in range(0, len(samples), 1024):
            block = np.ascontiguousarray(planes[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(path: Path, frames: np.ndarray, **options: str) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_chosen_frames(tmp_path: Path):
    grey = np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    write_video(tmp_path / "steps.mp4", np.broadcast_to(grey, (12, 64, 96, 3)))
    info = video_info(tmp_path / "steps.mp4")
    assert (info.num_frames, info.frames_per_second, info.seconds) == (12, 10.0, 1.2)
    frames, seen = read_frames(tmp_path / "steps.mp4", lambda n: [0, 5, n - 1], 12)
    assert frames.shape == (3, 64, 96, 3) and frames.dtype == np.uint8 and seen == 12
    assert np.abs(frames.mean(axis=(1, 2, 3)) - [0, 100, 220]).max() < 5


def test_fewer_frames_than_believed_are_chosen_again(tmp_path: Path):
    write_video(tmp_path / "short.mp4", np.full((5, 64, 64, 3), 90, np.uint8))
    frames, seen = read_frames(tmp_path / "short.mp4", lambda n: [0, n - 1], 9)
    assert len(frames) == 2 and seen == 5


ROTATIONS = {  # the display matrix (a, b, c, d) of ISO 14496-12: x' = a x + c y, y' = b x + d y, y pointing down
    "none": ((1, 0, 0, 1), "top left"),
    "quarter turn clockwise": ((0, 1, -1, 0), "top right"),
    "half turn": ((-1, 0, 0, -1), "bottom right"),
    "quarter turn anticlockwise": ((0, -1, 1, 0), "bottom left"),
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotated_video_comes_out_upright(tmp_path: Path, name: str):
    """A phone stores the turn in the track header. A bright corner tells which way up the frame is."""
    (a, b, c, d), corner = ROTATIONS[name]
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :32, :48] = 220
    path = tmp_path / "turned.mp4"
    write_video(path, frames)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    matrix = [v << 16 for v in (a, b)] + [0] + [v << 16 for v in (c, d)] + [0, 0, 0, 1 << 30]
    data[header + 44 : header + 80] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    got = read_frames(path, lambda n: [0], 3)[0][0]
    height, width = (96, 64) if "quarter" in name else (64, 96)
    assert got.shape == (height, width, 3)
    means = {
        f"{row} {column}": got[y : y + height // 2, x : x + width // 2].mean()
        for row, y in (("top", 0), ("bottom", height // 2))
        for column, x in (("left", 0), ("right", width // 2))
    }
    assert means.pop(corner) > 200
    assert max(means.values()) < 20


def test_image_modes(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(pixels[..., :1], 3, axis=2))
    clear = np.concatenate([pixels, np.zeros((9, 7, 1), np.uint8)], axis=2)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all(), "what is transparent is white"
    turn = Image.Exif()
    turn[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turn)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


READERS: dict[str, Callable[[Path], object]] = {"video": video_info, "audio": read_audio, "image": read_image}


def assert_refused(read: Callable[[Path], object], path: Path, *words: str) -> None:
    """A MediaError, which is a ValueError, that names the file, the trouble and a next step."""
    with pytest.raises(MediaError) as refused:
        read(path)
    message = str(refused.value)
    for word in (str(path), *words):
        assert word in message
    assert any(
        step in message for step in ("check", "copy", "re-encode", "choose", "convert", "pass", "repair", "save")
    )


@pytest.mark.parametrize("kind", READERS)
def test_missing_file(tmp_path: Path, kind: str):
    assert_refused(READERS[kind], tmp_path / "absent.mp4", "no such file")
    assert_refused(READERS[kind], tmp_path, "expected a file, got a directory")
    assert_refused(READERS[kind], Path("/dev/null"), "expected a file, got a device")


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"This is text, whatever its name says.\n" * 40])
def test_a_file_that_is_no_media(tmp_path: Path, kind: str, content: bytes):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    assert_refused(READERS[kind], path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.97])
def test_truncated_mp4_with_its_index_last(clip: Path, tmp_path: Path, share: float):
    data = clip.read_bytes()
    assert data.index(b"moov") > data.index(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
    assert_refused(video_info, tmp_path / "cut.mp4")
    assert_refused(read_audio, tmp_path / "cut.mp4")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_truncated_mp4_with_its_index_first(clip: Path, tmp_path: Path, share: float):
    """Such a file opens well; only its end is missing."""
    with (
        av.open(str(clip)) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert video_info(tmp_path / "fast.mp4").num_frames == 40
    (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
    assert_refused(video_info, tmp_path / "cut.mp4", "truncated")
    assert_refused(read_audio, tmp_path / "cut.mp4", "truncated")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_sound(tmp_path: Path, extension: str, share: float):
    whole, cut = tmp_path / f"whole.{extension}", tmp_path / f"cut.{extension}"
    soundfile.write(whole, sine(440, 2.0, 24_000), 24_000)
    assert len(read_audio(whole)) == 2 * RATE
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    assert_refused(read_audio, cut)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_of_unannounced_length(tmp_path: Path, size: int):
    """What a program writes that pipes its sound and cannot go back to the header."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, sine(440, 1.5, RATE), RATE)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", size)
    if size:
        data[40:44] = struct.pack("<I", size)
    path.write_bytes(data)
    assert_sine(read_audio(path), 440, 1.5, 0.5)


def test_stream_of_the_other_kind(tmp_path: Path):
    soundfile.write(tmp_path / "tone.wav", sine(440, 0.5, RATE), RATE)
    assert_refused(video_info, tmp_path / "tone.wav", "video stream", "audio=")
    write_video(tmp_path / "silent.mp4", np.zeros((4, 64, 64, 3), np.uint8))
    assert_refused(read_audio, tmp_path / "silent.mp4", "audio stream", "audio=None")


def test_video_without_frames(tmp_path: Path):
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    assert_refused(video_info, tmp_path / "none.mkv")


def test_a_track_without_packets_is_no_sound(clip: Path, tmp_path: Path):
    assert has_sound(clip)
    with av.open(str(clip)) as source, av.open(str(tmp_path / "silent.mkv"), "w") as target:
        copies: dict[str, Any] = {stream.type: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copies["video"]
                target.mux(packet)
    with av.open(str(tmp_path / "silent.mkv")) as container:
        assert container.streams.audio
    assert not has_sound(tmp_path / "silent.mkv")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_that_is_not_finite(tmp_path: Path, value: float):
    samples = sine(440, 0.5, RATE)
    samples[[7, 4000]] = value
    soundfile.write(tmp_path / "broken.wav", samples, RATE, subtype="FLOAT")
    assert_refused(read_audio, tmp_path / "broken.wav", "2 NaN or infinite")


def test_empty_sound(tmp_path: Path):
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2), np.float32), RATE)
    assert_refused(read_audio, tmp_path / "empty.wav", "empty", "audio=None")


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_truncated_matroska(clip: Path, tmp_path: Path, share: float):
    """It counts no frames, but its header says how long it is."""
    whole = tmp_path / "whole.mkv"
    with av.open(str(clip)) as source, av.open(str(whole), "w") as target:
        streams = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                target.mux(packet)
    assert video_info(whole).num_frames == 40
    assert len(read_audio(whole)) >= 4 * RATE - 1
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    for read in (video_info, read_audio):
        with pytest.raises(MediaError, match=r"cut\.mkv: .*truncated"):
            read(cut)


def test_damaged_images_are_refused_whatever_their_parser_raises(tmp_path: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    data = bytearray((tmp_path / "whole.png").read_bytes())
    at = data.index(b"IDAT")
    data[at - 4 : at + 4] = b"\xff\xff\xff\xff\x00\x01\x02\x03"  # a length and a kind that no chunk has
    (tmp_path / "broken.png").write_bytes(data)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    for name in ("broken.png", "huge.png"):
        with pytest.raises(MediaError, match=f"{name}: expected an image"):
            read_image(tmp_path / name)


def test_sounds_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A damaged header may announce more samples than there is memory for."""
    monkeypatch.setattr(sound_module, "BLOCK", 1000)
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def recorded(self: soundfile.SoundFile, frames: int, **settings: str) -> np.ndarray:
        asked.append(frames)
        return read(self, frames, **settings)

    monkeypatch.setattr(soundfile.SoundFile, "read", recorded)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2500, 2)).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "sound.wav"), samples.mean(axis=1))
    assert asked == [1000] * 4


TEXTS = {
    "readme.nfo": b"hello\n",
    "picture.png": b"hello",
    "picture.jpg": "caf\u00e9 au lait\n".encode(),
    "letter.jpg": "caf\u00e9, caf\u00e9, caf\u00e9 au lait\n".encode("latin-1"),
    "wide.ans": "hello, how are you?\n".encode("utf-16"),
    "long.diz": "\u732b\u304c\u5bdd\u3066\u3044\u308b\u3002".encode() * 500,
    "clip.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "sound.wav": b"<html><body>404 Not Found</body></html>",
    "subtitles.srt": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
    "art.asc": b"\x1b[31mred\x1b[0m\r\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_no_medium(tmp_path: Path, name: str):
    """libav takes a terminal's text for a film, and anything for what its name says."""
    path = tmp_path / name
    path.write_bytes(TEXTS[name])
    for read in (media_kind, read_audio, video_info, lambda path: read_video(path, lambda info: [0])):
        with pytest.raises(MediaError, match=f"{name}: expected a picture, a video or a sound, got text"):
            read(path)


@pytest.mark.parametrize(
    "name", ["x.raw", "x.jpg", "x.png", "x.yuv", "x.sw", "x.bin", "x.adf", "x.idf", "x.xb", "x.nfo"]
)
def test_bytes_without_a_mark(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes())
    for read in (media_kind, read_audio, lambda path: read_video(path, lambda info: [0])):
        with pytest.raises(MediaError, match=f"{name}: expected a"):
            read(path)


def test_films_whose_header_is_text(tmp_path: Path):
    header, frame = b"YUV4MPEG2 W64 H48 F10:1 Ip A1:1 C420jpeg\n", b"FRAME\n" + b"d" * (64 * 48 * 3 // 2)
    (tmp_path / "x.y4m").write_bytes(header + 3 * frame)
    assert media_kind(tmp_path / "x.y4m") == "video"
    assert video_info(tmp_path / "x.y4m").num_frames == 3


def test_packets_whose_damage_has_a_number_alone():
    class NumberedError(OSError):
        strerror = "Error number -50531338 occurred"

    assert plain_reason(NumberedError()) == "data that cannot be decoded"
    assert plain_reason(ValueError("no such layout")) == "no such layout"


def test_times_that_lost_their_sign():
    """Some films that were cut begin before 0; libav then gives their times modulo a power of two."""
    stream = SimpleNamespace(time_base=Fraction(1, 25))
    times = [frame_seconds(SimpleNamespace(pts=2**58 + ticks, dts=None), stream) for ticks in (-9, 0, 10)]
    assert times == pytest.approx([-0.36, 0.0, 0.4])
    assert frame_seconds(SimpleNamespace(pts=3 * 2**57, dts=None), stream) is None
    assert frame_seconds(SimpleNamespace(pts=25 * 1_700_000_000, dts=None), stream) == 1.7e9
