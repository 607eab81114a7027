"""Samples of sound files and of videos: libsndfile where it is exact, libav for the rest; resampling by soxr."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from avjax.media.container import (
    SAMPLE_RATE,
    audio_stream,
    counts_frames,
    decoded_frames,
    frame_seconds,
    has_clock,
    library_name,
    opened,
    packet_seconds,
    packets,
    require_file,
    video_stream,
)
from avjax.media.errors import MediaError
from avjax.media.songs import flac_songs, ogg_end_seconds, ogg_sound_changes
from avjax.media.truncation import count_songs, page_is_cut, size_is_missed, size_is_unknown

BLOCK = 2**20  # samples that are read at a time
# libsndfile would trust an estimated length of these, or decodes them in another way than everybody else.
LEFT_TO_LIBAV = ("OPUS", "MPEG_LAYER", "IMA_ADPCM", "MS_ADPCM", "GSM610")
UNKNOWN_FRAMES = 2**62  # libsndfile says this or more of a FLAC that was piped, and cannot read it
START_SECONDS = 0.01  # sound that starts this much beside the picture, a frame of log-mel, is with it
GAP_SECONDS = 0.02  # clocks of containers are coarse; half an audio token is not
LASTING_SECONDS = 0.25  # a jump of the clock that is undone within this is jitter
RESTART_SECONDS = 1.0  # a clock that jumps back further has started anew: nothing is played twice
MAX_GAP_SECONDS = 3600.0

Sync = Literal["clock", "published"]


@dataclasses.dataclass(frozen=True)
class SoundBlock:
    """Samples that were decoded together.

    Attributes:
      samples: float32 [n], the channels' average.
      rate: Hz.
      seconds: when they are played, on the file's clock; None where it does not say.
    """

    samples: np.ndarray
    rate: int
    seconds: float | None = None

    @property
    def duration(self) -> float:
        return len(self.samples) / self.rate


def read_audio(path: str | Path, *, sync: Sync = "clock") -> np.ndarray:
    """The first audio stream of a sound or video file as float32 mono at 16 kHz; channels are averaged.

    Args:
      sync: "clock" keeps the file's clock: gaps become silence, what is there twice is played once, and in a video the
        sound begins with the first picture: silence is put before a sound that starts later, and what precedes is cut.
        "published" puts what was decoded end to end, as librosa does for Qwen's published code.

    Raises:
      MediaError: there is no audio stream, it is empty, truncated or damaged, or it holds a value that is not finite.
    """
    require_file(path)
    parts = [to_mono_16k(samples, rate, str(path)) for samples, rate in _sounds(path, sync) if len(samples)]
    if not parts:
        raise MediaError(f"{path}: the audio is empty; choose another file or pass audio=None")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def sound_offset_seconds(path: str | Path) -> float:
    """How much later than its first picture a video's sound starts; below 0 when earlier.

    0 for a file that has not both, and where the clock does not say.
    """
    picture = first_picture_seconds(path)
    with opened(path) as container:
        stream = audio_stream(container)
        if picture is None or stream is None:
            return 0.0
        frame = next(decoded_frames(path, container, stream), None)
        sound = None if frame is None else frame_seconds(frame, stream)
    return 0.0 if sound is None else sound - picture


def first_picture_seconds(path: str | Path) -> float | None:
    """When a player shows the first picture, on the file's clock; None without a picture or a clock."""
    with opened(path) as container:
        stream = video_stream(container)
        if stream is None:
            return None
        if counts_frames(container):
            packet = next(packets(path, container, stream), None)
            return None if packet is None else packet_seconds(packet, stream, container)
        frame = next(decoded_frames(path, container, stream), None)
        return None if frame is None else frame_seconds(frame, stream)


def to_mono_16k(samples: np.ndarray, rate: int, source: str) -> np.ndarray:
    """float32 [n] at 16 kHz from samples [n] or [n, channels] at `rate` Hz."""
    import soxr

    if samples.size == 0:
        raise MediaError(f"{source}: the audio is empty; choose another file or pass audio=None")
    if not np.isfinite(samples).all():
        bad = int(np.sum(~np.isfinite(samples)))
        raise MediaError(f"{source}: expected finite audio samples, got {bad} NaN or infinite ones; repair the file")
    mono = samples.astype(np.float32)
    if mono.ndim == 2:
        mono = mono.mean(axis=1)
    if rate != SAMPLE_RATE:
        length = int(np.ceil(len(mono) * SAMPLE_RATE / rate))
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
        mono = np.pad(mono[:length], (0, max(0, length - len(mono))))
    return np.ascontiguousarray(mono, np.float32)


def _sounds(path: str | Path, sync: Sync) -> list[tuple[np.ndarray, int]]:
    """Samples [n] or [n, channels] and their rate; more than one where the rate changes."""
    # Of several songs, libsndfile reads the first alone.
    parts = [_read_sound_file(path, song) for song in flac_songs(path) or [library_name(path)]]
    whole = [part for part in parts if part is not None]
    if len(whole) == len(parts):
        return whole
    with opened(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise MediaError(f"{path}: expected an audio stream, found none; pass audio=None or a sound file")
        if container.format.name == "ogg" and ogg_sound_changes(path):
            raise MediaError(
                f"{path}: the sound changes its codec, rate or channels in mid-stream, which libav does not follow; "
                "re-encode each part at one rate, then join them"
            )
        blocks = list(_decoded_blocks(path, container, stream))
        if container.format.name == "ogg" and blocks:
            blocks = _timed_by_end(blocks, ogg_end_seconds(path, int(stream.rate)))
        has_video = video_stream(container) is not None
        clocked = sync == "clock" and has_clock(container)
    if clocked:
        blocks = keep_clock(blocks, first_picture_seconds(path) if has_video else None, str(path))
    return _joined(blocks)


def _timed_by_end(blocks: Sequence[SoundBlock], end_seconds: float | None) -> list[SoundBlock]:
    """The blocks end to end, the last one ending at a time that is known better than the others."""
    if end_seconds is None:
        return list(blocks)
    begin_seconds = end_seconds - sum(block.duration for block in blocks)
    return [dataclasses.replace(block, seconds=None if i else begin_seconds) for i, block in enumerate(blocks)]


def _joined(blocks: Sequence[SoundBlock]) -> list[tuple[np.ndarray, int]]:
    """Neighbours of one rate together."""
    runs: list[tuple[list[np.ndarray], int]] = []
    for block in blocks:
        if not runs or runs[-1][1] != block.rate:
            runs.append(([], block.rate))
        runs[-1][0].append(block.samples)
    return [(np.concatenate(samples), rate) for samples, rate in runs]


def _read_sound_file(path: str | Path, content: str | bytes | BinaryIO) -> tuple[np.ndarray, int] | None:
    """Samples [n, channels] and rate when libsndfile reads the format without loss or guess.

    Args:
      content: the file as libsndfile opens it, or a song in it.
    """
    import soundfile

    with Path(path).open("rb") as file:
        head = file.read(3)
    if head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):  # an MP3, of which libsndfile prints warnings
        return None
    name: Any = content  # soundfile takes bytes too
    try:
        sound = soundfile.SoundFile(name)
    except (soundfile.LibsndfileError, TypeError):  # the latter of a name that ends in .raw
        return None
    with sound:
        if sound.subtype.startswith(LEFT_TO_LIBAV) or sound.frames >= UNKNOWN_FRAMES:
            return None
        if sound.frames == 0 and size_is_unknown(path):
            return None
        blocks: list[Any] = [np.zeros((0, sound.channels), np.float32)]
        announced, rate, damage = sound.frames, sound.samplerate, None
        try:
            # A damaged header may announce more than there is memory for.
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        except soundfile.LibsndfileError as error:
            damage = error
    samples = np.concatenate(blocks)
    if sound.subtype == "VORBIS":
        # libav drops the start of a sound that fits in one page, libsndfile what follows a first song.
        whole = damage is None and len(samples) == announced and count_songs(path) == 1 and not page_is_cut(path)
        return (samples, rate) if whole else None
    if damage is not None:
        raise MediaError(f"{path}: the audio is damaged: {damage}; copy it again or re-encode it") from damage
    if len(samples) < announced or size_is_missed(path):
        raise MediaError(f"{path}: the audio is truncated, {len(samples) / rate:.2f} s are there; copy it again")
    return samples, rate


def _decoded_blocks(path: str | Path, container: Any, stream: Any) -> Iterator[SoundBlock]:
    """The stream's frames, each averaged over its own channels: their number may change."""
    graphs: dict[tuple[str, str, int], Any] = {}
    for frame in decoded_frames(path, container, stream):
        if not frame.samples:
            continue
        key = frame.format.name, frame.layout.name, frame.sample_rate
        if key not in graphs:
            graphs = {key: _packing_graph(*key)}
        graph = graphs[key]
        seconds = frame_seconds(frame, stream)
        frame.pts = None  # every frame comes out as it goes in
        graph.push(frame)
        packed = graph.pull()
        # PyAV's own conversion of planar frames ends the process at eight channels.
        values = np.frombuffer(packed.planes[0], np.float32, packed.samples * packed.layout.nb_channels)
        mono = values.reshape(packed.samples, -1).mean(axis=1, dtype=np.float32)
        yield SoundBlock(samples=mono, rate=packed.sample_rate, seconds=seconds)


def _packing_graph(sample_format: str, layout: str, rate: int) -> Any:
    """Makes any sample format 32-bit float, channel beside channel; the channels stay."""
    from av.filter import Graph

    graph = Graph()
    source = graph.add("abuffer", sample_rate=str(rate), sample_fmt=sample_format, channel_layout=layout)
    graph.link_nodes(source, graph.add("aformat", sample_fmts="flt"), graph.add("abuffersink")).configure()
    return graph


def keep_clock(blocks: Sequence[SoundBlock], origin_seconds: float | None, source: str) -> list[SoundBlock]:
    """The blocks with silence in their gaps and without what overlaps.

    Args:
      origin_seconds: of the file's clock, where the sound shall begin; None begins with the first block.

    Raises:
      MediaError: the sound ends before it shall begin, or the clock jumps by more than an hour.
    """
    blocks = [block for block in blocks if len(block.samples)]
    # A block's lead over the samples before it changes where the clock jumps.
    ends = np.cumsum([block.duration for block in blocks])
    leads = [
        None if block.seconds is None else block.seconds - (end - block.duration)
        for block, end in zip(blocks, ends, strict=True)
    ]
    first = next((lead for lead in leads if lead is not None), None)
    if first is None:
        return blocks
    level, owed_seconds = first, 0.0  # silence that is to be put in; below 0, sound that is to be cut
    if origin_seconds is not None and abs(first - origin_seconds) > START_SECONDS:
        owed_seconds = first - origin_seconds
    timed: list[SoundBlock] = []
    for i, block in enumerate(blocks):
        jump = _lasting_jump(blocks, leads, i, level)
        level += jump
        if jump > -RESTART_SECONDS:
            owed_seconds += jump
        if owed_seconds > MAX_GAP_SECONDS:
            raise MediaError(
                f"{source}: the sound's clock jumps by {owed_seconds:.0f} s; re-encode it, or pass sync='published'"
            )
        owed = max(round(owed_seconds * block.rate), -len(block.samples))
        if owed > 0:
            timed.append(SoundBlock(samples=np.zeros(owed, np.float32), rate=block.rate))
        timed.append(dataclasses.replace(block, samples=block.samples[max(-owed, 0) :]))
        owed_seconds -= owed / block.rate
    if not any(len(block.samples) for block in timed):
        raise MediaError(f"{source}: the sound ends before the first picture; pass audio=None or sync='published'")
    return timed


def _lasting_jump(blocks: Sequence[SoundBlock], leads: Sequence[float | None], start: int, level: float) -> float:
    """Seconds by which the clock leaves `level` at a block and stays away; 0 for jitter."""
    lead = leads[start]
    if lead is None or abs(lead - level) <= GAP_SECONDS:
        return 0.0
    jumps, seconds = [lead - level], 0.0
    for i in range(start, len(blocks)):
        later = leads[i]
        if later is not None:
            jumps.append(later - level)
        seconds += blocks[i].duration
        if seconds > LASTING_SECONDS:
            break
    lasts = min(jumps) > GAP_SECONDS or max(jumps) < -GAP_SECONDS
    return jumps[0] if lasts else 0.0
