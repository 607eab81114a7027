"""`model.prompt` from text and files: tokens, modalities, speakers, spans."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import avjax
from avjax.media.decode import read_audio
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import MODALITIES, select
from tests.media.cases import CASES, CLIP_SIZE, TEXT, VL_CASES, expected_ids, write_files
from tests.media.segments import Segment, interleaved
from tests.tiny_hf import TinyCheckpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"), clip)


def assert_prompt(model: avjax.Model, tiny: TinyCheckpoint, case: str, files: dict[str, Path]) -> None:
    prompt = model.prompt(TEXT, system="Listen well.", **CASES[case](files))
    ids = expected_ids(tiny, case, files, "Listen well.")
    np.testing.assert_array_equal(prompt.token_ids, ids)
    assert prompt.token_ids.dtype == np.int32 and len(prompt) == len(ids)
    kinds = {kind: ids == tiny.ids.get(kind, -1) for kind in ("audio", "video", "image")}
    for kind, mask in kinds.items():
        np.testing.assert_array_equal(prompt.kinds == MODALITIES.index(kind), mask)
        np.testing.assert_array_equal(select(prompt, kind)[:-1], mask)
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items() if mask.any()}
    assert prompt.counts() == {"text": len(ids) - sum(counts.values()), **counts}
    # Each turn begins at its <|im_start|>; the answer's has begun.
    begins = np.flatnonzero(ids == tiny.ids["im_start"])
    roles = np.repeat(["system", "user", "assistant"], np.diff([*begins, len(ids)]))
    np.testing.assert_array_equal(prompt.roles, roles)
    # What is not special was said by someone, and what is said is all there.
    said = {role: prompt.token_ids[select(prompt, role)[:-1]].tolist() for role in ("system", "user")}
    assert {role: model.processor.tokenizer.decode(tokens) for role, tokens in said.items()} == {
        "system": "Listen well.",
        "user": TEXT,
    }
    text = prompt.kinds == MODALITIES.index("text")
    np.testing.assert_array_equal(prompt.special, text & ~select(prompt, "system | user")[:-1] | ~text)
    assert_spans(prompt)


def assert_spans(prompt: Prompt) -> None:
    spans = prompt.spans()
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == len(prompt)
    for span in spans:
        part = slice(span.start, span.stop)
        assert {MODALITIES[k] for k in prompt.kinds[part]} == {span.modality}
        assert set(prompt.roles[part]) == {span.role}
        low, high = prompt.positions[:, part].min(axis=1), prompt.positions[:, part].max(axis=1)
        assert span.position_ranges == list(zip(low, high, strict=True))
        assert (span.seconds is None) == (span.modality in ("text", "image"))


@pytest.mark.parametrize("case", CASES)
def test_omni_prompt(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path], case: str):
    assert_prompt(omni_model, omni, case, files)


@pytest.mark.parametrize("case", VL_CASES)
def test_vl_prompt(vl_model: avjax.Model, vl: TinyCheckpoint, files: dict[str, Path], case: str):
    assert_prompt(vl_model, vl, case, files)


def test_spans_of_a_clip_with_sound(omni_model: avjax.Model, files: dict[str, Path]):
    prompt = omni_model.prompt(TEXT, video=files["clip"], audio="from_video")
    spans = [span for span in prompt.spans() if span.modality != "text"]
    assert [span.modality for span in spans] == ["video", "audio", "video", "audio"]
    assert [span.stop - span.start for span in spans[:3]] == [2 * CLIP_SIZE, 50, 2 * CLIP_SIZE]
    # 8 of the 40 frames are looked at, the first and the last among them; a step is a pair.
    begins = torch.linspace(0, 39, 8).round()[::2] / 10
    assert [*spans[0].seconds, *spans[2].seconds] == pytest.approx(begins.tolist())
    assert spans[1].seconds == pytest.approx((0.0, 49 * 0.04)) and spans[3].seconds[0] == 2.0
    first = spans[0].position_ranges[0][0]
    assert spans[0].position_ranges == [(first, first + 25), (first, first + 9), (first, first + 13)]
    assert spans[1].position_ranges == [(first, first + 49)] * 3
    np.testing.assert_array_equal(np.unique(prompt.frames[prompt.kinds == MODALITIES.index("video")]), range(4))


def test_the_template_gives_a_system_turn(omni_model: avjax.Model, omni: TinyCheckpoint, files: dict[str, Path]):
    prompt = omni_model.prompt(TEXT)
    np.testing.assert_array_equal(prompt.token_ids, expected_ids(omni, "text", files, "You are a helpful assistant."))


def test_sampling_rate_of_a_video(omni_model: avjax.Model, vl_model: avjax.Model, files: dict[str, Path]):
    """Omni numbers grid steps by the rate that was asked for, VL by the rate that came of it."""
    omni, vl = (model.prompt(TEXT, video=files["clip"], fps=1.7).videos[0] for model in (omni_model, vl_model))
    assert omni.grid == vl.grid == (3, 20, 28)  # 4 s at 1.7 fps are 6.8 frames: 6
    assert omni.seconds_per_grid == 2 / 1.7
    assert vl.seconds_per_grid == pytest.approx(2 / (6 / 4))


def test_legacy_chat_template(omni: TinyCheckpoint, omni_model: avjax.Model, tmp_path: Path):
    """Hub checkpoints keep the template in chat_template.json."""
    shutil.copytree(omni.directory, tmp_path / "old", ignore=shutil.ignore_patterns("chat_template*"))
    template = (omni.directory / "chat_template.jinja").read_text()
    (tmp_path / "old" / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    np.testing.assert_array_equal(
        avjax.load(tmp_path / "old").prompt(TEXT).token_ids, omni_model.prompt(TEXT).token_ids
    )


def test_real_clip(omni_model: avjax.Model, omni: TinyCheckpoint, real_clips: Path):
    """The order of 6 s of picture and sound as HF's processor writes it."""
    path = real_clips / "clip.mp4"
    prompt = omni_model.prompt(TEXT, video=path, audio="from_video")
    segment = Segment(video=prompt.videos[0].grid, seconds=1.0, mel=math.ceil(len(read_audio(path)) / 160))
    kinds = interleaved(segment, omni_model.config)
    start = int(np.flatnonzero(prompt.token_ids == omni.ids["audio_bos"])[0])
    ids = [omni.ids[kind] for kind in kinds]
    np.testing.assert_array_equal(prompt.token_ids[start : start + len(ids)], ids)
    assert prompt.token_ids[start + len(ids)] == omni.ids["vision_eos"]


def test_an_opening_by_its_words(omni_model, clip):
    words = {"video": clip, "audio": "from_video"}
    asked = omni_model.prompt("What is this?", **words)
    opened = omni_model.prompt("What is this?", **words, opening="I hear a")
    tokens = omni_model.encode_text("I hear a")
    assert opened.token_ids.tolist() == [*asked.token_ids, *tokens]
    assert opened.counts() == asked.counts() | {"generated": len(tokens)}
    assert [(s.modality, s.role, s.stop - s.start) for s in opened.spans()[-1:]] == [
        ("generated", "assistant", len(tokens))
    ]
    np.testing.assert_array_equal(opened.positions[:, len(asked)], [asked.next_position()] * 3)
    assert opened.continued(tokens).counts()["generated"] == 2 * len(tokens)
    with pytest.raises(ValueError, match="text '': expected at least one token, got none"):
        omni_model.encode_text("")


@pytest.mark.exhaustive
def test_an_opening_after_embeddings(omni_model, clip):
    """Its tokens are embedded by the model, so that prompts of embeddings have captions too."""
    asked = omni_model.prompt("What is this?", video=clip, audio="from_video")
    types = [MODALITIES[kind] for kind in asked.kinds]
    same = omni_model.prompt_from_embeddings(omni_model.encode(asked).embeddings, asked.positions, types)
    tokens = omni_model.encode_text("I hear a")
    for rule in ([], ["answer->video"], ["generated->all"]):
        found, expected = (avjax.run(omni_model, p.continued(tokens), *rule).logits for p in (same, asked))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert same.continued(tokens).fingerprint != same.continued(tokens[:1]).fingerprint
    with pytest.raises(ValueError, match=r"expected token ids within 0:\d+, got \[-1\]"):
        avjax.run(omni_model, same.continued([-1]))


def test_what_cannot_open_an_answer_is_refused(omni_model, clip):
    asked = omni_model.prompt("What is this?", video=clip)
    assert asked.continued([]) is asked
    for tokens in ([40.7], [True], np.array([1.0])):
        with pytest.raises(TypeError, match="continued: expected integers"):
            asked.continued(tokens)
    with pytest.raises(TypeError, match=r"got 'I hear'; model.encode_text\('I hear'\) gives them"):
        asked.continued("I hear")
    with pytest.raises(ValueError, match="expected tokens of text"):
        asked.continued([omni_model.config.tokens.audio])
    opened = asked.continued([3])
    for refused in (
        lambda: avjax.run(omni_model, opened, "answer->all", compat="published"),
        lambda: avjax.generate(omni_model, opened, "answer->all", compat="published"),
        lambda: avjax.sweep(omni_model, opened, [["answer->all"]], avjax.metrics.Rank([7]), compat="published"),
    ):
        with pytest.raises(ValueError, match="compat='published': expected a prompt without an opening"):
            refused()
