"""Media corrupted before the encoders: what becomes of samples and frames, and a token layout that stays."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import avjax
from avjax.media.corruption import Corruption
from avjax.media.decode import read_audio
from avjax.media.features import patchify
from avjax.media.options import CLIP_MEAN, CLIP_STD
from avjax.prompts.prompt import Prompt
from tests.hf_mel import RATE, hf_log_mel
from tests.media.cases import CASES, TEXT, VL_CASES, write_files

LAYOUT = ("token_ids", "positions", "kinds", "roles", "special", "seconds", "frames")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Path]:
    """The clips of every prompt; a sound shorter and one longer than them; and another video."""
    directory = tmp_path_factory.mktemp("files")
    soundfile.write(directory / "brief.wav", tone(330, 0.5), RATE, subtype="FLOAT")
    soundfile.write(directory / "long.wav", tone(330, 9.0), RATE, subtype="FLOAT")
    write_video(directory / "other.mp4", count=25, height=96, width=64)
    write_video(directory / "few.mp4", count=3, height=200, width=240)
    extra = {name.split(".")[0]: directory / name for name in ("brief.wav", "long.wav", "other.mp4", "few.mp4")}
    return {**write_files(directory, clip), **extra}


def tone(frequency: float, seconds: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def write_video(path: Path, *, count: int, height: int, width: int) -> None:
    """Frames that grow brighter from left to right and from the first to the last."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 2_000_000
        for i in range(count):
            frame = np.broadcast_to(np.linspace(i * 4, 100 + i * 4, width)[None, :, None], (height, width, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def every_corruption(files: dict[str, Path]) -> dict[str, Corruption]:
    return {
        "muted": avjax.MuteAudio(),
        "noise": avjax.NoiseAudio(snr_db=5.0, seed=3),
        "later": avjax.ShiftAudio(seconds=0.25),
        "earlier": avjax.ShiftAudio(seconds=-0.4, fill="silence"),
        "brief sound": avjax.SwapAudio(files["brief"]),
        "looped sound": avjax.SwapAudio(files["brief"], fill="loop"),
        "long sound": avjax.SwapAudio(files["long"]),
        "black": avjax.BlankVideo(),
        "blue": avjax.BlankVideo(value=(0, 0, 255)),
        "other frames": avjax.SwapVideo(files["other"]),
        "few frames": avjax.SwapVideo(files["few"]),
    }


def assert_same_layout(got: Prompt, clean: Prompt) -> None:
    for name in LAYOUT:
        a, b = getattr(got, name), getattr(clean, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
        assert a.dtype == b.dtype
    for kind in ("images", "videos"):
        for a, b in zip(getattr(got, kind), getattr(clean, kind), strict=True):
            assert (a.grid, a.seconds_per_grid, a.step_seconds) == (b.grid, b.seconds_per_grid, b.step_seconds)
    assert [a.mel.shape for a in got.audio] == [b.mel.shape for b in clean.audio]


NAMES = tuple(every_corruption(dict.fromkeys(("brief", "long", "other", "few"), Path("x"))))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["audio in video", "audio beside video", "audio and image", "video"])
def test_the_layout_stays_and_one_modality_changes(
    omni_model: avjax.Model, files: dict[str, Path], case: str, name: str
):
    corruption = every_corruption(files)[name]
    media = CASES[case](files)
    if media.get(corruption.modality) is None:
        with pytest.raises(avjax.MediaError, match=f"expected a prompt with {corruption.modality}, got none; pass"):
            omni_model.prompt(TEXT, **media, corrupt=corruption)
        return
    clean, got = omni_model.prompt(TEXT, **media), omni_model.prompt(TEXT, **media, corrupt=corruption)
    assert_same_layout(got, clean)
    changed = {
        "audio": not all(np.array_equal(a.mel, b.mel) for a, b in zip(got.audio, clean.audio, strict=True)),
        "video": not all(np.array_equal(a.patches, b.patches) for a, b in zip(got.videos, clean.videos, strict=True)),
        "image": not all(np.array_equal(a.patches, b.patches) for a, b in zip(got.images, clean.images, strict=True)),
    }
    assert changed == {kind: kind == corruption.modality for kind in changed}


@pytest.mark.parametrize("case", [c for c in VL_CASES if c != "text"])
@pytest.mark.parametrize("name", ["black", "other frames", "muted"])
def test_vl(vl_model: avjax.Model, files: dict[str, Path], case: str, name: str):
    """VL places frames by the rate that they were sampled at: the clean clip's."""
    corruption, media = every_corruption(files)[name], CASES[case](files)
    if corruption.modality == "audio" or "video" not in media:
        with pytest.raises(avjax.MediaError, match=rf"corrupt={type(corruption).__name__}\(.*got none"):
            vl_model.prompt(TEXT, **media, corrupt=corruption)
        return
    clean, got = vl_model.prompt(TEXT, **media), vl_model.prompt(TEXT, **media, corrupt=corruption)
    assert_same_layout(got, clean)
    assert not np.array_equal(got.videos[0].patches, clean.videos[0].patches)


def mel_of(model: avjax.Model, files: dict[str, Path], *corruptions: Corruption) -> np.ndarray:
    return model.prompt(TEXT, video=files["clip"], audio="from_video", corrupt=corruptions).audio[0].mel


def assert_heard(model: avjax.Model, files: dict[str, Path], expected: np.ndarray, *corruptions: Corruption) -> None:
    np.testing.assert_allclose(mel_of(model, files, *corruptions), hf_log_mel(expected), atol=1e-5, rtol=0)


def test_muted_sound_has_the_mel_of_silence(omni_model: avjax.Model, files: dict[str, Path]):
    # Whisper's floor: (log10(1e-10) + 4) / 4.
    np.testing.assert_array_equal(mel_of(omni_model, files, avjax.MuteAudio()), np.float32(-1.5))


@pytest.mark.exhaustive
def test_shifted_sound(omni_model: avjax.Model, files: dict[str, Path]):
    sound = read_audio(files["clip"])
    later, earlier = round(0.25 * RATE), round(0.4 * RATE)
    rolled = np.concatenate([sound[-later:], sound[:-later]])
    assert_heard(omni_model, files, rolled, avjax.ShiftAudio(seconds=0.25))
    assert_heard(omni_model, files, rolled, avjax.ShiftAudio(seconds=0.25, fill="circular"))
    delayed = np.concatenate([np.zeros(later, np.float32), sound[:-later]])
    assert_heard(omni_model, files, delayed, avjax.ShiftAudio(seconds=0.25, fill="silence"))
    hastened = np.concatenate([sound[earlier:], np.zeros(earlier, np.float32)])
    assert_heard(omni_model, files, hastened, avjax.ShiftAudio(seconds=-0.4, fill="silence"))


def test_swapped_sound(omni_model: avjax.Model, files: dict[str, Path]):
    size = len(read_audio(files["clip"]))
    brief = tone(330, 0.5)
    assert_heard(omni_model, files, np.pad(brief, (0, size - len(brief))), avjax.SwapAudio(files["brief"]))
    loops = np.tile(brief, 9)[:size]
    assert len(loops) == size
    assert_heard(omni_model, files, loops, avjax.SwapAudio(files["brief"], fill="loop"))
    assert_heard(omni_model, files, tone(330, 9.0)[:size], avjax.SwapAudio(files["long"]))


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 12.5])
def test_noise_has_the_ratio_and_is_white(clip: Path, snr_db: float):
    sound = read_audio(clip)
    noisy, _ = avjax.NoiseAudio(snr_db=snr_db, seed=1)(sound, "clip.mp4")
    assert noisy.dtype == np.float32 and noisy.shape == sound.shape
    noise = noisy.astype(np.float64) - sound
    measured = 10 * np.log10(np.sum(sound.astype(np.float64) ** 2) / np.sum(noise**2))
    assert measured == pytest.approx(snr_db, abs=1e-3)
    bands = [np.mean(part) for part in np.array_split(np.abs(np.fft.rfft(noise)[1:]) ** 2, 8)]
    # About 4,000 exponentially distributed bins in each: 10 % are six standard errors.
    np.testing.assert_allclose(bands / np.mean(bands), 1.0, atol=0.1)
    assert abs(np.mean(noise)) < 5 * np.std(noise) / np.sqrt(len(noise))


def test_noise_comes_of_its_seed(omni_model: avjax.Model, files: dict[str, Path]):
    sound = read_audio(files["clip"])
    noise = np.random.default_rng(4).standard_normal(len(sound))
    noise *= np.sqrt(np.sum(sound.astype(np.float64) ** 2) / np.sum(noise**2) / 10.0)
    assert_heard(omni_model, files, (sound + noise).astype(np.float32), avjax.NoiseAudio(snr_db=10.0, seed=4))
    a, b, c = (mel_of(omni_model, files, avjax.NoiseAudio(snr_db=10.0, seed=s)) for s in (4, 4, 5))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01


@given(samples=st.integers(1, 999), sign=st.sampled_from([-1, 1]))
def test_a_circular_shift_and_its_opposite(samples: int, sign: int):
    sound = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    there, _ = avjax.ShiftAudio(seconds=sign * samples / RATE)(sound, "x")
    assert there[(5 + sign * samples) % 1000] == sound[5]
    back, _ = avjax.ShiftAudio(seconds=-sign * samples / RATE)(there, "x")
    np.testing.assert_array_equal(back, sound)


@pytest.mark.parametrize("value", [0, 255, 7, (10, 20, 30)])
def test_blank_frames(omni_model: avjax.Model, files: dict[str, Path], value: int | tuple[int, int, int]):
    patches = omni_model.prompt(TEXT, video=files["clip"], corrupt=avjax.BlankVideo(value=value)).videos[0].patches
    rgb = np.array(value if isinstance(value, tuple) else (value,) * 3)
    colour = (rgb / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    by_channel = patches.reshape(len(patches), 3, -1)  # a patch has its channels one after another
    np.testing.assert_allclose(by_channel, np.broadcast_to(colour[None, :, None], by_channel.shape), atol=1e-6)


@pytest.mark.parametrize("name", ["other", "few"])
def test_swapped_frames(omni_model: avjax.Model, files: dict[str, Path], name: str):
    """8 frames of the other clip, in the 112 x 168 of the clean one, which then grow to 280 x 392."""
    frames = decoded(files[name])
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, 8).round().astype(int)]
    bicubic = Image.Resampling.BICUBIC
    small = [Image.fromarray(frame).resize((168, 112), bicubic) for frame in chosen]
    pixels = np.stack([np.asarray(frame.resize((392, 280), bicubic)) for frame in small]) / 255
    expected, grid = patchify(
        ((pixels - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).astype(np.float32), omni_model.config.vision
    )
    got = omni_model.prompt(TEXT, video=files["clip"], corrupt=avjax.SwapVideo(files[name])).videos[0]
    assert got.grid == grid == (4, 20, 28)
    np.testing.assert_allclose(got.patches, expected, atol=1e-5)


def test_clips_of_one_frame(omni_model: avjax.Model, files: dict[str, Path], tmp_path: Path):
    """A still takes the other clip's first frame; a still fills every frame of a longer clip."""
    write_video(tmp_path / "still.mp4", count=1, height=96, width=64)
    still, first = decoded(tmp_path / "still.mp4")[0], decoded(files["other"])[0]
    shown, _ = avjax.SwapVideo(files["other"])(still[None], "still.mp4")
    np.testing.assert_array_equal(shown, first[None])
    shown, _ = avjax.SwapVideo(tmp_path / "still.mp4")(np.zeros((8, 96, 64, 3), np.uint8), "clip.mp4")
    np.testing.assert_array_equal(shown, np.repeat(still[None], 8, axis=0))
    media = {"video": tmp_path / "still.mp4"}
    clean, got = (omni_model.prompt(TEXT, **media, corrupt=c) for c in ((), avjax.SwapVideo(files["other"])))
    assert_same_layout(got, clean)


def test_a_clip_swapped_for_itself(omni_model: avjax.Model, files: dict[str, Path]):
    media = {"video": files["clip"], "audio": "from_video"}
    both = [avjax.SwapAudio(files["clip"]), avjax.SwapVideo(files["clip"])]
    clean, got = omni_model.prompt(TEXT, **media), omni_model.prompt(TEXT, **media, corrupt=both)
    np.testing.assert_array_equal(got.audio[0].mel, clean.audio[0].mel)
    np.testing.assert_array_equal(got.videos[0].patches, clean.videos[0].patches)


def test_several_apply_in_order(omni_model: avjax.Model, files: dict[str, Path]):
    sound, noise = read_audio(files["clip"]), avjax.NoiseAudio(snr_db=0.0)
    shift = avjax.ShiftAudio(seconds=1.0, fill="silence")
    np.testing.assert_array_equal(mel_of(omni_model, files, noise, avjax.MuteAudio()), np.float32(-1.5))
    with pytest.raises(avjax.MediaError, match=r"clip\.mp4, muted: .*silence.*no signal-to-noise ratio"):
        mel_of(omni_model, files, avjax.MuteAudio(), noise)
    quiet = np.concatenate([np.zeros(RATE, np.float32), noise(sound, "x")[0][:-RATE]])
    assert_heard(omni_model, files, quiet, noise, shift)
    loud = noise(np.concatenate([np.zeros(RATE, np.float32), sound[:-RATE]]), "x")[0]
    assert_heard(omni_model, files, loud, shift, noise)
    assert np.abs(loud[:RATE]).max() > 0.01, "noise after the shift fills its silence, so the two orders differ"


def test_the_source_says_what_was_done(omni_model: avjax.Model, files: dict[str, Path]):
    clip, brief, long, other = (files[n] for n in ("clip", "brief", "long", "other"))
    words: dict[str, list[Corruption]] = {
        f"{clip}": [],
        f"{clip}, muted": [avjax.MuteAudio()],
        f"{clip}, white noise at -3.5 dB (seed 2)": [avjax.NoiseAudio(snr_db=-3.5, seed=2)],
        f"{clip}, shifted by +0.5 s (circular)": [avjax.ShiftAudio(seconds=0.5)],
        f"{clip}, shifted by -1 s (silence), muted": [avjax.ShiftAudio(seconds=-1, fill="silence"), avjax.MuteAudio()],
        f"{clip}, sound of {brief}, then silence": [avjax.SwapAudio(brief)],
        f"{clip}, sound of {brief}, looped": [avjax.SwapAudio(brief, fill="loop")],
        f"{clip}, sound of {long}, cut": [avjax.SwapAudio(long)],
        f"{clip}, sound of {clip}": [avjax.SwapAudio(clip)],
    }
    for expected, corruptions in words.items():
        prompt = omni_model.prompt(TEXT, video=clip, audio="from_video", corrupt=corruptions)
        assert prompt.audio[0].source == expected and prompt.videos[0].source == str(clip)
    pictures: dict[str, Corruption] = {
        f"{clip}, blank (255)": avjax.BlankVideo(255),
        f"{clip}, frames of {other}": avjax.SwapVideo(other),
    }
    for expected, corruption in pictures.items():
        assert omni_model.prompt(TEXT, video=clip, corrupt=corruption).videos[0].source == expected


@pytest.mark.parametrize("name", NAMES)
def test_json(files: dict[str, Path], name: str):
    corruption = every_corruption(files)[name]
    written = avjax.to_json(corruption)
    assert written["type"] == type(corruption).__name__
    assert avjax.from_json(json.loads(json.dumps(written))) == corruption
    assert json.loads(json.dumps(avjax.to_json([corruption]))) == [json.loads(json.dumps(written))]


def test_json_has_every_field():
    written = avjax.to_json(avjax.SwapAudio(Path("a") / "b.wav"))
    assert written == {"type": "SwapAudio", "path": str(Path("a") / "b.wav"), "fill": "silence"}
    with pytest.raises(ValueError, match="expected a finite snr_db, got None"):
        avjax.from_json({"type": "NoiseAudio", "snr_db": None})
    with pytest.raises(ValueError, match="loudness"):
        avjax.from_json({"type": "MuteAudio", "loudness": 0})


MALFORMED: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN ratio": (lambda: avjax.NoiseAudio(snr_db=math.nan), "NoiseAudio: expected a finite snr_db, got nan"),
    "infinite ratio": (lambda: avjax.NoiseAudio(snr_db=math.inf), "finite snr_db, got inf"),
    "ratio beyond the samples": (lambda: avjax.NoiseAudio(snr_db=1e6), "within -120 to 120 dB, got 1e"),
    "ratio in words": (lambda: avjax.NoiseAudio(snr_db="10"), "finite snr_db, got '10'"),  # pyright: ignore
    "negative seed": (lambda: avjax.NoiseAudio(snr_db=1, seed=-1), "seed of at least 0, got -1"),
    "fractional seed": (lambda: avjax.NoiseAudio(snr_db=1, seed=0.5), "seed of at least 0, got 0.5"),  # pyright: ignore
    "NaN shift": (lambda: avjax.ShiftAudio(seconds=math.nan), "ShiftAudio: expected a finite seconds, got nan"),
    "no shift": (lambda: avjax.ShiftAudio(seconds=1e-5), "at least one sample"),
    "unknown fill": (lambda: avjax.ShiftAudio(seconds=1, fill="loop"), "circular, silence, got 'loop'"),  # pyright: ignore
    "fill of a shift": (lambda: avjax.SwapAudio("a.wav", fill="circular"), "silence, loop, got 'circular'"),  # pyright: ignore
    "no path": (lambda: avjax.SwapAudio(None), "SwapAudio: expected the path of a file, got None"),  # pyright: ignore
    "array for a path": (lambda: avjax.SwapVideo(np.zeros(3)), "SwapVideo: expected the path"),  # pyright: ignore
    "too bright": (lambda: avjax.BlankVideo(256), "within 0 to 255, got 256"),
    "NaN colour": (lambda: avjax.BlankVideo(math.nan), "within 0 to 255, got nan"),  # pyright: ignore
    "two channels": (lambda: avjax.BlankVideo((1, 2)), "one integer, or three"),  # pyright: ignore
    "a truth value": (lambda: avjax.BlankVideo(True), "got True"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str):
    make, message = MALFORMED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_unfit_for_the_clip(omni_model: avjax.Model, files: dict[str, Path], tmp_path: Path):
    (tmp_path / "notes.wav").write_text("This is text, whatever its name says.\n" * 40)
    unfit: list[tuple[Corruption, str]] = [
        (avjax.ShiftAudio(seconds=1.3), r"tone\.wav: expected a shift shorter than the sound, 1\.3 s, got 1\.3 s"),
        (avjax.ShiftAudio(seconds=-9), r"tone\.wav: .* got -9 s; shift by less"),
        (avjax.SwapAudio(tmp_path / "absent.wav"), r"SwapAudio: .*absent\.wav: no such file; check the path"),
        (avjax.SwapAudio(tmp_path / "notes.wav"), r"SwapAudio: .*notes\.wav: expected a picture, a video or a sound"),
        (avjax.SwapAudio(files["other"]), r"SwapAudio: .*other\.mp4: expected an audio stream, found none"),
        (avjax.SwapVideo(tmp_path / "absent.mp4"), r"SwapVideo: .*absent\.mp4: no such file; check the path"),
        (avjax.SwapVideo(tmp_path / "notes.wav"), r"SwapVideo: .*notes\.wav: expected a picture, a video or a sound"),
        (avjax.SwapVideo(files["tone"]), r"SwapVideo: .*tone\.wav: expected a video stream, found none"),
    ]
    for corruption, message in unfit:
        with pytest.raises(avjax.MediaError, match=message):
            omni_model.prompt(TEXT, video=files["clip"], audio=files["tone"], corrupt=corruption)


@pytest.mark.parametrize("value", ["mute", avjax.MuteAudio, ["mute"], [avjax.MuteAudio(), None], 3], ids=str)
def test_what_is_no_corruption(omni_model: avjax.Model, files: dict[str, Path], value: Any):
    with pytest.raises(TypeError, match=r"corrupt: expected a corruption such as avjax\.MuteAudio\(\)"):
        omni_model.prompt(TEXT, audio=files["tone"], corrupt=value)


def test_silence_has_no_ratio(omni_model: avjax.Model, tmp_path: Path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.float32), RATE)
    with pytest.raises(avjax.MediaError, match=r"silence\.wav: .*leave NoiseAudio out"):
        omni_model.prompt(TEXT, audio=tmp_path / "silence.wav", corrupt=avjax.NoiseAudio(snr_db=10))


@pytest.mark.exhaustive
def test_real_clips(omni_model: avjax.Model, real_clips: Path, files: dict[str, Path]):
    """One clip with another's frames and sound: real rates, sizes and codecs."""
    media: dict[str, Any] = {"video": real_clips / "clip.mp4", "audio": "from_video", "max_frames": 8}
    frames = avjax.SwapVideo(real_clips / "silent.mp4")
    corruptions = [frames, avjax.SwapAudio(files["brief"]), avjax.ShiftAudio(seconds=2.0)]
    clean, got = omni_model.prompt(TEXT, **media), omni_model.prompt(TEXT, **media, corrupt=corruptions)
    assert_same_layout(got, clean)
    size = len(read_audio(real_clips / "clip.mp4"))
    brief = np.pad(tone(330, 0.5), (2 * RATE, size - len(tone(330, 2.5))))
    np.testing.assert_allclose(got.audio[0].mel, hf_log_mel(brief), atol=1e-5, rtol=0)
    other = decoded(real_clips / "silent.mp4")
    chosen = [other[i] for i in np.linspace(0, len(other) - 1, 8).round().astype(int)]
    resized = np.stack([Image.fromarray(f).resize((640, 360), Image.Resampling.BICUBIC) for f in chosen])
    shown, _ = frames(np.zeros((8, 360, 640, 3), np.uint8), "x")
    np.testing.assert_array_equal(shown, resized)
    with pytest.raises(avjax.MediaError, match=r"silent\.mp4: expected an audio stream"):
        omni_model.prompt(TEXT, **media, corrupt=avjax.SwapAudio(real_clips / "silent.mp4"))
