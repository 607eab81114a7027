"""Sounds of unusual make: several songs in one file, sizes that nobody wrote down, names that are not UTF-8."""

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avjax.media import qwen_omni_utils
from avjax.media.decode import media_kind, read_audio
from avjax.media.errors import MediaError
from avjax.media.songs import ogg_end_seconds, ogg_sound_changes
from avjax.media.sound import SoundBlock, _timed_by_end, keep_clock
from tests.media.test_sound import tone, write_mp3

RATE = 16_000


@pytest.mark.parametrize("rates", [(RATE, RATE), (RATE, 8000), (44_100, 44_100, 44_100)])
def test_flacs_one_after_the_other(tmp_path: Path, rates: tuple[int, ...]):
    for i, rate in enumerate(rates):
        soundfile.write(tmp_path / f"{i}.flac", tone(2.0, rate, 440.0 * (i + 1)), rate)
    whole = b"".join((tmp_path / f"{i}.flac").read_bytes() for i in range(len(rates)))
    (tmp_path / "all.flac").write_bytes(whole)
    samples = read_audio(tmp_path / "all.flac")
    assert len(samples) == pytest.approx(2 * RATE * len(rates), abs=2)
    for i in range(len(rates)):
        piece = samples[2 * RATE * i + RATE // 2 :][:RATE]
        assert np.argmax(np.abs(np.fft.rfft(piece))) == 440 * (i + 1)
    (tmp_path / "cut.flac").write_bytes(whole[: -len(whole) // 8])
    with pytest.raises(MediaError, match=r"cut\.flac: .*(truncated|damaged)"):
        read_audio(tmp_path / "cut.flac")


def with_data_size(path: Path, size: int, riff_size: int | None = None) -> bytes:
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 8] = struct.pack("<I", size)
    if riff_size is not None:
        data[4:8] = struct.pack("<I", riff_size)
    return bytes(data)


@pytest.mark.parametrize("size", [0, 2**32 - 1])
@pytest.mark.parametrize("riff_size", [None, 0, 2**32 - 1])
def test_a_recorder_that_died(tmp_path: Path, size: int, riff_size: int | None):
    soundfile.write(tmp_path / "whole.wav", tone(2.0, 44_100), 44_100)
    (tmp_path / "died.wav").write_bytes(with_data_size(tmp_path / "whole.wav", size, riff_size))
    np.testing.assert_array_equal(read_audio(tmp_path / "died.wav"), read_audio(tmp_path / "whole.wav"))


def test_an_empty_wav_stays_empty(tmp_path: Path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0, np.float32), RATE)
    tags = b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + struct.pack("<I", 0)
    for after in (b"", tags):
        (tmp_path / "empty.wav").write_bytes((tmp_path / "x.wav").read_bytes() + after)
        with pytest.raises(MediaError, match=r"empty\.wav: the audio is empty"):
            read_audio(tmp_path / "empty.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_caf_of_unknown_size(tmp_path: Path, subtype: str):
    soundfile.write(tmp_path / "whole.caf", tone(2.0, 44_100), 44_100, subtype=subtype)
    data = bytearray((tmp_path / "whole.caf").read_bytes())
    at = data.index(b"data")
    samples = int.from_bytes(data[at + 4 : at + 12], "big")
    del data[at + 12 + samples :]
    data[at + 4 : at + 12] = b"\xff" * 8
    (tmp_path / "piped.caf").write_bytes(data)
    difference = read_audio(tmp_path / "piped.caf") - read_audio(tmp_path / "whole.caf")
    assert np.abs(difference).max() < 1e-6


def test_a_count_of_frames_that_is_one_too_high(tmp_path: Path):
    write_mp3(tmp_path / "x.mp3", 3.0, xing=True)
    data = bytearray((tmp_path / "x.mp3").read_bytes())
    at = next(data.index(mark) for mark in (b"Xing", b"Info") if mark in data)
    for more, is_right in ((1, True), (12, True), (60, False)):
        count = int.from_bytes(data[at + 8 : at + 12], "big") + more
        (tmp_path / "more.mp3").write_bytes(data[: at + 8] + count.to_bytes(4, "big") + data[at + 12 :])
        if is_right:
            got, expected = read_audio(tmp_path / "more.mp3"), read_audio(tmp_path / "x.mp3")
            assert len(got) == pytest.approx(len(expected), abs=0.1 * RATE)  # the encoder's padding may be heard
            np.testing.assert_allclose(got[: 2 * RATE], expected[: 2 * RATE], atol=1e-6)
        else:
            with pytest.raises(MediaError, match=r"more\.mp3: truncated: its header announces"):
                read_audio(tmp_path / "more.mp3")


def with_serial(page_stream: bytes, serial: int) -> bytes:
    """An Ogg stream under another number; the pages' checksums are left to be wrong."""
    data, position = bytearray(page_stream), 0
    while position < len(data):
        data[position + 14 : position + 18] = struct.pack("<I", serial)
        segments = data[position + 26]
        position += 27 + segments + sum(data[position + 27 : position + 27 + segments])
    return bytes(data)


def test_an_ogg_that_changes_its_rate(tmp_path: Path):
    for name, rate, channels in (("a", 22_050, 1), ("b", 44_100, 1), ("c", 22_050, 2), ("d", 22_050, 1)):
        sound = np.tile(tone(1.0, rate)[:, None], (1, channels))
        soundfile.write(tmp_path / f"{name}.ogg", sound, rate, format="OGG", subtype="VORBIS")
    first = (tmp_path / "a.ogg").read_bytes()
    for name in "bc":
        path = tmp_path / f"a{name}.ogg"
        path.write_bytes(first + with_serial((tmp_path / f"{name}.ogg").read_bytes(), 99))
        with pytest.raises(MediaError, match=f"a{name}.ogg: the sound changes its codec, rate or channels.* re-encode"):
            read_audio(path)
    (tmp_path / "ad.ogg").write_bytes(first + with_serial((tmp_path / "d.ogg").read_bytes(), 99))
    assert not ogg_sound_changes(tmp_path / "ad.ogg")
    assert not ogg_sound_changes(tmp_path / "a.ogg")


@pytest.mark.skipif(sys.platform != "linux", reason="only there are names any bytes")
@pytest.mark.parametrize("extension", ["wav", "mp3", "flac"])
def test_names_that_are_not_utf_8(tmp_path: Path, extension: str):
    plain = tmp_path / f"x.{extension}"
    if extension == "mp3":
        write_mp3(plain, 1.0)
    else:
        soundfile.write(plain, tone(1.0), RATE)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9." + extension.encode()))
    path.write_bytes(plain.read_bytes())
    assert media_kind(path) == "audio"
    np.testing.assert_array_equal(read_audio(path), read_audio(plain))
    np.testing.assert_array_equal(qwen_omni_utils.read_audio(path), qwen_omni_utils.read_audio(plain))
    path.write_bytes(b"\x00\x01\x02")
    for read in (read_audio, qwen_omni_utils.read_audio):
        with pytest.raises(MediaError) as caught:
            read(path)
        str(caught.value).encode()  # as a terminal and a report take it
        assert "\\udce9t\\udce9" in str(caught.value)


def with_granules(data: bytes, shift: int) -> bytes:
    """An Ogg whose positions in samples are all moved; the pages' checksums are left to be wrong."""
    shifted, start = bytearray(data), 0
    while start < len(shifted):
        position = int.from_bytes(shifted[start + 6 : start + 14], "little", signed=True)
        if position > 0:
            shifted[start + 6 : start + 14] = (position + shift).to_bytes(8, "little", signed=True)
        segments = shifted[start + 26]
        start += 27 + segments + sum(shifted[start + 27 : start + 27 + segments])
    return bytes(shifted)


def test_an_ogg_that_begins_before_zero(tmp_path: Path):
    """Its end is known, so that its beginning is, too."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * 44_100)
    soundfile.write(tmp_path / "x.ogg", noise, 44_100, format="OGG", subtype="VORBIS")
    data = (tmp_path / "x.ogg").read_bytes()
    assert ogg_end_seconds(tmp_path / "x.ogg", 44_100) is None
    (tmp_path / "later.ogg").write_bytes(with_granules(data, 44_100))
    assert ogg_end_seconds(tmp_path / "later.ogg", 44_100) is None
    (tmp_path / "cut.ogg").write_bytes(with_granules(data, -3 * 44_100))
    assert ogg_end_seconds(tmp_path / "cut.ogg", 44_100) == pytest.approx(1.0)
    blocks = [SoundBlock(np.ones(RATE, np.float32), RATE, time) for time in (0.0, 1.0, 2.7, 3.7)]
    timed = _timed_by_end(blocks, 1.0)
    assert [block.seconds for block in timed] == [-3.0, None, None, None]
    assert sum(len(block.samples) for block in keep_clock(timed, -0.5, "x")) == 1.5 * RATE
    assert _timed_by_end(blocks, None) == blocks


def test_an_aiff_whose_recorder_died(tmp_path: Path):
    soundfile.write(tmp_path / "x.aiff", tone(2.0), RATE)
    data = bytearray((tmp_path / "x.aiff").read_bytes())
    at = data.index(b"SSND")
    data[at + 4 : at + 8] = bytes(4)
    (tmp_path / "died.aiff").write_bytes(data)
    np.testing.assert_array_equal(read_audio(tmp_path / "died.aiff"), read_audio(tmp_path / "x.aiff"))
