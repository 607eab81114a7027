"""What a prompt is by default and in the published order: where the words stand, and whether the sound is heard."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.media.errors import MediaError
from avjax.prompts.wording import as_keys, as_options
from tests.clip import write_clip
from tests.prompts.test_hf_batch import files, hf_batch  # noqa: F401 - a fixture
from tests.tiny_hf import TinyCheckpoint

QUESTION = "Describe what you see and hear."


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video without an audio stream."""
    import av

    path = tmp_path_factory.mktemp("silent") / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((84, 112, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same(a: avjax.Prompt, b: avjax.Prompt) -> bool:
    return a.fingerprint == b.fingerprint


def test_a_video_is_heard_by_default(omni_model: avjax.Model, vl_model: avjax.Model, clip: Path, silent: Path):
    heard = omni_model.prompt(QUESTION, video=clip)
    assert heard.counts()["audio"] > 0
    assert same(heard, omni_model.prompt(QUESTION, video=clip, audio="from_video"))
    for silence in ("none", None):
        unheard = omni_model.prompt(QUESTION, video=clip, audio=silence)
        assert "audio" not in unheard.counts() and not same(unheard, heard)
    assert "audio" not in omni_model.prompt(QUESTION, video=silent).counts()
    assert "audio" not in vl_model.prompt(QUESTION, video=clip).counts()
    with pytest.raises(MediaError, match=r"silent.mp4: expected an audio stream, found none; pass audio=None"):
        omni_model.prompt(QUESTION, video=silent, audio="from_video")


def test_a_model_that_does_not_hear_refuses_sound(vl_model: avjax.Model, clip: Path):
    deaf = avjax.load("tiny-vl")
    assert not deaf.hears and not vl_model.hears and avjax.load("tiny-av").hears
    assert "audio" not in deaf.prompt(QUESTION, video=clip).counts()
    for sound in ("from_video", clip):
        with pytest.raises(MediaError, match="tiny-vl was not trained on sound, its audio tower is random; pass audio"):
            deaf.prompt(QUESTION, video=clip, audio=sound)
    with pytest.raises(MediaError, match="qwen2_5_vl has no audio tower; pass audio=None"):
        vl_model.prompt(QUESTION, video=clip, audio="from_video")


def test_the_words_stand_where_they_are_asked_to(omni_model: avjax.Model, clip: Path):
    media_first, text_first = (omni_model.prompt(QUESTION, video=clip, order=o) for o in ("media-first", "text-first"))
    assert same(media_first, omni_model.prompt(QUESTION, video=clip))
    words = list(omni_model.encode_text(QUESTION))
    for prompt, before in ((media_first, False), (text_first, True)):
        ids = prompt.token_ids.tolist()
        start = next(i for i in range(len(ids)) if ids[i : i + len(words)] == words)
        first_clip_token = int(np.flatnonzero(prompt.kinds != 0)[0])
        assert (start < first_clip_token) is before
    assert sorted(media_first.token_ids) == sorted(text_first.token_ids)
    with pytest.raises(ValueError, match="order: expected 'media-first' or 'text-first', got 'first'"):
        omni_model.prompt(QUESTION, video=clip, order="first")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("order", ["media-first", "text-first"])
def test_the_chat_template_decides_the_order(omni_model: avjax.Model, clip: Path, order: str):
    """The text around the clip is what the template writes for content in this order."""
    tokenizer = omni_model.processor.tokenizer
    parts = [{"type": "video", "video": "clip"}, {"type": "text", "text": QUESTION}]
    content = parts if order == "media-first" else parts[::-1]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = omni_model.prompt(QUESTION, video=clip, audio=None, order=order)
    marks = omni_model.config.tokens
    assert [i for i in prompt.token_ids.tolist() if i != marks.video] == [i for i in ids if i != marks.video]


def test_a_prompt_says_what_it_holds(omni_model: avjax.Model, clip: Path):
    prompt = omni_model.prompt(QUESTION, video=clip)
    counts = prompt.counts()
    assert repr(prompt) == (
        f"Prompt({len(prompt)} tokens: {counts['text']} text, {counts['audio']} audio, {counts['video']} video; {clip})"
    )
    silent = repr(omni_model.prompt(QUESTION, video=clip, audio=None))
    assert "audio" not in silent.split(";")[0]
    assert repr(omni_model.prompt("Hello.")).endswith(" text)")


@pytest.mark.exhaustive
def test_datasets_say_what_samples_hold(omni_model: avjax.Model, clip: Path):
    prompts = {
        "heard": omni_model.prompt(QUESTION, video=clip),
        "unheard": omni_model.prompt(QUESTION, video=clip, audio=None),
    }
    data = avjax.sweep(omni_model, prompts, "last->video", avjax.metrics.KL(), progress=False)
    for modality in ("text", "audio", "video", "image"):
        expected = [p.counts().get(modality, 0) for p in prompts.values()]
        assert data[f"{modality}_tokens"].values.tolist() == expected
    assert data.audio_tokens.values.tolist()[1] == 0 < data.audio_tokens.values.tolist()[0]
    with pytest.raises(ValueError, match="'audio_tokens' is also a reserved name"):
        avjax.sweep(omni_model, prompts, "last->video", avjax.metrics.LogProb(5, name="audio_tokens"), progress=False)


@pytest.mark.parametrize("case", ["audio in video", "video", "image", "text"])
def test_the_flag_that_scripts_pass_on(
    omni: TinyCheckpoint,
    omni_model: avjax.Model,
    files: dict[str, Path],  # noqa: F811
    case: str,
):
    batch = hf_batch(omni_model, omni, case, files)
    plain = omni_model.prompt_from_hf(batch)
    fits = {"audio in video": [True], "video": [False]}.get(case, [True, False])
    for flag in (True, False):
        for written in (flag, np.bool_(flag), torch.tensor(flag)):
            if flag in fits:
                assert same(omni_model.prompt_from_hf({**batch, "use_audio_in_video": written}), plain)
            else:
                with pytest.raises(ValueError, match=f"use_audio_in_video is {flag}, but 1 video"):
                    omni_model.prompt_from_hf({**batch, "use_audio_in_video": written})
    with pytest.raises(ValueError, match="expected use_audio_in_video to be True or False"):
        omni_model.prompt_from_hf({**batch, "use_audio_in_video": "yes"})


@pytest.mark.exhaustive
def test_advice_is_in_the_words_of_the_interface(clip: Path, silent: Path, tmp_path: Path, omni: TinyCheckpoint):
    message = "clip.mp4: found none; pass audio=None or a sound file, with max_pixels=784; or pass video= too"
    assert as_options(message).endswith("pass --audio none or a sound file, with --max-pixels 784; or pass --video too")
    assert as_keys(message).endswith("pass audio: none or a sound file, with media.max_pixels: 784; or pass video too")
    result = CliRunner().invoke(
        app, ["run", "-m", "tiny-av", "--video", str(silent), "--audio", "from_video", "-p", QUESTION]
    )
    assert result.exit_code == 2 and "pass --audio none or a sound file" in result.output
    shutil.copy(silent, tmp_path / "silent.mp4")
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "spec.yaml").write_text(
        f"model: {omni.directory}\nprompt: Hello.\nmedia: {{min_pixels: 784, max_pixels: 9408}}\nstore: store\n"
        "clips: [{video: clip.mp4}, {video: silent.mp4, audio: from_video}]\n"
        "grid: {edit: knockout, query: last, key: video}\nmetrics: [{metric: kl}]\n"
    )
    result = CliRunner().invoke(app, ["run", str(tmp_path / "spec.yaml")])
    assert result.exit_code == 3, result.output
    assert "pass audio: none or a sound file" in " ".join(result.output.split())


def test_an_option_of_one_value_is_given_once(clip: Path):
    for arguments, option in (
        (["run", "-m", "tiny-av", "--video", clip, "--video", clip, "-p", QUESTION], "--video"),
        (["inspect", clip, "-m", "tiny-av", "--audio", "none", "--audio", "from_video"], "--audio"),
        (["run", "knockout", "-m", "a", "-m", "b", "-v", clip, "-p", QUESTION, "--answer", "x"], "--model"),
        (["plan", "-m", "a", "-p", "x", "-p", "y", "-r", "last->text"], "--prompt"),
    ):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 2
        assert f"{option}: expected once, got 2 times" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.exhaustive
def test_a_run_records_the_order_and_the_tokens(clip: Path, omni: TinyCheckpoint, tmp_path: Path):
    import json

    import pandas as pd

    shutil.copy(clip, tmp_path / "clip.mp4")
    (tmp_path / "spec.yaml").write_text(
        f"model: {omni.directory}\nprompt: Hello.\norder: text-first\nstore: store\n"
        "media: {min_pixels: 784, max_pixels: 9408}\n"
        "clips: [{name: heard, video: clip.mp4}, {name: unheard, video: clip.mp4, audio: none}]\n"
        "grid: {edit: knockout, query: last, key: video}\nmetrics: [{metric: kl}]\n"
    )
    done = CliRunner().invoke(app, ["run", str(tmp_path / "spec.yaml")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "store" / "run.json").read_text())["spec"]["order"] == "text-first"
    rows = pd.read_parquet(tmp_path / "store" / "cells").groupby("sample")[["audio_tokens", "video_tokens"]].first()
    assert rows.audio_tokens["heard"] > 0 == rows.audio_tokens["unheard"]
    assert (rows.video_tokens > 0).all()
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path / "store")])
    assert "audio 0 - " in " ".join(shown.output.split())


def test_media_may_be_arrays_pictures_and_lists_of_one(omni_model: avjax.Model, clip: Path, tmp_path: Path):
    import soundfile
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (84, 140, 3), dtype=np.uint8)
    samples = (0.3 * np.sin(np.arange(20_000) / 5)).astype(np.float32)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    soundfile.write(tmp_path / "tone.wav", samples, 16_000, subtype="FLOAT")
    expected = omni_model.prompt(QUESTION, image=tmp_path / "image.png", audio=tmp_path / "tone.wav")
    for image in (pixels, Image.fromarray(pixels), [pixels], (str(tmp_path / "image.png"),)):
        for audio in ((samples, 16_000), (16_000, samples), {"array": samples, "sampling_rate": 16_000}):
            assert same(omni_model.prompt(QUESTION, image=image, audio=audio), expected)
    frames = np.repeat(pixels[None], 8, axis=0)
    moving = omni_model.prompt(QUESTION, video=(frames, 4.0), audio=(samples, 16_000))
    assert moving.counts()["video"] > 0 and moving.counts()["audio"] > 0
    assert "audio" not in omni_model.prompt(QUESTION, video=(frames, 4.0)).counts()
    assert same(
        omni_model.prompt(QUESTION, video=[clip], audio=None), omni_model.prompt(QUESTION, video=clip, audio=None)
    )
    for wrong, message in (
        ({"video": [clip, clip]}, "video: expected one video .* got a list of 2"),
        ({"audio": [clip, clip]}, "audio: expected one audio .* got a list of 2"),
        ({"audio": samples}, "audio: .*array without its rate"),
        ({"video": (frames, 4.0), "audio": "from_video"}, "frames were given, which have no sound"),
        ({"image": 3}, "image: expected a file, a Pillow image, or an array"),
    ):
        with pytest.raises(MediaError, match=message):
            omni_model.prompt(QUESTION, **wrong)


def test_file_names_stay_in_messages():
    for name in ("/tmp/fps=30.mp4", "order=a.mp4", "clips/max_pixels=9/x.mp4", "a-video=b"):
        assert as_options(f"{name}: no such file") == as_keys(f"{name}: no such file") == f"{name}: no such file"
    assert (
        as_options("audio='from_video': no video; pass video= too") == "--audio from_video: no video; pass --video too"
    )


def test_words_are_text(omni_model: avjax.Model):
    for words in (None, ["Hello."], 3):
        with pytest.raises(TypeError, match="text: expected the user's words, got"):
            omni_model.prompt(words)  # pyright: ignore[reportArgumentType]


def test_no_door_lets_sound_into_a_model_that_does_not_hear(omni_model: avjax.Model, clip: Path):
    deaf, prompt = avjax.load("tiny-vl"), avjax.load("tiny-av").prompt(QUESTION, video=clip)
    with pytest.raises(ValueError, match="tiny-vl was not trained on sound"):
        avjax.run(deaf, prompt)
    mel = prompt.audio[0].mel
    batch = {
        "input_ids": prompt.token_ids[None],
        "input_features": mel.T[None],
        "feature_attention_mask": np.ones((1, len(mel))),
    }
    with pytest.raises(ValueError, match="tiny-vl was not trained on sound; leave input_features out"):
        deaf.prompt_from_hf(batch)


def test_what_cannot_be_is_refused_before_any_clip(tmp_path: Path, omni: TinyCheckpoint):
    """A specification whose settings contradict each other, or its model, has no failed clips: it is not begun."""
    write_clip(tmp_path / "clip.mp4")
    spec = (
        f"model: {omni.directory}\nprompt: Hello.\nstore: store\nclips: [{{video: clip.mp4}}]\n"
        "grid: {edit: knockout, query: last, key: video}\nmetrics: [{metric: kl}]\n"
    )
    for more, message in (
        ("opening: I hear\ncompat: published-script\n", "compat: expected no opening with published-script"),
        ("positions: transformers-5.3\n", "every version of transformers numbers qwen2_5_omni alike"),
    ):
        (tmp_path / "spec.yaml").write_text(spec + more)
        result = CliRunner().invoke(app, ["run", str(tmp_path / "spec.yaml")])
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
        assert not (tmp_path / "store").exists()


def test_null_in_a_table_is_silence(tmp_path: Path):
    import json

    from avjax.runs.spec.spec import Spec

    rows = [{"name": "silent", "video": "a.mp4", "audio": None}, {"name": "heard", "video": "a.mp4"}]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model": "tiny-av", "prompt": "x", "grid": {"edit": "knockout", "query": "last", "key": "video"}}
    given |= {"metrics": [{"metric": "kl"}]}
    for clips in ("clips.jsonl", rows):
        assert [c.audio for c in Spec.of({**given, "clips": clips}, tmp_path).all_clips()] == ["none", None]


@pytest.mark.exhaustive
def test_datasets_say_the_order(omni_model: avjax.Model, clip: Path):
    from avjax.analysis import logit_lens

    prompts = {
        o: omni_model.prompt(QUESTION, video=clip, order=o, max_pixels=9408, min_pixels=784)
        for o in ("media-first", "text-first")
    }
    for names, expected in ((["text-first"], "text-first"), ([*prompts], "mixed")):
        chosen = {name: prompts[name] for name in names}
        assert (
            avjax.sweep(omni_model, chosen, "last->video", avjax.metrics.KL(), progress=False).attrs["order"]
            == expected
        )
        assert logit_lens(omni_model, chosen, "last").attrs["order"] == expected
    assert (
        "order"
        not in avjax.sweep(omni_model, omni_model.prompt("x"), "last->text", avjax.metrics.KL(), progress=False).attrs
    )
