"""Prompts of one clip are one group in every split, and what is held out changes nothing that is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax import metrics
from avjax.analysis import learn_gates, probe_features, train_probes, train_tuned_lens
from avjax.analysis.clip_groups import clip_groups, media_of
from avjax.analysis.gates import _share_of_groups

D = 64
SMALL: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}
QUICK: dict[str, Any] = {"steps": 1, "num_random": 1, "query": "last", "progress": False}
ANSWER = metrics.LogProb([7])


def embedded(model: avjax.Model, words: int, sound: int | None, picture: int | None) -> avjax.Prompt:
    """A prompt of drawn embeddings: words, then a sound, then a picture, each known by a number."""
    parts, types = [], []
    for kind, number in (("text", words), ("audio", sound), ("video", picture)):
        if number is not None:
            rng = np.random.default_rng([len(kind), ord(kind[0]), number])
            parts.append(rng.normal(size=(4, D)).astype(np.float32))
            types += [kind] * 4
    parts.append(np.ones((2, D), np.float32))
    types += ["text"] * 2
    return model.prompt_from_embeddings(np.concatenate(parts), np.tile(np.arange(len(types)), (3, 1)), types)


def groups_of(prompts: list[avjax.Prompt], **options: Any) -> list[int]:
    return clip_groups(list(range(len(prompts))), media_of(prompts), **options).tolist()


def components(clips: list[tuple[int | None, int | None]]) -> list[set[int]]:
    """Samples that hang together by a sound or a picture, by walking from one to the next."""
    left, found = set(range(len(clips))), []
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = {
                j
                for j in left - group
                for i in group
                if any(a is not None and a == b for a, b in zip(clips[i], clips[j], strict=True))
            }
        found.append(group)
        left -= group
    return found


media = st.tuples(st.none() | st.integers(0, 3), st.none() | st.integers(0, 3)).filter(lambda c: c != (None, None))


@settings(max_examples=60)
@given(clips=st.lists(media, min_size=1, max_size=7), words=st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_prompts_that_share_a_clip_are_one_group(omni_model: avjax.Model, clips: list, words: list[int]):
    prompts = [embedded(omni_model, w, *clip) for w, clip in zip(words, clips, strict=False)]
    found = groups_of(prompts)
    assert [{i for i, g in enumerate(found) if g == n} for n in range(max(found) + 1)] == components(clips)


def test_words_alone_are_their_own_groups_and_the_same_words_one(omni_model: avjax.Model):
    prompts = [omni_model.prompt(words) for words in ("What is heard?", "What is seen?", "What is heard?")]
    assert groups_of(prompts) == [0, 1, 0]
    assert groups_of(prompts, groups=["a", "b", "c"]) == [0, 1, 2]
    assert groups_of(prompts, groups={0: 5, 1: 5, 2: 6}) == [0, 0, 1]
    with pytest.raises(ValueError, match=r"groups are missing for 1 of 3 samples: 2"):
        groups_of(prompts, groups={0: 5, 1: 5})


def drawn_clip(seed: int) -> tuple[Any, Any]:
    """Frames and samples of noise, with their rates."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, size=(4, 56, 84, 3)).astype(np.uint8)
    return (frames, 2.0), (rng.normal(size=32_000).astype(np.float32) * 0.1, 16_000)


def test_a_clip_with_and_without_its_sound_or_picture(omni_model: avjax.Model):
    (video, sound), (video_b, sound_b) = drawn_clip(0), drawn_clip(1)

    def prompt(text: str, **clips: Any) -> avjax.Prompt:
        return omni_model.prompt(text, **clips, **SMALL)

    mute, blank = avjax.MuteAudio(), avjax.BlankVideo()
    prompts = [
        prompt("What is heard?", video=video, audio=sound),
        prompt("What is seen?", video=video, audio=None),
        prompt("What is heard?", audio=sound),
        prompt("What is heard?", video=video_b, audio=sound_b),
        prompt("What is heard?", video=video_b, audio=sound_b, corrupt=mute),
        prompt("What is heard?", video=video_b, audio=sound_b, corrupt=blank),
        prompt("What is heard?", video=video, audio=sound, corrupt=mute),
        prompt("What is heard?", video=video, audio=sound, corrupt=blank),
    ]
    assert groups_of(prompts) == [0, 0, 0, 1, 1, 1, 0, 0], "silence and black frames are of no clip"
    swapped = prompt("What is heard?", video=video, audio=sound_b)
    assert groups_of([*prompts[:4], swapped]) == [0, 0, 0, 0, 0], "it is of both clips"


def test_a_file_is_one_clip_however_it_is_read(omni_model: avjax.Model, clip: Path, tmp_path: Path):
    other = tmp_path / "a copy, of it.mp4"
    other.write_bytes(clip.read_bytes())
    texts: list[dict[str, Any]] = [
        {"video": clip, "audio": None},
        {"video": clip, "audio": None, "fps": 1.0},
        {"audio": clip},
        {"video": other, "audio": "from_video", "corrupt": avjax.NoiseAudio(10.0)},
    ]
    prompts = [omni_model.prompt(f"Number {i}", **given, **SMALL) for i, given in enumerate(texts)]
    assert len({p.fingerprint for p in prompts}) == 4
    assert groups_of(prompts) == [0, 0, 0, 0], "the copy has the same frames, the others the same file"
    (video, sound), (_, more) = drawn_clip(0), drawn_clip(1)
    swapped = omni_model.prompt("?", video=video, audio=sound, corrupt=avjax.SwapAudio(str(other)), **SMALL)
    alone = omni_model.prompt("?", audio=other, fps=1.0, corrupt=avjax.ShiftAudio(0.5), **SMALL)
    assert groups_of([swapped, alone, omni_model.prompt("?", audio=more)]) == [0, 0, 1]


sizes_strategy = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@settings(max_examples=200)
@given(sizes=sizes_strategy, share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_a_share_holds_out_whole_groups(sizes: list[int], share: float, seed: int):
    numbers = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        chosen = _share_of_groups(numbers, share, seed)
    except ValueError as error:
        count = round(share * len(numbers))
        few = not 2 <= count < len(numbers)
        one_side = len(sizes) == 1 or sum(sorted(sizes)[:-1]) < 2
        assert (few and "expected a share" in str(error)) or (one_side and "share a clip" in str(error))
        return
    assert not set(numbers[chosen]) & set(numbers[~chosen])
    assert chosen.sum() >= 2 and (~chosen).any()
    if min(sizes) <= round(share * len(numbers)) and max(sizes) == 1:
        assert chosen.sum() == round(share * len(numbers))


@pytest.fixture(scope="module")
def pairs(omni_model: avjax.Model) -> dict[str, avjax.Prompt]:
    """Six clips under two questions each."""
    return {f"{clip}{words}": embedded(omni_model, words, clip, clip) for clip in range(6) for words in (0, 1)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(3))
def test_gates_are_measured_on_other_clips(omni_model: avjax.Model, pairs: dict[str, avjax.Prompt], seed: int):
    found = learn_gates(omni_model, pairs, ANSWER, held_out=0.5, seed=seed, **QUICK)
    held = found["sample"].values.tolist()
    assert len(held) == 6 and {name[0] + "0" for name in held} | {name[0] + "1" for name in held} == set(held)
    assert found.attrs["groups"] == "6 by their media"
    together = {name: name in ("00", "10", "20") for name in pairs}
    found = learn_gates(omni_model, pairs, ANSWER, held_out=0.3, groups=together, seed=seed, **QUICK)
    assert found["sample"].values.tolist() == ["00", "10", "20"]
    assert found.attrs["groups"] == "2 by groups="


@pytest.mark.exhaustive
def test_gates_of_one_clip_have_nothing_to_be_measured_on(omni_model: avjax.Model, pairs: dict[str, avjax.Prompt]):
    one = {str(words): embedded(omni_model, words, 0, 0) for words in range(4)}
    with pytest.raises(ValueError, match=r"got 1 group of prompts that share a clip .*; add prompts of other clips"):
        learn_gates(omni_model, one, ANSWER, held_out=0.5, **QUICK)
    assert learn_gates(omni_model, one, ANSWER, held_out=0.5, groups=range(4), **QUICK).sizes["sample"] == 2
    train = {name: pairs[name] for name in ("00", "10")}
    test = {name: pairs[name] for name in ("20", "11")}
    with pytest.raises(ValueError, match="got sample '11', which shares a clip with '10'; leave one of them out"):
        learn_gates(omni_model, train, ANSWER, held_out=test, **QUICK)
    given = {"00": 0, "10": 1, "20": 0, "11": 2}
    with pytest.raises(ValueError, match="got sample '20', which shares a value of groups= with '00'"):
        learn_gates(omni_model, train, ANSWER, held_out=test, groups=given, **QUICK)


@pytest.mark.exhaustive
def test_a_tuned_lens_is_reported_on_other_clips(omni_model: avjax.Model, pairs: dict[str, avjax.Prompt]):
    options: dict[str, Any] = {"steps": 1, "batch_size": 2, "progress": False}
    with pytest.raises(ValueError, match="got sample '01', which shares a clip with '00'"):
        train_tuned_lens(omni_model, {"00": pairs["00"]}, {"11": pairs["11"], "01": pairs["01"]}, **options)
    silent = embedded(omni_model, 5, 1, 0)  # the sound of another clip, the picture of this one
    with pytest.raises(ValueError, match="got sample 1, which shares a clip with 0"):
        train_tuned_lens(omni_model, [pairs["00"]], [pairs["20"], silent], **options)
    lens = train_tuned_lens(omni_model, [pairs["00"]], [pairs["01"]], groups=["a", "b"], **options)
    assert lens.report.attrs["groups"] == "2 by groups="
    with pytest.raises(ValueError, match="shares a value of groups= with 0"):
        train_tuned_lens(omni_model, [pairs["00"]], [pairs["11"]], groups=["a", "a"], **options)


@pytest.mark.exhaustive
def test_probes_keep_a_clip_on_one_side(omni_model: avjax.Model):
    prompts = {f"{clip} {w}": embedded(omni_model, w, clip, None) for clip in range(12) for w in range(3)}
    labels = [int(name.split()[0]) % 2 for name in prompts]
    features = probe_features(omni_model, prompts, pooling="mean", progress=False)
    for array in (features, features["features"], xr.concat([features.isel(sample=[i]) for i in range(36)], "sample")):
        probes = train_probes(array, labels, seeds=range(4), strengths=[0.1], progress=False)
        split = probes.results["split"].values.reshape(4, 12, 3)
        assert (split == split[..., :1]).all() and (split == 2).any((1, 2)).all()
        assert probes.results.attrs["groups"] == "12 by their media"
    apart = train_probes(features, labels, groups=range(36), seeds=range(4), strengths=[0.1], progress=False)
    split = apart.results["split"].values.reshape(4, 12, 3)
    assert (split != split[..., :1]).any()
    one = {str(w): embedded(omni_model, w, 0, None) for w in range(6)}
    features = probe_features(omni_model, one, pooling="mean", progress=False)
    with pytest.raises(ValueError, match=r"expected more than 1 groups of clips, .*, got 1; .* pass groups="):
        train_probes(features, [0, 1] * 3, progress=False)


@pytest.mark.exhaustive
@settings(max_examples=4)
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1e6, 1e25, 1e-20]),
    kind=st.sampled_from(["one value", "noise", "labels"]),
    validation=st.sampled_from([0.0, 0.2]),
)
def test_test_clips_change_no_trained_probe(seed: int, size: float, kind: str, validation: float):
    """To the bit: weights, standardisation, training loss and the scores of training clips."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 60, 8)) * np.exp(rng.normal(size=8)) + rng.normal(size=8)
    labels = rng.permutation(np.arange(60) % 3)
    options: dict[str, Any] = {"seeds": [seed, seed + 1], "strengths": [1e-2, 1.0], "progress": False}
    options |= {"validation_fraction": validation, "control": [f"{i % 5}" for i in range(60)]}

    def trained(x: np.ndarray) -> Any:
        array = xr.DataArray(x.astype(np.float32), dims=("layer", "sample", "feature"))
        return array, train_probes(array, labels, **options)

    array, clean = trained(x)
    for index in range(2):
        test = clean.results["split"].values[index] != 0
        other = x.copy()
        other[:, test] = size * (1 if kind == "one value" else rng.normal(size=other[:, test].shape))
        if kind == "labels":
            other[:, test, 0] += 1e3 * labels[test]
        _, found = trained(other)
        for name in ("kernel", "bias", "mean", "scale"):
            np.testing.assert_array_equal(found.weights[name][:, index], clean.weights[name][:, index])
        for name in ("loss", "gradient", "steps"):
            np.testing.assert_array_equal(found.results[name][:, index], clean.results[name][:, index])
        train = array.isel(sample=np.flatnonzero(~test))
        scores = [p.at(seed=seed + index).logits(train) for p in (found, clean)]
        np.testing.assert_array_equal(*scores)


def test_the_same_prompt_in_two_layouts_keeps_its_media(omni_model: avjax.Model):
    """What a prompt is made of does not depend on its words, its opening or the order of both."""
    video, sound = drawn_clip(3)
    prompts = [
        omni_model.prompt(f"Question {i}", video=video, audio=sound, order=order, **SMALL)
        for i, order in enumerate(("media-first", "text-first"))
    ]
    prompts.append(dataclasses.replace(prompts[0].continued([5, 6]), order=None))
    assert len(set(media_of(prompts))) == 1
