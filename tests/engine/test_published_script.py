"""The published script as it is shipped: no `use_audio_in_video` for `generate`, and a limit that is not read.

The torch model numbers positions by itself; the question stands before the clip, as in the script, or after it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import avjax
from avjax.analysis import find_sinks
from avjax.edits.edits import Knockout
from avjax.prompts.compat import checked_compat, compatible_prompt, max_new_tokens_for
from avjax.sweeping.prepare import prepare
from tests.engine.knockout_oracle import Oracle, Rule
from tests.engine.knockout_rules import edits
from tests.tiny_hf import TinyCheckpoint

NEW_TOKENS = 20
TOLERANCE = 1e-4  # on logits, float32
QUESTION = "Describe what you see and hear."
LAYERS = tuple(range(8))
RULE_SETS = (
    (),
    (Rule("generated", "video", LAYERS),),
    (Rule("generated", "audio", (2, 3, 4)),),
    (Rule("query_text", "video", LAYERS), Rule("generated", "query_text", (5, 6))),
    (Rule("query_text", "query_text", LAYERS),),  # text before the clip is left without a key
)


@pytest.fixture(scope="module", params=["media-first", "text-first"])
def prompt(request: pytest.FixtureRequest, omni_model: avjax.Model, clip: Path) -> avjax.Prompt:
    sizes = {"max_pixels": 56 * 84, "min_pixels": 28 * 28}
    return omni_model.prompt(QUESTION, video=clip, order=request.param, **sizes)


@pytest.fixture(scope="module")
def oracle(omni: TinyCheckpoint, prompt: avjax.Prompt) -> Oracle:
    oracle = Oracle(omni.torch_model, prompt)
    assert oracle.batch.pop("use_audio_in_video") is True
    return oracle


def torch_positions(tiny: TinyCheckpoint, prompt: avjax.Prompt) -> tuple[np.ndarray, int]:
    """[3, T] as HF numbers them when it is not told of the sound, and where the first new token comes."""
    ids = torch.tensor(prompt.token_ids[None].astype(np.int64))
    positions, delta = tiny.torch_model.get_rope_index(
        ids,
        torch.tensor([c.grid for c in prompt.images]) if prompt.images else None,
        torch.tensor([c.grid for c in prompt.videos]) if prompt.videos else None,
        attention_mask=torch.ones_like(ids),
        use_audio_in_video=False,
        audio_seqlens=torch.tensor([len(c.mel) for c in prompt.audio]) if prompt.audio else None,
        second_per_grids=torch.tensor([c.seconds_per_grid for c in prompt.videos]) if prompt.videos else None,
    )
    return positions[:, 0].numpy(), len(prompt) + int(delta)


@pytest.mark.exhaustive
def test_continuations(omni_model: avjax.Model, prompt: avjax.Prompt, oracle: Oracle):
    batch = avjax.generate_variants(
        omni_model,
        prompt,
        [edits(rules) for rules in RULE_SETS],
        max_new_tokens=NEW_TOKENS,
        compat="published-script",
    )
    for rules, got in zip(RULE_SETS, batch, strict=True):
        expected = oracle.generate(rules, NEW_TOKENS)
        np.testing.assert_array_equal(got.tokens, expected.tokens, err_msg=str(rules))
        assert np.abs(got.logits - expected.logits).max() <= TOLERANCE, rules
    clean = avjax.generate(omni_model, prompt, max_new_tokens=NEW_TOKENS)
    assert np.abs(clean.logits[0] - batch[0].logits[0]).max() > 100 * TOLERANCE, "positions must matter"


def test_every_prompt_position(omni_model: avjax.Model, prompt: avjax.Prompt, oracle: Oracle):
    rules = RULE_SETS[3]  # in the prompt nothing is generated yet, so that one of its rules touches nothing
    got = avjax.run(omni_model, prompt, *edits(rules), at="all", compat="published-script", allow_noop=True)
    assert np.abs(np.asarray(got.logits) - oracle.prefill(rules)).max() <= TOLERANCE


@pytest.mark.exhaustive
def test_sweeps_and_both_executors(omni_model: avjax.Model, prompt: avjax.Prompt, oracle: Oracle):
    cells, metric = [edits(rules) for rules in RULE_SETS[1:3]], avjax.metrics.Caption(NEW_TOKENS)
    for executor in ("replay", "reference"):
        data = avjax.sweep(
            omni_model, prompt, cells, metric, executor=executor, compat="published-script", progress=False
        )
        for column, rules in enumerate(RULE_SETS[1:3]):
            expected = omni_model.decode_text(oracle.generate(rules, NEW_TOKENS).tokens)
            assert data.caption.values[column, 0] == expected


@pytest.mark.exhaustive
def test_patches_come_from_prompts_numbered_alike(omni_model: avjax.Model, prompt: avjax.Prompt):
    """A patch from the prompt itself changes nothing, in whatever way positions are counted."""
    patch = avjax.Patch("audio", source=prompt, site="resid_post", layers=[3])
    got, clean = (avjax.run(omni_model, prompt, *own, compat="published-script").logits for own in ([patch], []))
    assert np.abs(np.asarray(got) - np.asarray(clean)).max() <= TOLERANCE


@pytest.mark.parametrize("order", ["media-first", "text-first"])
@pytest.mark.parametrize("sound", ["from_video", None, "tone"])
@pytest.mark.parametrize("picture", [False, True], ids=["no image", "image"])
def test_positions(
    omni: TinyCheckpoint, omni_model: avjax.Model, clip: Path, tmp_path: Path, order: str, sound: str, picture: bool
):
    """Running numbers where the video has its sound; every other item as ever."""
    import soundfile
    from PIL import Image

    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(20_000) / 5), 16_000)
    Image.fromarray(np.zeros((84, 140, 3), np.uint8)).save(tmp_path / "image.png")
    audio = str(tmp_path / "tone.wav") if sound == "tone" else sound
    image = tmp_path / "image.png" if picture else None
    prompt = omni_model.prompt(
        QUESTION, video=clip, audio=audio, image=image, order=order, max_pixels=56 * 84, min_pixels=784
    )
    got = compatible_prompt(prompt, "published-script")
    positions, following = torch_positions(omni, prompt)
    np.testing.assert_array_equal(got.positions, positions)
    assert got.next_position() == following
    if sound == "from_video" and not picture:
        np.testing.assert_array_equal(got.positions, np.tile(np.arange(len(prompt)), (3, 1)))
    again = compatible_prompt(got, "published-script")
    np.testing.assert_array_equal(again.positions, got.positions)
    assert compatible_prompt(prompt, None) is prompt


@pytest.mark.exhaustive
def test_the_limit_of_the_protocol_and_of_the_script(omni_model: avjax.Model, prompt: avjax.Prompt):
    assert max_new_tokens_for(None, None) == max_new_tokens_for("published", None) == 50
    assert max_new_tokens_for("published-script", None) == 1024
    assert max_new_tokens_for("published-script", 7) == 7
    assert len(avjax.generate(omni_model, prompt, max_new_tokens=3, compat="published-script").tokens) == 3


def test_what_ends_the_caption_of_a_whole_model(omni: TinyCheckpoint, tmp_path: Path):
    """Its thinker stops where `thinker_config` says and knows no other setting: seen in transformers 4.52.4, 5.24."""
    shutil.copytree(omni.directory, tmp_path / "thinker")
    thinker = json.loads((tmp_path / "thinker" / "config.json").read_text()) | {"eos_token_id": 7}
    shutil.copytree(tmp_path / "thinker", tmp_path / "whole")
    whole = {"model_type": "qwen2_5_omni", "eos_token_id": 8, "thinker_config": thinker}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(whole))
    for directory in (tmp_path / "thinker", tmp_path / "whole"):
        (directory / "generation_config.json").write_text('{"eos_token_id": [5, 6], "repetition_penalty": 1.1}')
    alone, inner = (avjax.load(tmp_path / name).generation for name in ("thinker", "whole"))
    assert (alone.stop_tokens, alone.repetition_penalty) == ((5, 6), 1.1)
    assert (inner.stop_tokens, inner.repetition_penalty) == ((7,), 1.0)


@pytest.mark.exhaustive
def test_captions_of_sweeps_have_the_limit_too(omni_model: avjax.Model):
    prompt, tall = omni_model.prompt("Hello."), avjax.metrics.Caption()
    for compat, limit in ((None, 50), ("published", 50), ("published-script", 1024)):
        planned = prepare(omni_model, prompt, "generated->text", tall, compat=compat)
        assert [caption.limit for caption in planned.captions] == [limit]
    assert prepare(omni_model, prompt, "generated->text", avjax.metrics.Caption(7)).captions[0].limit == 7


def test_sinks_are_of_the_scripts_positions(omni_model: avjax.Model, prompt: avjax.Prompt):
    paid = {
        compat: find_sinks(omni_model, prompt, 1.5, compat=compat)["paid"].values
        for compat in ("published", "published-script")
    }
    assert np.nanmax(np.abs(paid["published"] - paid["published-script"])) > 1e-4


def test_refusals(omni_model: avjax.Model, prompt: avjax.Prompt):
    with pytest.raises(ValueError, match="compat: expected None or 'published' or 'published-script', got 'script'"):
        checked_compat("script")
    opened = prompt.continued([5, 6])
    with pytest.raises(ValueError, match="compat='published-script': expected a prompt without an opening"):
        avjax.generate(omni_model, opened, Knockout(query="generated", key="video"), compat="published-script")
