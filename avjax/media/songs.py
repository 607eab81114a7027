"""Files that hold several songs one after the other: what each one's header says."""

import io
import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path

FLAC_MARK = b"fLaC\0\0\0\x22"  # the mark, and a STREAMINFO block of 34 bytes
OGG_FIRST_PAGE, OGG_HEAD_BYTES = 2, 27


def flac_songs(path: str | Path) -> list[io.BytesIO]:
    """Each FLAC of a file that holds several; empty for other files."""
    with Path(path).open("rb") as file:
        if file.read(4) != FLAC_MARK[:4]:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            starts, position = [0], data.find(FLAC_MARK, 1)
            while position >= 0:
                if int.from_bytes(data[position + 18 : position + 21], "big") >> 4:  # a rate
                    starts.append(position)
                position = data.find(FLAC_MARK, position + 1)
            if len(starts) == 1:
                return []
            return [io.BytesIO(data[start:end]) for start, end in itertools.pairwise([*starts, len(data)])]


def ogg_sound_changes(path: str | Path) -> bool:
    """Whether an Ogg file goes on with sound of another codec, rate or number of channels."""
    links: list[set[tuple[str, int, int]]] = []
    begun = False  # whether sound or pictures came since the last header
    for first, payload in _ogg_pages(path):
        if not first:
            begun = True
            continue
        if begun or not links:
            links.append(set())
        begun = False
        sound = _sound_of_header(payload)
        if sound is not None:
            links[-1].add(sound)
    sounding = [link for link in links if link]
    return any(link != sounding[0] for link in sounding)


def _ogg_pages(path: str | Path) -> Iterator[tuple[bool, bytes]]:
    """Whether each page begins a stream, and its first bytes."""
    with Path(path).open("rb") as file:
        while (head := file.read(OGG_HEAD_BYTES))[:4] == b"OggS" and len(head) == OGG_HEAD_BYTES:
            size = sum(file.read(head[26]))
            start = file.tell()
            yield bool(head[5] & OGG_FIRST_PAGE), file.read(min(size, 64))
            file.seek(start + size)


def _sound_of_header(payload: bytes) -> tuple[str, int, int] | None:
    """Codec, rate in Hz and channels; None for pictures and text."""
    payload = payload.ljust(64, b"\0")
    if payload.startswith(b"\x01vorbis"):
        return "vorbis", int.from_bytes(payload[12:16], "little"), payload[11]
    if payload.startswith(b"OpusHead"):
        return "opus", 48_000, payload[9]
    if payload.startswith(b"\x7fFLAC"):
        return "flac", int.from_bytes(payload[27:30], "big") >> 4, (payload[29] >> 1 & 7) + 1
    if payload.startswith(b"Speex   "):
        return "speex", int.from_bytes(payload[36:40], "little"), int.from_bytes(payload[48:52], "little")
    return None


def ogg_end_seconds(path: str | Path, rate: int) -> float | None:
    """When the sound of an Ogg that was cut out of a longer one ends, on its own clock; None where it is whole.

    Such a sound begins before 0. libav does not count what lies there, and shifts all that follows.
    """
    serial, first, last = None, None, 0
    with Path(path).open("rb") as file:
        while (head := file.read(OGG_HEAD_BYTES))[:4] == b"OggS" and len(head) == OGG_HEAD_BYTES:
            size = sum(file.read(head[26]))
            start = file.tell()
            if serial is None and head[5] & OGG_FIRST_PAGE and _sound_of_header(file.read(64)) is not None:
                serial = head[14:18]
            position = int.from_bytes(head[6:14], "little", signed=True)
            if head[14:18] == serial and position not in (0, -1):  # of headers, and of a page that ends no packet
                first, last = position if first is None else first, position
            file.seek(start + size)
    return last / rate if first is not None and first < 0 else None
