"""Opening media files with libav, and the decoded frames of one of their streams."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avjax.media.errors import MediaError
from avjax.media.truncation import refuse_truncated, size_is_unknown

SAMPLE_RATE = 16_000  # Hz; what the audio towers were trained on

# Formats that name other files to read instead of holding a clip.
PLAYLISTS = frozenset({"hls", "concat", "dash", "imf", "sdp", "rtsp", "lavfi", "webm_dash_manifest"})
# Formats without a mark, which libav takes by the file's name alone, or for want of a better: terminals' text, single
# pictures, raw pixels and raw samples whose size and rate nobody knows.
MARKLESS = frozenset(
    "adf alaw alias_pix bin bitpacked brender_pix cdxl codec2raw data f32be f32le f64be f64le idf image2 image2pipe "
    "mulaw rawvideo s16be s16le s24be s24le s32be s32le s8 sbg tty u16be u16le u24be u24le u32be u32le u8 v210 v210x "
    "vc1test vidc xbin".split()
)
TEXT_BYTES = 4096  # that are looked at
TEXT_MARKS = (b"YUV4MPEG2", b"NIST_1A")  # of media files whose header is text
# Bare packets without a clock; the times that libav gives them are counted at the first packet's rate.
BARE = frozenset({"aac", "ac3", "amr", "dts", "eac3", "h264", "hevc", "loas", "m4v", "mjpeg", "mp3", "mpegvideo"})
# Formats without an index or a length: they may begin and end anywhere, and hold tags between packets.
STREAMED = BARE | {"mpeg", "mpegts"}
MAX_CLOCK_SECONDS = 1e10  # three hundred years
MAX_DAMAGED_SHARE = 0.1  # of the packets of a streamed format
TS_DISCONT = 0x0200  # a format's flag: its clock may jump
MAX_BACKWARD_SECONDS, MAX_FORWARD_SECONDS = 0.1, 10.0  # jumps beyond these restart the clock, as in ffmpeg


def library_name(path: str | Path) -> str | bytes:
    """The file's name as C libraries take it, also where it is not UTF-8 or means something to them, such as "-"."""
    absolute = Path(path).absolute()
    return str(absolute) if os.name == "nt" else os.fsencode(absolute)


def require_file(path: str | Path) -> None:
    """Raises MediaError where there is no regular file."""
    file = Path(path)
    if file.is_file():
        return
    if not file.exists():
        raise MediaError(f"{path}: no such file; check the path")
    kind = "a directory; pass one of its files" if file.is_dir() else "a device or a pipe; save it to a file first"
    raise MediaError(f"{path}: expected a file, got {kind}")


@contextlib.contextmanager
def opened(path: str | Path, *, by_name: bool = False) -> Iterator[Any]:
    """The file as an `av.container.InputContainer`; it and nothing else is read.

    Args:
      by_name: formats are opened too that libav takes a file for by its name alone.

    Raises:
      MediaError: there is no such file, libav cannot read it, or it is text or a playlist; also for whatever else
        libav or PyAV raise in the block, so that the file is named.
    """
    import av

    require_file(path)
    try:
        _refuse_text(path)
        # With a protocol in front, neither colons nor dashes in the name mean anything else.
        with av.open(
            f"file:{Path(path).absolute()}",
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        ) as container:
            formats = set(container.format.name.split(","))
            if formats & PLAYLISTS:
                raise MediaError(_playlist(path))
            if formats & MARKLESS and not by_name:
                raise MediaError(
                    f"{path}: expected a picture, a video or a sound, got bytes without the header of one "
                    f"(its name alone suggests {container.format.name}); check the path, or convert it"
                )
            yield container
    except MediaError:
        raise
    except Exception as error:  # FFmpegError, but also ValueError, UnicodeDecodeError and others of PyAV
        raise MediaError(
            f"{path}: expected a readable media file, got {plain_reason(error)}; it may be truncated or damaged: "
            "copy it again or re-encode it"
        ) from error


def plain_reason(error: Exception) -> str:
    """The reason that libav or PyAV give, in words even where they give only a number."""
    reason = str(getattr(error, "strerror", None) or error)
    return "data that cannot be decoded" if reason.startswith(("Error number", "[Errno")) else reason


def _refuse_text(path: str | Path) -> None:
    with Path(path).open("rb") as file:
        head = file.read(TEXT_BYTES)
    if head.removeprefix(b"\xef\xbb\xbf").startswith((b"#EXTM3U", b"ffconcat")):
        raise MediaError(_playlist(path))
    if is_text(head) and not head.startswith(TEXT_MARKS):
        raise MediaError(f"{path}: expected a picture, a video or a sound, got text; check the path")


def is_text(head: bytes) -> bool:
    """Whether a file's first bytes are text, in UTF-8, UTF-16 or a code page; no header of a medium is."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) // 2 * 2].decode("utf-16", errors="replace")
        return len(text) > 1 and all(
            letter != "\ufffd" and (letter.isprintable() or letter.isspace()) for letter in text
        )
    controls = sum((byte < 32 and byte not in b"\t\n\f\r\x1a\x1b") or byte == 127 for byte in head)
    letters = sum(32 <= byte < 127 for byte in head)
    return bool(head) and controls == 0 and (_is_utf8(head) or letters > 0.75 * len(head))


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True


def _playlist(path: str | Path) -> str:
    return f"{path}: expected a clip, got a playlist of other files; pass one of those, or join them first"


def video_stream(container: Any) -> Any | None:
    """The video stream that a player shows: the default one, then the largest, then the first; never a cover."""
    from av.stream import Disposition

    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    return max(streams, key=lambda stream: (_is_default(stream), _pixels(stream)), default=None)


def audio_stream(container: Any) -> Any | None:
    """The audio stream that a player plays: the default one, then that with most channels, then the first."""
    return max(container.streams.audio, key=lambda stream: (_is_default(stream), _channels(stream)), default=None)


def _is_default(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.default)


def _pixels(stream: Any) -> int:
    context = stream.codec_context  # None where libav has no decoder
    return 0 if context is None else context.width * context.height


def _channels(stream: Any) -> int:
    return 0 if stream.codec_context is None else stream.codec_context.channels


@dataclasses.dataclass
class _Clock:
    """Times of a broadcast's packets made continuous where they jump, as ffmpeg does it."""

    shift_seconds: float = 0.0
    next_seconds: dict[int, float] = dataclasses.field(default_factory=dict)

    def adjust(self, packet: Any) -> None:
        """Moves the packet's times by the jumps so far."""
        if packet.dts is None or not packet.time_base:
            return
        tick = float(packet.time_base)
        seconds = packet.dts * tick + self.shift_seconds
        expected = self.next_seconds.get(packet.stream.index)
        if expected is not None and not -MAX_BACKWARD_SECONDS <= seconds - expected <= MAX_FORWARD_SECONDS:
            self.shift_seconds += expected - seconds
            seconds = expected
        ticks = round(self.shift_seconds / tick)
        self.next_seconds[packet.stream.index] = seconds + (packet.duration or 0) * tick
        if ticks:
            packet.dts += ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks


def packets(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream that hold something, to the end of the file, in decoding order.

    Raises:
      MediaError: the file ends before its header says.
    """
    streamed = is_streamed(container)
    open_ended = size_is_unknown(path)
    clock = _Clock() if container.format.flags & TS_DISCONT else None
    counts = dict.fromkeys((s.index for s in container.streams), 0)
    end_seconds = 0.0
    for packet in container.demux():
        if packet.size == 0:  # a frame that the encoder dropped, or the end; a decoder would take it for the end
            continue
        if clock is not None:
            clock.adjust(packet)
        counts[packet.stream.index] = counts.get(packet.stream.index, 0) + 1
        if packet.pts is not None and packet.time_base is not None:
            end_seconds = max(end_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.is_corrupt and not streamed and not open_ended:
            raise MediaError(
                f"{path}: truncated inside packet {counts[packet.stream.index]} of the {packet.stream.type}; "
                "copy it again or re-encode it"
            )
        if packet.stream.index == stream.index:
            yield packet
    refuse_truncated(path, container, counts, end_seconds)


def is_streamed(container: Any) -> bool:
    """Whether the format has neither an index nor a length."""
    return bool(set(container.format.name.split(",")) & STREAMED)


def has_clock(container: Any) -> bool:
    """Whether the file itself says when a packet is played."""
    return not set(container.format.name.split(",")) & BARE


def counts_frames(container: Any) -> bool:
    """Whether a frame's time is its place in the file: AVI has no other, so that reordered frames have none."""
    return container.format.name == "avi"


def packet_seconds(packet: Any, stream: Any, container: Any) -> float | None:
    """When what is in a packet is shown or played, on the file's clock; None where that says nothing."""
    return _seconds(packet.dts if packet.pts is None or counts_frames(container) else packet.pts, stream)


def _seconds(ticks: int | None, stream: Any) -> float | None:
    if ticks is None or not stream.time_base:
        return None
    if ticks > 0 and ticks * stream.time_base > MAX_CLOCK_SECONDS:
        ticks -= 1 << round(math.log2(ticks))  # a negative time, read without its sign
    seconds = float(ticks * stream.time_base)
    return seconds if abs(seconds) < MAX_CLOCK_SECONDS else None


def decoded_frames(path: str | Path, container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream that a player shows or plays, in the order of their times.

    What the file asks to be skipped (an edit list, an encoder's delay) is skipped. Packets of a streamed format that do
    not decode, such as a tag between two songs, are passed over, as are pictures before the first key frame.

    Raises:
      MediaError: the file is truncated or damaged.
    """
    from av.error import FFmpegError

    stream.thread_type = "AUTO"
    streamed = is_streamed(container)
    total, damaged, begun = 0, 0, False
    for packet in packets(path, container, stream):
        total += 1
        try:
            frames = packet.decode()
        except FFmpegError as error:
            damaged += 1
            before_key_frame = stream.type == "video" and not begun and not packet.is_keyframe
            if not streamed and not before_key_frame:
                at = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.2f} s"
                raise MediaError(
                    f"{path}: the {stream.type} is damaged{at}: {plain_reason(error)}; copy it again or re-encode it"
                ) from error
            continue
        begun = begun or bool(frames)
        yield from frames
    if streamed and damaged > MAX_DAMAGED_SHARE * total:
        raise MediaError(
            f"{path}: the {stream.type} is damaged: {damaged} of {total} packets cannot be decoded; "
            "copy it again or re-encode it"
        )
    try:
        yield from stream.decode(None)
    except FFmpegError as error:
        if not streamed:
            raise MediaError(f"{path}: the end of the {stream.type} is damaged; re-encode it") from error


def frame_seconds(frame: Any, stream: Any) -> float | None:
    """When a frame is shown or played, on the file's clock; None where that says nothing."""
    return _seconds(frame.dts if frame.pts is None else frame.pts, stream)
