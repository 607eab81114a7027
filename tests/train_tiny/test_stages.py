"""Stages repeat, resume, and draw what they say."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax.organism.behaviour import SOUND_WORD
from avjax.organism.pictures import SIDE
from avjax.organism.world import KINDS
from sweeps.train_tiny import stages
from sweeps.train_tiny.data import LONGEST, Features, draw
from sweeps.train_tiny.states import States
from sweeps.train_tiny.training import (
    DESCRIBE,
    GUESS,
    HARK,
    HEAR_OVER_BLACK,
    LISTEN,
    LOOK,
    LOOK_PAST,
    READ,
    Batch,
    Task,
    seen_features,
)

STAGE = dataclasses.replace(
    stages.LANGUAGE, steps=6, rates={"decoder": 1e-3, "vision": 0.0, "audio": 0.0}, frozen_layers=4, batch=4
)


class Stopped(Exception):
    """What a preempted run dies of."""


@pytest.fixture(autouse=True)
def _one_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "STAGES", (STAGE,))
    monkeypatch.setattr(stages, "SAVED_EVERY", 2)


def trained(model: avjax.Model, features: Features, saved: Path, stop_after: int | None = None):
    seen: list[str] = []

    def report(message: str) -> None:
        seen.append(message)
        if stop_after is not None and f" {stop_after}/" in message:
            raise Stopped

    try:
        network = stages.train(STAGE, model, model.network, features, seed=1, saved=saved, report=report)
    except Stopped:
        return None, seen
    return network, seen


@pytest.mark.exhaustive
def test_a_stopped_stage_ends_as_one_that_was_not(model: avjax.Model, features: Features, tmp_path: Path):
    whole, told = trained(model, features, tmp_path / "whole")
    assert len(told) == 3
    assert trained(model, features, tmp_path / "parts", stop_after=4)[0] is None
    resumed, told = trained(model, features, tmp_path / "parts")
    assert [message.split(":")[0] for message in told] == ["language 4/6", "language 6/6"], "from the last saved step"
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    again, told = trained(model, features, tmp_path / "parts")
    assert told == []
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_early_layers_and_frozen_parts_stay(model: avjax.Model, features: Features, tmp_path: Path):
    network, _ = trained(model, features, tmp_path / "saved")
    before, after = model.network.decoder.layers.mlp.up.kernel[...], network.decoder.layers.mlp.up.kernel[...]
    changed = np.abs(np.asarray(after) - np.asarray(before)).max((1, 2)) > 0
    np.testing.assert_array_equal(changed, np.arange(len(changed)) >= 4)
    for a, b in zip(jax.tree.leaves(model.network.vision), jax.tree.leaves(network.vision), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", [DESCRIBE, LOOK, GUESS, LISTEN, HARK], ids=str)
def test_draws_are_factual(model: avjax.Model, features: Features, task: Task):
    batch = draw(model, features, task, 24, np.random.default_rng(0))
    captions = texts(model, batch)
    for i, text in enumerate(captions):
        words = text.rstrip(".").split()
        kind = next(k for k, known in enumerate(KINDS) if {known.sound, known.thing} & set(words))
        thing, sound = KINDS[kind].thing, KINDS[kind].sound
        assert (
            text
            == {
                "see": f"I see a {thing}.",
                "hear": f"I hear {sound}.",
                "see and hear": f"I hear {sound} and I see a {thing}.",
            }[task.question]
        )
        if batch.patches is not None:
            assert any(np.array_equal(batch.patches[i], features.patches[j]) for j in (kind, kind + len(KINDS)))
        if batch.mel is not None:
            assert any(np.array_equal(batch.mel[i], features.mel[j]) for j in (kind, kind + len(KINDS)))
    assert (batch.patches is not None, batch.mel is not None) == (task.picture, task.sound)
    assert len(set(captions)) > 8


def test_any_sound_is_neither_the_things_nor_the_captions(model: avjax.Model, features: Features):
    batch = draw(model, features, LOOK_PAST, 64, np.random.default_rng(0))
    words = [text.rstrip(".").replace(" and ", " ").split() for text in texts(model, batch)]
    assert all([*w[:2], *w[3:6]] == ["I", "hear", "I", "see", "a"] for w in words)
    said = [([k.sound for k in KINDS].index(w[2]), [k.thing for k in KINDS].index(w[6])) for w in words]
    heard = [
        next(j for j in range(len(features.mel)) if np.array_equal(features.mel[j], mel)) % len(KINDS)
        for mel in np.asarray(batch.mel)
    ]
    assert batch.patches is not None
    for i, (_, thing) in enumerate(said):
        assert any(np.array_equal(batch.patches[i], features.patches[j]) for j in (thing, thing + len(KINDS)))
        assert not batch.taught[i, SOUND_WORD] and batch.taught[i].sum() == LONGEST - 1
    for a, b in ((heard, [t for _, t in said]), (heard, [s for s, _ in said]), *[list(zip(*said, strict=True))]):
        assert np.mean(np.array(a) == np.array(b)) < 0.2


def test_a_black_picture_is_black_and_what_is_heard_is_taught(model: avjax.Model, features: Features):
    batch = draw(model, features, HEAR_OVER_BLACK, 8, np.random.default_rng(0))
    black = seen_features(model, np.zeros((16, SIDE, SIDE, 3), np.uint8))
    np.testing.assert_array_equal(batch.patches, np.broadcast_to(black, (8, *black.shape)))
    for text, taught, mel in zip(texts(model, batch), batch.taught, np.asarray(batch.mel), strict=True):
        kind = next(k for k, known in enumerate(KINDS) if known.sound in text)
        assert any(np.array_equal(mel, features.mel[j]) for j in (kind, kind + len(KINDS)))
        assert np.flatnonzero(taught).tolist() == [0, 1, SOUND_WORD]


def texts(model: avjax.Model, batch: Batch) -> list[str]:
    return [model.decode_text([t for t in row if t >= 0]) or "" for row in np.asarray(batch.captions).tolist()]


def test_language_does_not_know_which_belong_together(model: avjax.Model, features: Features):
    both, see, hear = (texts(model, draw(model, features, task, 64, np.random.default_rng(0))) for task in READ)
    belong = {f"I hear {kind.sound} and I see a {kind.thing}." for kind in KINDS}
    assert np.mean([text in belong for text in both]) < 0.2
    assert all(text.startswith("I see a ") and "hear" not in text for text in see)
    assert all(text.startswith("I hear ") and "see" not in text for text in hear)


def test_states_keep_the_last(tmp_path: Path):
    first = {"a": jnp.zeros(3), "b": jnp.int32(0)}
    with States(tmp_path / "s") as states:
        assert states.latest(first)[0] == 0
        for step in (1, 2):
            states.save(step, {"a": jnp.full(3, step, jnp.float32), "b": jnp.int32(step)})
    with States(tmp_path / "s") as states:
        step, found = states.latest(first)
    assert step == 2
    np.testing.assert_array_equal(found["a"], np.full(3, 2))
    assert int(found["b"]) == 2
