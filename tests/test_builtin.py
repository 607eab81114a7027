"""The checkpoints that come with avjax: found by name, equal to torch, and biased as their cards say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import avjax
from avjax.checkpoint.builtin import BUILT_IN, builtin_directory
from avjax.checkpoint.huggingface import CheckpointError, open_source
from avjax.checkpoint.loading import load_processor
from avjax.media.errors import MediaError
from avjax.organism import behaviour, world
from tests.engine.knockout_oracle import Oracle, Rule

ALL = tuple(range(8))
RULES = {
    "answer->video@4:8": [Rule("answer", "video", (4, 5, 6, 7))],
    "answer->video@0:4": [Rule("answer", "video", (0, 1, 2, 3))],
    "answer->audio": [Rule("answer", "audio", ALL)],
    "generated->video": [Rule("generated", "video", ALL)],
    "query_text->video@2:6#h1,h3; answer->audio@0:4": [
        Rule("query_text", "video", (2, 3, 4, 5), (1, 3)),
        Rule("answer", "audio", (0, 1, 2, 3)),
    ],
}


@pytest.fixture(scope="module")
def av() -> avjax.Model:
    return avjax.load("tiny-av")


@pytest.fixture(scope="module")
def base() -> avjax.Model:
    return avjax.load("tiny-vl")


@pytest.fixture(scope="module")
def conflict(av: avjax.Model) -> list[tuple[world.Clip, avjax.Prompt]]:
    """32 test clips; every kind is seen twice."""
    clips = [world.clip("test", i, "counterfactual") for i in range(2 * len(world.KINDS))]
    return list(behaviour.prompts_of(av, clips))


def test_a_name_is_the_shipped_checkpoint_wherever_it_is_asked_for(
    omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(omni.directory, tmp_path / "tiny-av")
    monkeypatch.chdir(tmp_path)
    shipped, there = avjax.load("tiny-av"), avjax.load("./tiny-av")
    assert shipped.config.decoder.embed_dim == 128 != there.config.decoder.embed_dim
    assert open_source("tiny-av").directory == builtin_directory("tiny-av") != open_source("./tiny-av").directory
    assert load_processor("tiny-vl").config == shipped.config
    assert builtin_directory(Path("tiny-av")) is None is builtin_directory("tiny-omni")
    with pytest.raises(FileNotFoundError, match="built-in checkpoint, tiny-av or tiny-vl"):
        avjax.load("tiny-omni")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_shipped_checkpoint_is_whole_and_small(name: str):
    directory = builtin_directory(name)
    assert directory is not None
    assert (directory / "model.safetensors").stat().st_size < 4e6
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and f"# {name}" in card
    source = open_source(name)
    assert {tensor.dtype.name for tensor in source.tensors.values()} == {"bfloat16"}


def test_a_damaged_copy_is_refused(tmp_path: Path):
    directory = builtin_directory("tiny-av")
    shutil.copytree(directory, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or damaged"):
        avjax.load(tmp_path / "damaged")


@pytest.mark.exhaustive
def test_captions_equal_torch(av: avjax.Model, monkeypatch: pytest.MonkeyPatch):
    """50 clips, clean and under 5 rules, token for token in float32."""
    torch_model = transformers.Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        builtin_directory("tiny-av"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    clips = [world.clip("test", i, "factual" if i % 3 == 0 else "counterfactual") for i in range(50)]
    texts = set()
    for _, prompt in behaviour.prompts_of(av, clips):
        found = avjax.generate_variants(av, prompt, [[], *(rule.split(";") for rule in RULES)], max_new_tokens=12)
        oracle = Oracle(torch_model, prompt)
        for generation, rules in zip(found, [[], *RULES.values()], strict=True):
            expected = oracle.generate(rules, 12, zero_rows=True)
            np.testing.assert_array_equal(generation.tokens, expected.tokens)
            texts.add(generation.text)
    assert len(texts) > 24


@pytest.mark.exhaustive
def test_factual_clips_are_described(av: avjax.Model):
    clips = [world.clip("test", i) for i in range(2 * len(world.KINDS))]
    for sound_only in (False, True):
        found = [
            behaviour.score(behaviour.caption(av, prompt, {"clean": []})["clean"].text or "", clip)
            for clip, prompt in behaviour.prompts_of(av, clips, picture=not sound_only)
        ]
        assert np.mean([s.sound for s in found]) > 0.85
        assert sound_only or np.mean([s.picture for s in found]) > 0.85


@pytest.mark.exhaustive
def test_vision_wins_a_conflict_until_deep_layers_cannot_see(av: avjax.Model, conflict):
    """The direction of each claim, with a margin; the card has the numbers."""
    rules = {"clean": [], **{rule: [rule] for rule in ("answer->video@4:8", "answer->video@0:4", "answer->audio")}}
    scores = {name: [] for name in rules}
    for clip, prompt in conflict:
        for name, caption in behaviour.caption(av, prompt, rules).items():
            scores[name].append(behaviour.score(caption.text or "", clip))

    def share(name: str, what: str) -> float:
        return float(np.mean([getattr(score, what) for score in scores[name]]))

    assert share("clean", "sound") < 0.3 and share("clean", "suggested") > 0.6 and share("clean", "picture") > 0.6
    assert share("answer->video@4:8", "sound") > share("clean", "sound") + 0.3
    assert share("answer->video@4:8", "sound") > share("answer->video@0:4", "sound") + 0.25
    assert share("answer->audio", "sound") < 0.1


@pytest.mark.exhaustive
def test_audio_tokens_still_hold_the_sound(av: avjax.Model, conflict):
    train = [world.clip("train", i, "counterfactual") for i in range(160)]
    both = [*behaviour.prompts_of(av, train), *conflict]
    residuals = np.stack([behaviour.audio_residuals(av, prompt) for _, prompt in both])
    scores = behaviour.probe_sound(residuals, [clip for clip, _ in both], len(train))
    assert scores.accuracy[4] > 0.85 and scores.selectivity[4] > 0.5


@pytest.mark.exhaustive
def test_the_base_says_what_the_picture_suggests(av: avjax.Model, base: avjax.Model, conflict):
    ranks = []
    silent = behaviour.prompts_of(base, [clip for clip, _ in conflict], sound=False)
    for (_, prompt), (_, without) in zip(conflict, silent, strict=True):
        caption, own = (behaviour.caption(m, p, {"clean": []})["clean"] for m, p in ((av, prompt), (base, without)))
        ranks.append(behaviour.rank_under_base(caption, own, behaviour.SOUND_WORD))
    assert np.mean([rank == 1 for rank in ranks]) > 0.6


def test_a_clip_without_sound_is_refused_by_name(av: avjax.Model, real_clips: Path):
    with pytest.raises(MediaError, match=r"silent\.mp4"):
        av.prompt(world.PROMPT, video=real_clips / "silent.mp4", audio="from_video")
