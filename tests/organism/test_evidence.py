"""Scores, ranks and prompts with an answer's start, each against a slow or obvious account."""

import numpy as np
import pytest

import avjax
from avjax.engine.generate import Generation
from avjax.organism import behaviour, world
from avjax.organism.world import PROMPT


def generation(tokens: list[int], logits: np.ndarray | None = None) -> Generation:
    from avjax.engine.touched import Touched

    return Generation(text=None, tokens=np.array(tokens), logits=logits, touched=Touched())


def clip_of(seen: int | None, heard: int | None) -> world.Clip:
    return world.Clip(seen, heard, np.zeros((1, 2, 2, 3), np.uint8), np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("text", "seen", "heard", "expected"),
    [
        ("I hear barking and I see a dog.", 0, 0, (True, True, True)),
        ("I hear barking and I see a dog.", 0, 1, (True, False, True)),
        ("I hear ringing and I see a dog.", 0, 1, (True, True, False)),
        ("I hear ringing.", 0, 1, (False, True, False)),
        ("I hear barkings and I see a dogs.", 0, 0, (False, False, False)),
        ("", 0, 1, (False, False, False)),
        ("I hear barking.", None, 0, (False, True, False)),
        ("I see a dog.", 0, None, (True, False, False)),
    ],
)
def test_words_are_scored_whole(text: str, seen: int | None, heard: int | None, expected: tuple[bool, bool, bool]):
    found = behaviour.score(text, clip_of(seen, heard))
    assert (found.picture, found.sound, found.suggested) == expected


def test_rank_under_the_base():
    logits = np.array([[0.0, 1.0, 2.0, 3.0]] * 3)
    base = generation([3, 3, 3], logits)
    assert behaviour.rank_under_base(generation([3, 1, 0]), base, 0) == 1
    assert behaviour.rank_under_base(generation([3, 1, 0]), base, 1) == 3
    assert behaviour.rank_under_base(generation([3, 1, 0]), base, 2) is None, "the captions differ before it"
    assert behaviour.rank_under_base(generation([3]), base, 1) is None, "the caption has ended"


def test_knockouts_slide_over_the_layers():
    rules = behaviour.knockouts(6, 4)
    assert list(rules) == [
        "clean", "answer->video@0:4", "answer->video@1:5", "answer->video@2:6", "answer->video", "answer->audio"
    ]  # fmt: skip
    assert rules["clean"] == [] and rules["answer->audio"] == ["answer->audio"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "rule", [None, "generated->video", "answer->video | audio@2:6", "generated->generated", "answer->all@1:3"]
)
def test_a_prompt_with_the_opening_of_its_answer_goes_on_as_generation_did(
    omni_model: avjax.Model, clip, rule: str | None
):
    """Under rules about the answer too: an opening's tokens are generated ones."""
    rules = [] if rule is None else [rule]
    prompt = omni_model.prompt(PROMPT, video=clip, audio="from_video")
    whole = avjax.generate(omni_model, prompt, *rules, max_new_tokens=6)
    assert whole.logits is not None
    for count in (1, 3):
        longer = prompt.continued(whole.tokens[:count])
        assert len(longer) == len(prompt) + count
        np.testing.assert_allclose(avjax.run(omni_model, longer, *rules).logits[0], whole.logits[count], atol=2e-5)
        rest = avjax.generate(omni_model, longer, *rules, max_new_tokens=6 - count)
        np.testing.assert_array_equal(rest.tokens, whole.tokens[count:])


@pytest.mark.exhaustive
def test_residuals_are_means_over_audio_tokens(omni_model: avjax.Model, clip):
    prompt = omni_model.prompt(PROMPT, video=clip, audio="from_video")
    found = behaviour.audio_residuals(omni_model, prompt)
    places = np.flatnonzero(prompt.token_ids == omni_model.config.tokens.audio)
    for layer in (0, 7):
        seen = avjax.run(omni_model, prompt, capture=[f"blocks.{layer}.hook_resid_post"]).captures
        expected = np.mean([seen[f"blocks.{layer}.hook_resid_post"][p] for p in places], 0)
        np.testing.assert_allclose(found[layer], expected, atol=1e-5)


@pytest.mark.exhaustive
def test_probes_tell_sounds_from_the_control_task():
    rng = np.random.default_rng(0)
    seen, heard = np.tile(np.arange(16), 20), rng.integers(16, size=320)
    clips = [clip_of(int(s), int(h)) for s, h in zip(seen, heard, strict=True)]
    centres = rng.normal(size=(16, 2, 24))
    residuals = centres[heard] + rng.normal(size=(len(heard), 2, 24)) * np.array([0.2, 50.0])[:, None]
    scores = behaviour.probe_sound(residuals, clips, num_train=240)
    assert scores.hits.shape == scores.control_hits.shape == (80, 2)
    assert scores.accuracy[0] > 0.98 and scores.accuracy[1] < 0.3 and scores.control.max() < 0.4
    np.testing.assert_allclose(scores.selectivity, scores.accuracy - scores.control)


@pytest.mark.exhaustive
def test_a_probe_that_can_tell_pairs_apart_solves_the_control_task():
    """So the control can fail a probe."""
    rng = np.random.default_rng(0)
    seen, heard = rng.integers(16, size=(2, 600))
    clips = [clip_of(int(s), int(h)) for s, h in zip(seen, heard, strict=True)]
    pairs = np.eye(256)[16 * seen + heard][:, None]
    scores = behaviour.probe_sound(pairs, clips, num_train=500)
    known = np.isin(16 * seen[500:] + heard[500:], 16 * seen[:500] + heard[:500])
    assert scores.control_hits[known].mean() > 0.9 and known.mean() > 0.5


@pytest.mark.parametrize(("text", "expected"), [("I hear barking.", "I hear"), ("I see a dog.", ""), ("I", "")])
def test_the_opening_is_what_stands_before_the_sound(text: str, expected: str):
    model = avjax.load("tiny-av")
    tokens = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.decode_text(behaviour.opening(model, generation(tokens))) == expected
