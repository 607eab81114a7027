"""Whether a file ends before its own header says: by the sizes and counts that its format writes down, no estimates."""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from avjax.media.errors import MediaError

EARLY_END_SECONDS = 0.5  # a file may end this much before its header says
SLACK_BYTES = 64  # some programs count the header as sound
UNKNOWN_SIZE = 2**31 - 2**16  # programs that pipe their sound write this or more, or 0
SEGMENT = 0x18538067  # of Matroska
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def refuse_truncated(path: str | Path, container: Any, counts: Mapping[int, int], end_seconds: float) -> None:
    """Compares what was read to the end with what the header announces.

    Args:
      container: as libav opened it.
      counts: packets by stream.
      end_seconds: when the last packet of any stream ends.

    Raises:
      MediaError: something is missing.
    """
    name, missing = container.format.name, ""
    if "mp4" in name:
        fewer = [(s.frames, counts[s.index]) for s in container.streams if counts[s.index] < s.frames]
        fragmented = not any(stream.frames for stream in container.streams)
        # Edit lists hide frames too, so a smaller count alone says nothing.
        if (fewer or fragmented) and boxes_are_cut(path):
            announced, count = fewer[0] if fewer else ("more", "fewer")
            missing = f"its header announces {announced} frames, {count} are there"
    elif "matroska" in name:
        announced = (container.duration or 0) / 1e6
        if announced > end_seconds + EARLY_END_SECONDS and segment_is_cut(path) is not False:
            missing = f"its header announces {announced:.2f} s, {end_seconds:.2f} s are there"
    elif name == "mp3":
        announced, size_fits = mp3_header(path)
        count = sum(counts[s.index] for s in container.streams.audio)
        # Some encoders count the frame that holds the count; the size tells whether the last one is there.
        slack_seconds = EARLY_END_SECONDS if size_fits else 0.0
        if count < announced and (announced - count) * end_seconds > slack_seconds * count:
            missing = f"its header announces {announced} frames, {count} are there"
    elif name in ("avi", "wav", "aiff", "asf") and size_is_missed(path):
        missing = f"its header announces more than its {Path(path).stat().st_size} bytes"
    elif name == "ogg" and page_is_cut(path):
        missing = "its last page is cut"
    elif name in ("flac", "ogg"):  # which count samples
        announced = max((float(s.duration * s.time_base) for s in container.streams if s.duration), default=0.0)
        if announced > end_seconds + EARLY_END_SECONDS:
            missing = f"its header announces {announced:.2f} s, {end_seconds:.2f} s are there"
    if missing:
        raise MediaError(f"{path}: truncated: {missing}; copy it again or re-encode it")


def size_is_missed(path: str | Path) -> bool:
    """Whether a file whose header gives its size, or that of its sound, is shorter; False where none is given."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        head = file.read(4096)
    if head[:4] == b".snd":
        offset, length = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
        return 0 < length < UNKNOWN_SIZE and _is_over(offset + length, size)
    if head[:4] == b"riff":  # Sony's Wave64
        return _is_over(int.from_bytes(head[16:24], "little"), size, unknown=2**62)
    properties = head.find(ASF_PROPERTIES) if head[:4] == b"\x30\x26\xb2\x75" else -1
    if properties >= 0:
        is_broadcast = head[properties + 88] & 1
        return not is_broadcast and _is_over(int.from_bytes(head[properties + 40 : properties + 48], "little"), size)
    return _chunks_are_cut(path, size)


def _chunks_are_cut(path: str | Path, size: int) -> bool:
    """Whether the sound of a WAV, RF64 or AIFF file, or anything of an AVI, runs over the end of the file."""
    with Path(path).open("rb") as file:
        head = file.read(12)
        order = ">" if head[:4] in (b"FORM", b"RIFX") else "<"
        if len(head) < 12 or head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
            return False
        if head[8:] == b"AVI ":
            return _is_over(int.from_bytes(head[4:8], "little") + 8, size)
        for kind, start, length in _chunks(file, order):
            if kind == b"ds64":
                file.seek(start + 8)
                return _is_over(start + int.from_bytes(file.read(8), "little"), size, unknown=2**63)
            if kind in (b"data", b"SSND"):
                return 0 < length < UNKNOWN_SIZE and _is_over(start + length, size)
    return False


def size_is_unknown(path: str | Path) -> bool:
    """Whether a WAV, AIFF or CAF does not say how much sound it holds, so that it may end anywhere.

    So do programs write that pipe their sound, or that died before they could put in the size.
    """
    with Path(path).open("rb") as file:
        head = file.read(12)
        if head[:4] == b"caff":
            return any(kind == b"data" and length < 0 for kind, _, length in _caf_chunks(file))
        if head[:4] not in (b"RIFF", b"RIFX", b"FORM") or head[8:12] not in (b"WAVE", b"AIFF", b"AIFC"):
            return False
        for kind, start, length in _chunks(file, "<" if head[:4] == b"RIFF" else ">"):
            if kind in (b"data", b"SSND"):
                return length >= UNKNOWN_SIZE or (length == 0 and not _ends_in_chunks(path, start))
    return False


def _ends_in_chunks(path: str | Path, position: int) -> bool:
    """Whether there are chunks of a WAV or AIFF from a byte on, and nothing else: tags after an empty sound."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        order = ">" if file.read(4) in (b"FORM", b"RIFX") else "<"
        file.seek(position)
        for kind, start, length in _chunks(file, order):
            if not kind.strip().isalnum():
                return False
            position = start + length + length % 2
    return position in (size, size + 1)


def _caf_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and length of each chunk of a CAF; the last one's length may be -1."""
    file.seek(8)
    while len(head := file.read(12)) == 12:
        kind, length = struct.unpack(">4sq", head)
        start = file.tell()
        yield kind, start, length
        if length < 0:
            return
        file.seek(start + length)


def _is_over(end: int, size: int, *, unknown: int = UNKNOWN_SIZE) -> bool:
    return end < unknown and end > size + SLACK_BYTES


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte and length of each chunk after the file's first twelve bytes."""
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack(f"{order}4sI", head)
        start = file.tell()
        yield kind, start, length
        file.seek(start + length + length % 2)


def boxes_are_cut(path: str | Path) -> bool:
    """Whether an MP4's index or media run over the end of the file."""
    size, position = Path(path).stat().st_size, 0
    with Path(path).open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if length == 0:  # to the end of the file
                return False
            if length < 8:
                return False
            position += length
            if position > size:
                return kind in (b"moov", b"moof", b"mdat")
    return False


def segment_is_cut(path: str | Path) -> bool | None:
    """Whether a Matroska file is shorter than its one segment; None when it does not know its size."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        while True:
            kind, length = _ebml_number(file, keep_marker=True), _ebml_number(file)
            if kind is None or length is None:
                return None
            if kind == SEGMENT:
                return file.tell() + length > size
            file.seek(length, os.SEEK_CUR)


def _ebml_number(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """A number of variable length; None at the end of the file and for the number that means "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    value = int.from_bytes(first + rest, "big")
    if keep_marker:
        return value
    mask = (1 << 7 * (extra + 1)) - 1
    return None if value & mask == mask else value & mask


def page_is_cut(path: str | Path) -> bool:
    """Whether an Ogg file ends inside a page."""
    pages = list(_ogg_pages(path))
    return bool(pages) and pages[-1][1] > Path(path).stat().st_size


def count_songs(path: str | Path) -> int:
    """How many streams an Ogg file holds, beside or after each other."""
    return sum(first for first, _ in _ogg_pages(path))


def _ogg_pages(path: str | Path) -> Iterator[tuple[bool, int]]:
    """Whether each page begins a stream, and where it ends."""
    position = 0
    with Path(path).open("rb") as file:
        while (head := file.read(27))[:4] == b"OggS":
            segments = file.read(head[26]) if len(head) == 27 else b""
            if len(head) < 27 or len(segments) < head[26]:
                yield False, 2**63
                return
            position += 27 + len(segments) + sum(segments)
            yield bool(head[5] & 2), position
            file.seek(position)


def mp3_header(path: str | Path) -> tuple[int, bool]:
    """How many frames an MP3 says it has, in the frame that encoders put before the first, and whether its size fits.

    0 where it does not say; False where it says no size.
    """
    with Path(path).open("rb") as file:
        head = file.read(10)
        begin = 0
        if head[:3] == b"ID3":
            length = 0
            for byte in head[6:10]:
                length = length << 7 | byte & 0x7F
            begin = 10 + length + (10 if head[5] & 0x10 else 0)
        file.seek(begin)
        frame = file.read(4096)
    start = next((i for i in range(len(frame) - 4) if frame[i] == 0xFF and frame[i + 1] & 0xE0 == 0xE0), None)
    if start is None:
        return 0, False
    available = Path(path).stat().st_size - begin - start
    version, mono = frame[start + 1] >> 3 & 3, frame[start + 3] >> 6 == 3
    tag = start + 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17))
    if frame[tag : tag + 4] in (b"Xing", b"Info") and frame[tag + 7] & 1:
        size = int.from_bytes(frame[tag + 12 : tag + 16], "big") if frame[tag + 7] & 2 else 0
        return int.from_bytes(frame[tag + 8 : tag + 12], "big"), 0 < size <= available
    vbri = start + 36
    if frame[vbri : vbri + 4] == b"VBRI":
        size = int.from_bytes(frame[vbri + 10 : vbri + 14], "big")
        return int.from_bytes(frame[vbri + 14 : vbri + 18], "big"), 0 < size <= available
    return 0, False
