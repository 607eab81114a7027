"""Pictures by their times, of every pixel format, and of streams that change."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

import avjax
from avjax.media.decode import media_kind, read_frames, read_video, video_info
from avjax.media.errors import MediaError
from avjax.media.features import video_features
from avjax.media.frames import choose_frames, sample_frames, spread_frames
from avjax.media.options import MediaOptions
from avjax.media.video import RgbConverter, VideoInfo, upright

FIXTURES = Path(__file__).parent / "fixtures"
HEIGHT, WIDTH = 48, 64


def write_pictures(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "mjpeg",
    pixels: str = "yuvj420p",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    **options: str,
) -> None:
    """Grey pictures, each three levels lighter than the one before, at the given seconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        (stream.height, stream.width), stream.pix_fmt = size, pixels
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 + 3 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbers(frames: np.ndarray) -> np.ndarray:
    """Which picture each frame is, by its grey."""
    return np.round((frames.mean(axis=(1, 2, 3)) - 10) / 3).astype(int)


def sampled(path: Path, options: MediaOptions) -> tuple[np.ndarray, VideoInfo, tuple[float, ...]]:
    frames, info = read_video(path, lambda info: choose_frames(info, options).indices)
    return numbers(frames), info, choose_frames(info, options).seconds


UNEVEN = [*(i / 30 for i in range(60)), *(2.0 + i for i in range(20))]  # 22 s, of which the last one is a guess


@pytest.mark.parametrize("extension", ["mkv", "mov"])
@pytest.mark.parametrize("start", [0.0, 5.0])
def test_uneven_frames_are_sampled_by_time(omni_model: avjax.Model, tmp_path: Path, extension: str, start: float):
    path = tmp_path / f"x.{extension}"
    write_pictures(path, [start + time for time in UNEVEN])
    shown, info, seconds = sampled(path, MediaOptions())
    assert info.num_frames == 80 and 21.0 < info.seconds <= 22.1
    assert len(shown) in (42, 44)
    for picture, second in zip(shown, seconds, strict=True):
        ends = [*UNEVEN[1:], np.inf]
        assert UNEVEN[picture] - 0.002 <= second < ends[picture] + 0.002
    assert np.ptp(np.diff(seconds)) < 1e-6 and seconds[0] == 0.0
    features, rate = video_features(path, omni_model.config.vision, MediaOptions())
    assert features.step_seconds == pytest.approx(seconds[::2])
    assert rate == pytest.approx(2.0, abs=0.1)


def test_bounds_hold_for_uneven_frames(tmp_path: Path):
    write_pictures(tmp_path / "x.mkv", UNEVEN)
    for options, count in ((MediaOptions(max_frames=9), 8), (MediaOptions(fps=0.01, min_frames=5), 6)):
        assert len(sampled(tmp_path / "x.mkv", options)[0]) == count


@pytest.mark.parametrize(("rate", "extension"), [(10, "mkv"), (30, "mkv"), (10, "mov"), (24000 / 1001, "mkv")])
def test_even_frames_keep_the_published_rule(tmp_path: Path, rate: float, extension: str):
    """Containers that round times to milliseconds are even too."""
    write_pictures(tmp_path / f"x.{extension}", [0.7 + i / rate for i in range(50)])
    info = video_info(tmp_path / f"x.{extension}")
    assert info.times is None
    assert info.frames_per_second == pytest.approx(rate, rel=2e-3)
    assert list(choose_frames(info, MediaOptions()).indices) == sample_frames(50, rate, MediaOptions())
    assert info.seconds == pytest.approx(50 / rate, rel=2e-3)


def test_few_frames(tmp_path: Path):
    for count in (1, 2, 3):
        write_pictures(tmp_path / f"{count}.mkv", [i / 5 for i in range(count)])
        shown, info, seconds = sampled(tmp_path / f"{count}.mkv", MediaOptions())
        assert info.num_frames == count
        assert shown[0] == 0 and seconds[0] == 0 and len(shown) in (1, 2)


def test_frames_that_an_avi_drops(tmp_path: Path):
    """Empty packets stand for them."""
    times = [i / 10 for i in range(40) if i not in (17, 18, 19)]
    with av.open(str(tmp_path / "x.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 10 + 3 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(10 * time), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown, info, seconds = sampled(tmp_path / "x.avi", MediaOptions())
    assert (info.num_frames, info.seconds) == (37, pytest.approx(4.0, abs=0.11))
    for picture, second in zip(shown, seconds, strict=True):
        assert times[picture] - 1e-6 <= second < [*times[1:], 9.0][picture]
    data = (tmp_path / "x.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.avi: .*truncated"):
        video_info(tmp_path / "cut.avi")


def test_the_frame_size_changes(tmp_path: Path):
    """Later frames are scaled to the first one's size."""
    for name, size in (("a", (HEIGHT, WIDTH)), ("b", (96, 160))):
        write_pictures(
            tmp_path / f"{name}.mjpeg", [i / 10 for i in range(5)], codec="mjpeg", pixels="yuvj420p", size=size
        )
    data = b"".join((tmp_path / f"{name}.mjpeg").read_bytes() for name in "ab")
    (tmp_path / "both.mjpeg").write_bytes(data)
    frames, seen = read_frames(tmp_path / "both.mjpeg", lambda n: range(n), 10)
    assert frames.shape == (10, HEIGHT, WIDTH, 3) and seen == 10
    np.testing.assert_array_equal(numbers(frames), [0, 1, 2, 3, 4] * 2)


def test_an_edit_list_hides_frames(tmp_path: Path):
    """What it leaves out is neither shown nor missed."""
    path = tmp_path / "x.mp4"
    write_pictures(path, [i / 10 for i in range(40)], codec="libx264", pixels="yuv420p")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst")
    entries, duration, start = struct_of(data, at)
    assert entries == 1 and duration == pytest.approx(4000, abs=110)
    data[at + 12 : at + 16] = (2000).to_bytes(4, "big")  # two of four seconds
    path.write_bytes(data)
    shown, info, _ = sampled(path, MediaOptions())
    assert 20 <= info.num_frames <= 22
    assert shown[0] == 0 and shown[-1] <= 21
    assert start >= 0


def struct_of(data: bytes, at: int) -> tuple[int, int, int]:
    """Number of entries of an edit list, and the first one's duration and start."""
    return tuple(int.from_bytes(data[at + skip : at + skip + 4], "big") for skip in (8, 12, 16))


@pytest.mark.parametrize("name", ["ten_bit.mp4", "interlaced.mkv"])
def test_conversion_to_rgb(name: str):
    """As `ffmpeg -i NAME -vsync passthrough -pix_fmt rgb24` of ffmpeg 5.1 converts them, which the fixture holds."""
    expected = np.load((FIXTURES / name).with_suffix(".npz"))["rgb"]
    frames, _ = read_frames(FIXTURES / name, lambda n: range(n), len(expected))
    assert np.abs(frames.astype(int) - expected).mean() <= 0.5


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_display_matrices(turns: int, mirror: bool):
    """Each pixel goes where the matrix says, shifted into view."""
    quarter = np.array([[0, 1], [-1, 0]])  # rows: where x and y go; a quarter turn clockwise, y pointing down
    turn = np.linalg.matrix_power(quarter, turns) @ (np.diag([-1, 1]) if mirror else np.eye(2, dtype=int))
    matrix = np.zeros((3, 3), np.int32)
    matrix[:2, :2], matrix[2, 2] = turn * 65536, 1 << 30
    picture = np.arange(6 * 3, dtype=np.uint8).reshape(2, 3, 3)
    places = {(x, y): tuple(np.array([x, y]) @ turn) for y in range(2) for x in range(3)}
    left, top = (min(place[axis] for place in places.values()) for axis in (0, 1))
    turned = upright(picture, matrix)
    assert turned.shape == ((3, 2, 3) if turns % 2 else (2, 3, 3))
    for (x, y), (column, row) in places.items():
        np.testing.assert_array_equal(turned[row - top, column - left], picture[y, x])


def test_spread_over_uneven_frames():
    info = VideoInfo(num_frames=4, frames_per_second=0.4, times=(0.0, 1.0, 1.5, 9.0), interval_seconds=1.0)
    choice = spread_frames(info, 4)
    assert choice.seconds == (0.0, 3.0, 6.0, 9.0) and choice.indices == (0, 2, 2, 3)


def test_mpeg_1_is_a_video(tmp_path: Path):
    """Pillow has a parser that takes it for an image."""
    for name in ("x.m1v", "x.mpg", "x.ts"):
        write_pictures_at_25(tmp_path / name)
        assert media_kind(tmp_path / name) == "video"
        assert video_info(tmp_path / name).num_frames == 20
        assert video_info(tmp_path / name).frames_per_second == pytest.approx(25.0, rel=0.02)


def write_pictures_at_25(path: Path) -> None:
    with av.open(str(path), "w", format="mpeg1video" if path.suffix == ".m1v" else None) as container:
        stream = container.add_stream("mpeg1video", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 10 + 3 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def half_transparent() -> np.ndarray:
    """uint8 [16, 32, 4]: colour with opacity rising from left to right."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 32, 4), dtype=np.uint8)
    picture[..., 3] = np.linspace(0, 255, 32).round()
    return picture


def write_raw(path: Path, codec: str, pixel_format: str, picture: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=5)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pixel_format
        frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixel_format)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", ["film.png", "film.mov", "film.mkv"])
def test_what_is_transparent_in_a_film_is_white(tmp_path: Path, name: str):
    picture, path = half_transparent(), tmp_path / name
    if name == "film.png":
        Image.fromarray(picture).save(path, save_all=True, append_images=[Image.fromarray(picture[::-1])])
    else:
        codec, pixel_format = {"film.mov": ("qtrle", "argb"), "film.mkv": ("ffv1", "bgra")}[name]
        write_raw(path, codec, pixel_format, picture)
    opacity = picture[..., 3:] / 255
    expected = picture[..., :3] * opacity + 255 * (1 - opacity)
    frames, _ = read_video(path, lambda info: [0])
    assert frames.shape == (1, 16, 32, 3) and np.abs(frames[0] - expected).max() <= 0.51


def test_what_is_transparent_in_a_gif_is_white(tmp_path: Path):
    clear = Image.new("RGBA", (32, 16), (200, 30, 30, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 16, 16))
    other = Image.new("RGBA", (32, 16), (0, 0, 200, 255))
    clear.save(tmp_path / "film.gif", save_all=True, append_images=[other], duration=200, disposal=2)
    frame = read_video(tmp_path / "film.gif", lambda info: [0])[0][0]
    assert (frame[:, :16] == 255).all() and (frame[:, 16:] == (200, 30, 30)).all()


def test_an_unused_fourth_byte_is_no_opacity(tmp_path: Path):
    picture = half_transparent()
    picture[..., 3] = 0
    write_raw(tmp_path / "screen.avi", "rawvideo", "bgra", picture)
    np.testing.assert_array_equal(read_video(tmp_path / "screen.avi", lambda info: [0])[0][0], picture[..., :3])


@pytest.mark.parametrize(
    ("sizes", "default", "shown"),
    [([(48, 64), (32, 32)], 1, 1), ([(32, 32), (48, 64)], None, 1), ([(32, 32), (32, 32)], None, 0)],
)
def test_the_stream_that_players_show(tmp_path: Path, sizes: list[tuple[int, int]], default: int | None, shown: int):
    """The default one, else the largest, else the first. Each has other frames, and a grey of its own."""
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        streams = [container.add_stream("mjpeg", rate=10) for _ in sizes]
        for i, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            (stream.height, stream.width), stream.pix_fmt = size, "yuvj420p"
            stream.disposition = Disposition.default if i == default else Disposition.dub
        for i, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            for _ in range(5 + i):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 40 + 100 * i, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    frames, info = read_video(tmp_path / "x.mkv", lambda info: [0])
    assert frames.shape[1:3] == sizes[shown] and info.num_frames == 5 + shown
    assert frames.mean() == pytest.approx(40 + 100 * shown, abs=3)


@pytest.mark.parametrize("kind", ["matrix", "primaries", "transfer"])
def test_colours_that_swscale_does_not_know(kind: str):
    """They are shown by the matrix of standard television, as ffmpeg 5 does; 10 is 9 with another curve."""
    values = np.random.default_rng(0).integers(16, 236, (72, 64), np.uint8)

    def rgb(number: int) -> np.ndarray:
        frame = av.VideoFrame.from_ndarray(values, format="yuv420p")
        frame.colorspace = number if kind == "matrix" else 1
        frame.color_primaries = number if kind == "primaries" else 1
        frame.color_trc = number if kind == "transfer" else 1
        return RgbConverter(width=64, height=48)(frame)

    for number in range(20):
        if kind != "matrix":
            np.testing.assert_array_equal(rgb(number), rgb(1))
        elif number in (3, 8, 11, 12, 13, 14, 15, 16, 17):
            np.testing.assert_array_equal(rgb(number), rgb(5))
    if kind == "matrix":
        np.testing.assert_array_equal(rgb(10), rgb(9))
        assert len({rgb(number).tobytes() for number in (1, 4, 5, 7, 9)}) == 5
