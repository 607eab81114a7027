"""Pictures of videos with the times at which a player shows them, by libav."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avjax.media.container import (
    counts_frames,
    decoded_frames,
    frame_seconds,
    has_clock,
    opened,
    packet_seconds,
    packets,
    video_stream,
)
from avjax.media.errors import MediaError

MAX_RATE = 1000.0  # frames per second; more is a header's clock, no rate
# Matrices that swscale knows, by the number of ISO/IEC 23091-2; the one with constant luminance is read as without it,
# as older versions did, and what remains as when nothing is said: by the matrix of standard television.
MATRICES = {number: number for number in (0, 1, 4, 5, 6, 7, 9)} | {10: 9}
UNSPECIFIED = 2
ADVICE = "re-encode it or choose another clip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video stream holds.

    Attributes:
      num_frames: that a player shows.
      frames_per_second: of all of it.
      times: seconds of each frame after the first one; None where they are even.
      interval_seconds: the median one between two frames.
      last_seconds: how long the file says that the last frame is shown; 0 where it does not.
    """

    num_frames: int
    frames_per_second: float
    times: tuple[float, ...] | None = None
    interval_seconds: float | None = None
    last_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Until the last frame goes."""
        return self.num_frames / self.frames_per_second


def video_info(path: str | Path) -> VideoInfo:
    """The frames of the first video stream that is no cover, without decoding them.

    Raises:
      MediaError: there is no video stream, it is empty, or it ends before its header says.
    """
    with opened(path) as container:
        stream = _video_stream(path, container)
        times: list[float | None] = []
        last_seconds = 0.0
        for packet in packets(path, container, stream):
            if packet.is_discard:  # an edit list hides it
                continue
            times.append(packet_seconds(packet, stream, container) if has_clock(container) else None)
            # Durations are between decoding times; where frames are reordered, the last packet's is the end's.
            last_seconds = float((packet.duration or 0) * stream.time_base)
        if not times:
            raise MediaError(f"{path}: the video stream has no frames; {ADVICE}")
        known = sorted(time for time in times if time is not None)
        return _info(path, stream, known if len(known) == len(times) else times, last_seconds)


def _video_stream(path: str | Path, container: Any) -> Any:
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{path}: expected a video stream, found none; pass an audio file as audio=")
    return stream


def _info(path: str | Path, stream: Any, times: Sequence[float | None], last_seconds: float) -> VideoInfo:
    """Whether the frames come evenly, and at which rate.

    Args:
      times: of the shown frames, ascending; some containers give none.
      last_seconds: how long the last frame is shown; 0 where the file does not say.
    """
    count = len(times)
    known = [time for time in times if time is not None]
    own = stream.codec_context.framerate  # the codec's; without a clock nobody else knows
    headers = [stream.average_rate, stream.guessed_rate]
    rates = [float(r) for r in (headers if known else [own, *headers]) if r and 0 < r <= MAX_RATE]
    if len(known) < count:
        if not rates:
            raise MediaError(f"{path}: the video has neither frame times nor a frame rate; {ADVICE}")
        return VideoInfo(num_frames=count, frames_per_second=rates[0], last_seconds=last_seconds)
    after_first = np.maximum.accumulate(np.asarray(known) - known[0])
    if count > 1 and after_first[-1] > 0:
        rates.append((count - 1) / after_first[-1])
    elif not rates:
        rates = [1 / last_seconds if last_seconds > 0 else 1.0]
    for rate in rates:
        if _is_even(after_first, rate, last_seconds):
            return VideoInfo(num_frames=count, frames_per_second=rate, last_seconds=last_seconds)
    interval = float(np.median(np.diff(after_first)))
    seconds = float(after_first[-1]) + (last_seconds if last_seconds > 0 else interval)
    return VideoInfo(
        num_frames=count,
        frames_per_second=count / seconds,
        times=tuple(after_first.tolist()),
        interval_seconds=interval,
        last_seconds=last_seconds,
    )


def _is_even(times: np.ndarray, rate: float, last_seconds: float) -> bool:
    """Whether each frame comes within half an interval of its turn, and none is held at the end."""
    off = np.abs(times * rate - np.arange(len(times)))
    return float(off.max()) <= 0.5 and (len(times) == 1 or last_seconds * rate <= 1.5)


def read_video(path: str | Path, choose: Callable[[VideoInfo], Sequence[int]]) -> tuple[np.ndarray, VideoInfo]:
    """The chosen frames of the first video stream that is no cover, upright.

    Args:
      choose: frame indices, ascending, some perhaps repeated.

    Returns:
      uint8 [n, height, width, 3], and what the stream really holds.

    Raises:
      MediaError: as `video_info`, or a frame cannot be decoded.
    """
    info = video_info(path)
    wanted = list(choose(info))
    frames, decoded = _decode_frames(path, wanted, info)
    if (indices := list(choose(decoded))) != wanted:
        # Some containers count frames that no decoder shows; choose again among those that exist.
        wanted = indices
        frames, decoded = _decode_frames(path, wanted, info)
    return np.stack([frames[i] for i in wanted]), decoded


def read_frames(path: str | Path, choose: Callable[[int], Sequence[int]], num_frames: int) -> tuple[np.ndarray, int]:
    """The frames that are chosen by their number alone, upright.

    Args:
      choose: frame indices, ascending, given the number of frames.
      num_frames: how many frames the stream is believed to have.

    Returns:
      uint8 [n, height, width, 3] and the number of frames that there really are.
    """
    wanted = list(choose(num_frames))
    frames, info = _decode_frames(path, wanted)
    if info.num_frames < num_frames:
        wanted = list(choose(info.num_frames))
        frames, info = _decode_frames(path, wanted)
    return np.stack([frames[i] for i in wanted]), info.num_frames


def _decode_frames(
    path: str | Path, wanted: Sequence[int], announced: VideoInfo | None = None
) -> tuple[dict[int, np.ndarray], VideoInfo]:
    pictures: dict[int, np.ndarray] = {}
    times: list[float | None] = []
    indices, convert = set(wanted), None
    with opened(path) as container:
        stream = _video_stream(path, container)
        for index, frame in enumerate(decoded_frames(path, container, stream)):
            times.append(frame_seconds(frame, stream) if has_clock(container) else None)
            if convert is None:
                convert = RgbConverter(width=frame.width, height=frame.height)
            if index in indices:
                pictures[index] = convert(frame)
        if not times:
            raise MediaError(f"{path}: no frame could be decoded; {ADVICE}")
        if announced is not None and len(times) == announced.num_frames and counts_frames(container):
            return pictures, announced
        return pictures, _info(path, stream, times, 0.0 if announced is None else announced.last_seconds)


class RgbConverter:
    """Frames of any size and pixel format to upright RGB, as `ffmpeg -pix_fmt rgb24` converts them.

    libav's scale filter knows matrix, range and interlacing of each frame. A frame of another size is scaled to the
    first one's. What is transparent becomes white.
    """

    def __init__(self, *, width: int, height: int):
        self.width, self.height = width, height
        self._graphs: dict[tuple[Any, ...], Any] = {}

    def __call__(self, frame: Any) -> np.ndarray:
        """uint8 [height, width, 3]."""
        frame.colorspace = MATRICES.get(int(frame.colorspace), UNSPECIFIED)
        frame.color_primaries = frame.color_trc = (
            UNSPECIFIED  # which are left alone, but refused where swscale has none
        )
        key = frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range)
        if key not in self._graphs:
            self._graphs = {key: self._graph(*key)}
        graph = self._graphs[key]
        matrix = display_matrix(frame)
        graph.push(frame)
        picture = graph.pull().to_ndarray()
        if picture.shape[2] == 4:
            unused = frame.format.name == "bgra" and _is_opacity_unused(picture)
            picture = picture[..., :3] if unused else over_white(picture)
        return upright(picture, matrix)

    def _graph(self, width: int, height: int, pixel_format: str, colorspace: int, color_range: int) -> Any:
        from av.filter import Graph

        graph = Graph()
        source = graph.add(
            "buffer",
            video_size=f"{width}x{height}",
            pix_fmt=pixel_format,
            time_base="1/90000",
            colorspace=str(colorspace),
            range=str(color_range),
        )
        scale = graph.add("scale", f"w={self.width}:h={self.height}:flags=bicubic")
        rgb = graph.add("format", pix_fmts="rgba" if has_alpha(pixel_format) else "rgb24")
        graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
        return graph


def has_alpha(pixel_format: str) -> bool:
    """Whether pixels have an opacity; those of a palette have it there."""
    from av import VideoFormat

    return pixel_format == "pal8" or any(component.is_alpha for component in VideoFormat(pixel_format).components)


def _is_opacity_unused(picture: np.ndarray) -> bool:
    """Uncompressed AVI has a fourth byte that most programs leave at 0, and that libav takes for opacity."""
    return not picture[..., 3].any() and bool((picture != picture[0, 0]).any())


def over_white(picture: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] of RGB and opacity [height, width, 4], as pictures from files are shown."""
    if (picture[..., 3] == 255).all():
        return picture[..., :3]
    opacity = picture[..., 3:].astype(np.uint32)
    return ((picture[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def display_matrix(frame: Any) -> np.ndarray | None:
    """int32 [3, 3] of ISO 14496-12, with which phones turn a picture instead of its pixels."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def upright(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """The picture turned and mirrored as the matrix says, to the nearest quarter turn.

    Args:
      picture: uint8 [height, width, 3].
      matrix: its rows say where x and y go: x' = m00 x + m10 y, y' = m01 x + m11 y, y pointing down.
    """
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix[:2, :2].astype(np.int64)
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, across, down = picture.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
