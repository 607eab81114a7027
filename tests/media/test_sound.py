"""Sound of every wrapping: channels, lossy formats without a length, changing formats, clocks."""

import io
import json
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from PIL import Image
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.media.decode import media_kind, read_audio, sound_offset_seconds
from avjax.media.errors import MediaError
from avjax.media.options import MediaOptions
from avjax.media.sound import SoundBlock, keep_clock
from tests.tiny_hf import TinyCheckpoint

RATE = 16_000


def tone(seconds: float, rate: int = RATE, frequency: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_sound(
    path: Path, samples: np.ndarray, rate: int, codec: str, sample_format: str, layout: str, **options: str
) -> None:
    """`samples`: [channels, n] for planar formats, [1, n * channels] for packed ones."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = av.AudioLayout(layout).nb_channels
        step = 1024 if sample_format.endswith("p") else 1024 * channels
        for start in range(0, samples.shape[1], step):
            block = np.ascontiguousarray(samples[:, start : start + step])
            frame = av.AudioFrame.from_ndarray(block, format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start * 1024 // step, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_mp3(path: Path, seconds: float, rate: int = 44_100, frequency: float = 440.0, *, xing: bool = False) -> None:
    write_sound(
        path,
        tone(seconds, rate, frequency)[None],
        rate,
        "libmp3lame",
        "fltp",
        "mono",
        write_xing=str(int(xing)),
        id3v2_version="0",
    )


@pytest.mark.parametrize("layout", ["mono", "stereo", "3.0", "5.1", "7.1"])
def test_channels_of_flac_in_matroska(tmp_path: Path, layout: str):
    """Eight planar channels ended the process."""
    channels = av.AudioLayout(layout).nb_channels
    values = np.arange(1, channels + 1) * 1000
    packed = np.tile(values.astype(np.int16), 48_000)[None]
    write_sound(tmp_path / "x.mkv", packed, 48_000, "flac", "s16", layout)
    samples = read_audio(tmp_path / "x.mkv")
    assert len(samples) == RATE
    np.testing.assert_allclose(samples[100:-100], values.mean() / 32768, atol=1e-4)


@pytest.mark.parametrize("channels", [7, 9, 16, 32])
def test_channels_without_a_name(tmp_path: Path, channels: int):
    soundfile.write(tmp_path / "x.wav", np.full((8000, channels), 0.25, np.float32), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav"), np.full(8000, 0.25, np.float32))
    with av.open(str(tmp_path / "x.wav")) as source, av.open(str(tmp_path / "x.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    np.testing.assert_array_equal(read_audio(tmp_path / "x.mkv"), np.full(8000, 0.25, np.float32))


def test_mp3_without_a_length(tmp_path: Path):
    """An estimated length is no reason to refuse what is there, nor to stop before its end."""
    write_mp3(tmp_path / "loud.mp3", 3.0, frequency=3000)
    write_sound(
        tmp_path / "quiet.mp3", np.zeros((1, 44_100), np.float32), 44_100, "libmp3lame", "fltp", "mono", write_xing="0"
    )
    loud, quiet = (len(read_audio(tmp_path / name)) / RATE for name in ("loud.mp3", "quiet.mp3"))
    assert 3.0 <= loud <= 3.1 and 1.0 <= quiet <= 1.1
    with_tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128) + (tmp_path / "loud.mp3").read_bytes()
    (tmp_path / "tag.mp3").write_bytes(with_tag)
    np.testing.assert_array_equal(read_audio(tmp_path / "tag.mp3"), read_audio(tmp_path / "loud.mp3"))


def test_songs_one_after_the_other(tmp_path: Path):
    """The first one's header says how long the first one is."""
    write_mp3(tmp_path / "a.mp3", 2.0, xing=True)
    write_mp3(tmp_path / "b.mp3", 1.5, frequency=880, xing=True)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.mp3", "b.mp3"))
    tag = b"ID3\x03\x00\x00\x00\x00\x01\x00" + bytes(128)
    for between in (b"", tag):
        (tmp_path / "both.mp3").write_bytes(first + between + second)
        samples = read_audio(tmp_path / "both.mp3")
        assert len(samples) == pytest.approx(3.5 * RATE, abs=0.1 * RATE)
        spectrum = np.abs(np.fft.rfft(samples[-RATE // 2 :][: RATE // 4]))
        assert np.argmax(spectrum) * 4 == 880, "the second song is heard"


def test_formats_that_change(tmp_path: Path):
    parts, seconds = [], 0.0
    for i, (rate, layout) in enumerate([(44_100, "mono"), (48_000, "stereo"), (22_050, "mono")]):
        planes = np.tile(tone(1.0, rate), (av.AudioLayout(layout).nb_channels, 1))
        write_sound(tmp_path / f"{i}.aac", planes, rate, "aac", "fltp", layout)
        parts.append((tmp_path / f"{i}.aac").read_bytes())
        seconds += math.ceil(rate / 1024 + 1) * 1024 / rate
    (tmp_path / "all.aac").write_bytes(b"".join(parts))
    samples = read_audio(tmp_path / "all.aac")
    assert len(samples) == pytest.approx(seconds * RATE, abs=0.1 * RATE)
    for second in (0.5, 1.5, 2.6):
        piece = samples[round(second * RATE) :][: RATE // 4]
        assert np.argmax(np.abs(np.fft.rfft(piece))) * 4 == 440
        assert np.sqrt(2 * np.mean(piece**2)) == pytest.approx(0.4, rel=0.05)


def cover_tag(picture: bytes) -> bytes:
    """An ID3 tag with an album's cover."""
    content = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame


def test_a_cover_is_no_video(omni_model: avjax.Model, tmp_path: Path):
    write_mp3(tmp_path / "plain.mp3", 1.0)
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(png, "png")
    (tmp_path / "cover.mp3").write_bytes(cover_tag(png.getvalue()) + (tmp_path / "plain.mp3").read_bytes())
    with av.open(str(tmp_path / "cover.mp3")) as container:
        assert container.streams.video, "the cover is a stream to libav"
    assert media_kind(tmp_path / "cover.mp3") == "audio"
    np.testing.assert_array_equal(read_audio(tmp_path / "cover.mp3"), read_audio(tmp_path / "plain.mp3"))
    with pytest.raises(MediaError, match=r"cover\.mp3: expected a video stream"):
        omni_model.prompt("What?", video=tmp_path / "cover.mp3")


def test_sounds_that_do_not_know_their_length(tmp_path: Path):
    soundfile.write(tmp_path / "whole.flac", tone(2.0), RATE)
    data = bytearray((tmp_path / "whole.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO's number of samples, 36 bits
    data[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(data)
    np.testing.assert_array_equal(read_audio(tmp_path / "piped.flac"), read_audio(tmp_path / "whole.flac"))
    soundfile.write(tmp_path / "whole.wav", tone(2.0), RATE)
    data = bytearray((tmp_path / "whole.wav").read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", 2 * 2 * RATE + 44)  # some programs count the header
    (tmp_path / "counted.wav").write_bytes(data)
    np.testing.assert_array_equal(read_audio(tmp_path / "counted.wav"), read_audio(tmp_path / "whole.wav"))


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_adpcm_is_decoded_by_libav(tmp_path: Path, subtype: str):
    soundfile.write(tmp_path / "x.wav", tone(1.0), RATE, subtype=subtype)
    with av.open(str(tmp_path / "x.wav")) as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    np.testing.assert_array_equal(read_audio(tmp_path / "x.wav"), np.concatenate(frames).astype(np.float32) / 32768)


def test_latin_1_tags(clip: Path, tmp_path: Path):
    with av.open(str(clip)) as source, av.open(str(tmp_path / "utf8.mp4"), "w") as target:
        target.metadata["title"] = "Caf\u00e9"
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    data = (tmp_path / "utf8.mp4").read_bytes()
    assert data.count("Caf\u00e9".encode()) == 1
    (tmp_path / "latin.mp4").write_bytes(data.replace("Caf\u00e9".encode(), "Caf\u00e9\u00e9".encode("latin-1")))
    assert media_kind(tmp_path / "latin.mp4") == "video"
    np.testing.assert_array_equal(read_audio(tmp_path / "latin.mp4"), read_audio(clip))


@pytest.mark.parametrize("name", ["clip:1.mp4", "-i.mp4", "100%d %03d.mp4", "caf\u00e9 \u732b.mp4", "a'b,c;d.mp4"])
def test_names(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip.read_bytes())
    assert media_kind(name) == "video"
    np.testing.assert_array_equal(read_audio(name), read_audio(clip))


@pytest.mark.parametrize(
    "head", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_playlists_are_refused(clip: Path, tmp_path: Path, head: str):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    for name in ("list.mp4", "list.m3u8", "list.ffconcat"):
        (tmp_path / name).write_text(head.format("clip.mp4"))
        for read in (media_kind, read_audio):
            with pytest.raises(MediaError, match=f"{name}: expected a clip, got a playlist"):
                read(tmp_path / name)


def blocks(*times: float | None, size: int = 160) -> list[SoundBlock]:
    """Blocks of 10 ms, the samples of each its number from 1 on."""
    return [SoundBlock(np.full(size, i + 1, np.float32), RATE, time) for i, time in enumerate(times)]


def runs(timed: Sequence[SoundBlock]) -> list[tuple[int, int]]:
    """Value and length of each run of equal samples."""
    samples = np.concatenate([block.samples for block in timed])
    edges = np.flatnonzero(np.diff(samples)) + 1
    return [(int(part[0]), len(part)) for part in np.split(samples, edges)]


def steady(start: float, count: int = 50) -> list[float]:
    return [start + 0.01 * i for i in range(count)]


def test_an_even_clock_changes_nothing():
    assert runs(keep_clock(blocks(*steady(3.0)), None, "x")) == [(i + 1, 160) for i in range(50)]
    assert runs(keep_clock(blocks(*steady(3.0)), 3.004, "x"))[0] == (1, 160), "less than a frame of log-mel"
    assert len(runs(keep_clock(blocks(None, None), 5.0, "x"))) == 2


def test_jitter_changes_nothing():
    times = [t + 0.03 * (i % 3 == 0) for i, t in enumerate(steady(0.0))]
    assert sum(length for _, length in runs(keep_clock(blocks(*times), 0.0, "x"))) in range(50 * 160, 50 * 160 + 600)
    late = [*steady(0.0, 20), 0.9, *steady(0.21, 30)]
    assert len(runs(keep_clock(blocks(*late), 0.0, "x"))) == 51


def test_a_gap_becomes_silence():
    timed = runs(keep_clock(blocks(*steady(0.0), *steady(2.5)), 0.0, "x"))
    assert timed[49:52] == [(50, 160), (0, 2 * RATE), (51, 160)]


def test_what_is_there_twice_is_played_once():
    timed = runs(keep_clock(blocks(*steady(0.0), *steady(0.4)), 0.0, "x"))
    assert timed[49:51] == [(50, 160), (61, 160)]
    assert len(timed) == 90


def test_a_clock_that_starts_anew():
    assert len(runs(keep_clock(blocks(*steady(5.0, 200), *steady(0.0)), 5.0, "x"))) == 250


def test_the_sound_is_put_under_the_picture():
    assert runs(keep_clock(blocks(*steady(2.0)), 0.5, "x"))[:2] == [(0, 24_000), (1, 160)]
    assert runs(keep_clock(blocks(*steady(0.0)), 0.105, "x"))[:2] == [(11, 80), (12, 160)]
    with pytest.raises(MediaError, match="x: the sound ends before the first picture"):
        keep_clock(blocks(*steady(0.0)), 9.0, "x")
    with pytest.raises(MediaError, match=r"x: the sound's clock jumps by .* re-encode"):
        keep_clock(blocks(*steady(0.0), *steady(9000.0)), 0.0, "x")


def write_film(path: Path, sound_times: Sequence[float], *, first_picture: float = 0.0) -> None:
    """Ten frames a second for 3 s, and blocks of 0.1 s of a tone at the given times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round((first_picture + i / 10) * 1000), Fraction(1, 1000)
            video.codec_context.time_base = Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for time in sound_times:
            frame = av.AudioFrame.from_ndarray(np.full((1, RATE // 10), 8192, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, round(time * RATE), Fraction(1, RATE)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def tenths(start: float, count: int) -> list[float]:
    return [start + i / 10 for i in range(count)]


FILMS = {  # times of the sound's blocks, the first picture, and (heard, samples) of what comes out
    "together": (tenths(0, 20), 0.0, [(True, 32_000)]),
    "late": (tenths(2, 10), 0.0, [(False, 32_000), (True, 16_000)]),
    "early": (tenths(0, 20), 0.5, [(True, 24_000)]),
    "gap": ([*tenths(0, 5), *tenths(1.5, 5)], 0.0, [(True, 8000), (False, 16_000), (True, 8000)]),
}


@pytest.mark.parametrize("name", FILMS)
def test_sound_of_a_film(omni_model: avjax.Model, tmp_path: Path, name: str):
    times, first_picture, expected = FILMS[name]
    path = tmp_path / "film.mkv"
    write_film(path, times, first_picture=first_picture)
    samples = read_audio(path)
    edges = np.flatnonzero(np.diff(samples != 0)) + 1
    heard = [(bool(part[0]), len(part)) for part in np.split(samples, edges)]
    assert [on for on, _ in heard] == [on for on, _ in expected]
    assert [size for _, size in heard] == pytest.approx([size for _, size in expected], abs=16)
    assert len(read_audio(path, sync="published")) == 1600 * len(times)
    assert sound_offset_seconds(path) == pytest.approx(times[0] - first_picture, abs=1e-3)
    mel = len(omni_model.prompt("What?", video=path, audio="from_video", sync="published").audio[0].mel)
    assert mel == 10 * len(times)
    assert len(omni_model.prompt("What?", video=path, audio=path).audio[0].mel) == math.ceil(len(samples) / 160)


def test_sync_is_one_of_two():
    with pytest.raises(ValueError, match="expected sync 'clock' or 'published', got 'none'"):
        MediaOptions().override(sync="none")


def test_inspect_says_how_far_a_sound_is_off(omni: TinyCheckpoint, tmp_path: Path):
    lines = {}
    for name in ("together", "late"):
        times, first_picture, _ = FILMS[name]
        write_film(tmp_path / f"{name}.mkv", times, first_picture=first_picture)
        command = ["inspect", str(tmp_path / f"{name}.mkv"), "-m", str(omni.directory)]
        lines[name] = CliRunner().invoke(app, command).stdout
        shown = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
        assert shown["sound_offset_seconds"] == pytest.approx(times[0], abs=1e-3)
    assert "the sound starts 2.00 s after the first picture; see --sync" in lines["late"].replace("\n", " ")
    assert "the sound starts" not in lines["together"]
    command = ["inspect", str(tmp_path / "late.mkv"), "-m", str(omni.directory), "--media", "qwen-omni-utils"]
    shown = CliRunner().invoke(app, command).stdout.replace("\n", " ")
    assert "first picture; --media qwen-omni-utils ignores this offset" in shown and "--sync" not in shown


def write_tracks(path: Path, tracks: Sequence[tuple[float, str, bool]]) -> None:
    """Tracks of sound: each one's frequency, layout and whether it is the default."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout=layout) for _, layout, _ in tracks]
        for stream, (_, _, is_default) in zip(streams, tracks, strict=True):
            stream.disposition = Disposition.default if is_default else Disposition.dub
        for stream, (frequency, layout, _) in zip(streams, tracks, strict=True):
            channels = av.AudioLayout(layout).nb_channels
            values = np.repeat((tone(1.0, frequency=frequency) * 32767).astype(np.int16), channels)[None]
            frame = av.AudioFrame.from_ndarray(values, format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("tracks", "frequency"),
    [
        ([(440.0, "stereo", False), (900.0, "mono", True)], 900),
        ([(440.0, "mono", False), (900.0, "stereo", False)], 900),
        ([(440.0, "mono", True), (900.0, "stereo", True)], 900),
        ([(440.0, "mono", False), (900.0, "mono", False)], 440),
    ],
)
def test_the_track_that_players_play(tmp_path: Path, tracks: list[tuple[float, str, bool]], frequency: float):
    write_tracks(tmp_path / "x.mkv", tracks)
    samples = read_audio(tmp_path / "x.mkv")
    assert np.argmax(np.abs(np.fft.rfft(samples))) == frequency and len(samples) == RATE


def test_jitter_throughout_a_long_sound():
    """An hour's clock that is off everywhere is gone through once."""
    times = [t + 0.05 * (i % 3 == 0) for i, t in enumerate(steady(0.0, 40_000))]
    assert len(keep_clock(blocks(*times, size=160), None, "x")) >= 40_000
