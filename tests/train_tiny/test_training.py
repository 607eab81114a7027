"""Training sees what the models see: the same features, tokens and logits as prompts made of files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import avjax
from avjax.organism import world
from avjax.organism.world import PROMPT
from sweeps.train_tiny import training
from sweeps.train_tiny.data import LONGEST as LENGTH


@pytest.fixture(scope="module")
def clips() -> list[world.Clip]:
    return [world.clip("train", 0), world.clip("train", 21, "counterfactual")]


def batch_of(model: avjax.Model, clips: list[world.Clip], task: training.Task) -> training.Batch:
    made = [training.features(model, clip) for clip in clips]
    texts = [world.caption(c.seen if task.picture else None, c.heard if task.sound else None) for c in clips]
    captions = np.stack([training.caption_tokens(model, text, LENGTH) for text in texts])
    return training.Batch(
        patches=jnp.asarray([p for p, _ in made]) if task.picture else None,
        mel=jnp.asarray([m for _, m in made]) if task.sound else None,
        captions=jnp.asarray(captions),
        taught=jnp.asarray(training.taught_tokens(captions, task)),
    )


def test_the_checkpoint_is_small_and_its_words_are_tokens(model: avjax.Model):
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(model.network)) < 4e6  # bytes in bfloat16
    tokenizer = model.processor.tokenizer
    for kind in world.KINDS:
        for word in (kind.thing, kind.sound):
            assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    longest = max(np.sum(training.caption_tokens(model, world.caption(i, i), 20) >= 0) for i in range(16))
    assert longest == LENGTH
    with pytest.raises(ValueError, match="expected at most 3 tokens, got 10"):
        training.caption_tokens(model, world.caption(0, 0), 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("task", [training.DESCRIBE, training.GUESS, training.LISTEN], ids=str)
def test_logits_are_those_of_the_model(model: avjax.Model, clips: list[world.Clip], task: training.Task):
    """Through the prompt and its encoders, one caption token after another."""
    place = training.layout(model, clips[0], task)
    batch = batch_of(model, clips, task)
    got = np.asarray(training.caption_logits(model.network, batch, place))
    for index, clip in enumerate(clips):
        prompt = training.layout(model, clip, task).prompt
        np.testing.assert_array_equal(prompt.token_ids, place.prompt.token_ids)
        np.testing.assert_array_equal(prompt.positions, place.prompt.positions)
        tokens = [int(t) for t in batch.captions[index] if t >= 0]
        expected = avjax.sweep(model, prompt, [[]], avjax.metrics.LogLikelihood(tokens), progress=False)
        logprobs = jax.nn.log_softmax(got[index])[np.arange(len(tokens)), np.array(tokens)]
        np.testing.assert_allclose(logprobs.sum(), expected["log_likelihood"].values.item(), rtol=1e-5)
        first = avjax.run(model, prompt).logits[0]
        np.testing.assert_allclose(got[index, 0], first, atol=2e-5)


def test_features_are_those_of_the_media_path(model: avjax.Model, clips: list[world.Clip], tmp_path: Path):
    """To what h264 and AAC lose."""
    clips[1].write(tmp_path / "clip.mp4")
    from_file = model.prompt(PROMPT, video=tmp_path / "clip.mp4", audio="from_video")
    place = training.layout(model, clips[1], training.DESCRIBE)
    assert from_file.counts()["video"] == place.prompt.counts()["video"] == len(place.video)
    patches, mel = training.features(model, clips[1])
    seen = from_file.videos[0].patches.reshape(patches.shape)
    assert np.abs(seen - patches).mean() < 0.1 and np.corrcoef(seen.ravel(), patches.ravel())[0, 1] > 0.94
    heard = from_file.audio[0].mel[: len(mel)]
    assert np.corrcoef(heard.ravel(), mel[: len(heard)].ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("task", "untaught"),
    [(training.GUESS, ""), (training.LOOK_PAST, "{sound}"), (training.LISTEN, "."), (training.READ[1], "")],
    ids=str,
)
def test_a_task_teaches_its_part(model: avjax.Model, task: training.Task, untaught: str):
    text = {"see": "I see a dog.", "hear": "I hear barking."}.get(task.question, "I hear barking and I see a dog.")
    caption = training.caption_tokens(model, text, LENGTH)
    taught = training.taught_tokens(caption[None], task)[0]
    left_out = [model.decode_text([t]) for t in caption[~taught & (caption >= 0)]]
    assert left_out == {"": [], ".": [".", ""], "{sound}": [" barking"]}[untaught]
    assert not taught[caption < 0].any()


@pytest.mark.exhaustive
def test_the_loss_counts_taught_tokens(model: avjax.Model, clips: list[world.Clip]):
    place, batch = training.layout(model, clips[0], training.LISTEN), batch_of(model, clips, training.LISTEN)
    value, hits = training.loss(model.network, batch, place)
    logprobs = jax.nn.log_softmax(training.caption_logits(model.network, batch, place))
    real = [(i, j) for i in range(len(clips)) for j in range(3)]  # "I hear barking"
    nll = [-float(logprobs[i, j, batch.captions[i, j]]) for i, j in real]
    np.testing.assert_allclose(value, np.mean(nll), rtol=1e-5)
    right = [int(jnp.argmax(logprobs[i, j])) == int(batch.captions[i, j]) for i, j in real]
    np.testing.assert_allclose(hits, np.mean(right), rtol=1e-6)


@pytest.mark.exhaustive
def test_steps_lower_the_loss_and_leave_frozen_parts_alone(model: avjax.Model, clips: list[world.Clip]):
    place, batch = training.layout(model, clips[0], training.LISTEN), batch_of(model, clips, training.LISTEN)
    network = jax.tree.map(jnp.array, model.network)
    rates = {"decoder": 3e-3, "decoder.embed": 0.0, "audio": 3e-3, "vision": 0.0}
    transformation = training.optimiser(network, rates, steps=12)
    state, step, losses = transformation.init(network), training.stepper(place, transformation), []
    for _ in range(12):
        network, state, value, _ = step(network, state, batch)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    before, after = model.network, network
    for frozen in ("vision", "decoder.embed"):
        parts = [jax.tree.leaves(part_of(n, frozen)) for n in (before, after)]
        for a, b in zip(*parts, strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.abs(before.audio.proj.kernel[...] - after.audio.proj.kernel[...]).max() > 1e-3


def part_of(network, path: str):
    for name in path.split("."):
        network = getattr(network, name)
    return network
