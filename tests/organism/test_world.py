"""The tiny world: draws are repeatable and disjoint, kinds can be told apart, and clips survive a real file."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import avjax
from avjax.media.decode import SAMPLE_RATE, read_audio, read_frames, video_info
from avjax.media.features import waveform_features
from avjax.media.frames import evenly_spaced
from avjax.organism import pictures, sounds, world

COUNT = len(world.KINDS)


def test_words_name_one_kind_each():
    things, heard = ([getattr(kind, name) for kind in world.KINDS] for name in ("thing", "sound"))
    assert COUNT >= 14 and len({*things, *heard}) == 2 * COUNT
    assert all(word.isalpha() and word.islower() for word in (*things, *heard))


def test_draws_repeat_and_splits_never_meet():
    seen = {}
    for split, number in itertools.product(world.SPLITS, (0, COUNT, 2 * COUNT)):
        clip, again = world.clip(split, number), world.clip(split, number)
        np.testing.assert_array_equal(clip.frames, again.frames)
        np.testing.assert_array_equal(clip.samples, again.samples)
        seen[split, number] = clip
    for a, b in itertools.combinations(seen.values(), 2):
        assert (a.frames != b.frames).mean() > 0.2 and np.abs(a.samples - b.samples).max() > 0.01


@pytest.mark.exhaustive
def test_conditions_change_one_modality():
    for number in range(3 * COUNT):
        clean, other = world.clip("test", number), world.clip("test", number, "counterfactual")
        assert clean.seen == clean.heard == other.seen == number % COUNT != other.heard
        np.testing.assert_array_equal(clean.frames, other.frames)
    muted, blank = (world.clip("test", 5, c) for c in ("muted", "blank"))
    assert (muted.heard, blank.seen) == (None, None) and not muted.samples.any() and not blank.frames.any()
    np.testing.assert_array_equal(muted.frames, world.clip("test", 5).frames)
    np.testing.assert_array_equal(blank.samples, world.clip("test", 5).samples)
    heard = [world.clip("test", n, "counterfactual").heard for n in range(12 * COUNT)]
    assert min(np.bincount(heard, minlength=COUNT)) >= 4


@pytest.mark.parametrize("kind", range(COUNT), ids=[k.sound for k in world.KINDS])
def test_clips_are_of_the_stated_form(kind: int):
    for number in range(kind, 8 * COUNT, COUNT):
        clip = world.clip("selection", number)
        assert clip.frames.shape == (16, pictures.SIDE, pictures.SIDE, 3) and clip.frames.dtype == np.uint8
        assert clip.samples.shape == (2 * SAMPLE_RATE,) and clip.samples.dtype == np.float32
        level = 20 * np.log10(np.sqrt(np.mean(clip.samples.astype(np.float64) ** 2)))
        assert np.abs(clip.samples).max() <= 1 and -28 < level < -8
        assert np.abs(np.diff(clip.frames.astype(int), axis=0)).max() > 10, "the thing moves"


def nearest(train: np.ndarray, test: np.ndarray, labels: np.ndarray, expected: np.ndarray) -> float:
    """Accuracy of the nearest training clip, of standardised features."""
    mean, spread = train.mean(0), train.std(0) + 1e-6
    a, b = (train - mean) / spread, (test - mean) / spread
    found = labels[np.argmin(((b[:, None] - a[None]) ** 2).sum(-1), axis=1)]
    return float(np.mean(found == expected))


@pytest.mark.exhaustive
def test_sounds_tell_their_kind(omni_model: avjax.Model):
    """Even to a nearest neighbour over means and spreads of mel bands; chance is 1 in 16."""

    def summary(split: world.Split, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows, labels = [], []
        for number in range(count * COUNT):
            samples = world.sound(split, number, number % COUNT)
            mel = waveform_features(samples, omni_model.processor.options, source="clip").mel
            bands = mel.reshape(len(mel), 32, -1).mean(-1)
            rows.append(np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)]))
            labels.append(number % COUNT)
        return np.array(rows), np.array(labels)

    train, labels = summary("train", 12)
    test, expected = summary("selection", 3)
    assert nearest(train, test, labels, expected) > 0.75


def test_a_clip_survives_its_file(tmp_path: Path, omni_model: avjax.Model):
    clip = world.clip("train", 3)
    path = tmp_path / "clip.mp4"
    clip.write(path)
    info = video_info(path)
    assert (info.num_frames, info.frames_per_second) == (world.NUM_FRAMES, world.FRAMES_PER_SECOND)
    frames, _ = read_frames(path, lambda n: evenly_spaced(n, n), info.num_frames)
    assert np.abs(frames.astype(int) - clip.frames).mean() < 8
    samples = read_audio(path)
    overlap = min(len(samples), len(clip.samples))
    assert abs(len(samples) - len(clip.samples)) <= 2048
    assert np.corrcoef(samples[:overlap], clip.samples[:overlap])[0, 1] > 0.9
    prompt = omni_model.prompt("What?", video=path, audio="from_video", min_pixels=28 * 28, max_pixels=84 * 84)
    assert prompt.counts()["video"] == 18 and prompt.counts()["audio"] in (50, 51)


def test_captions():
    assert world.caption(0, 0) == "I hear barking and I see a dog."
    assert world.caption(None, 3) == "I hear siren."
    assert world.caption(2, None) == "I see a car."


def test_a_sound_is_placed_where_it_begins():
    placed = sounds._placed([(1.0, np.ones(10)), (1.9999, np.ones(1000))])
    assert placed[:SAMPLE_RATE].sum() == 0 and placed[SAMPLE_RATE : SAMPLE_RATE + 10].sum() == 10
    assert len(placed) == sounds.NUM_SAMPLES
