"""Greedy decoding: the early stop, the checkpoint's own settings, what is encoded how often."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import avjax
from avjax import model as model_module
from avjax.engine import generate
from tests.tiny_hf import TinyCheckpoint


@pytest.fixture(scope="module")
def token_ids(omni: TinyCheckpoint) -> np.ndarray:
    return np.random.default_rng(1).integers(0, omni.ids["endoftext"], 30)[None]


def with_settings(tiny: TinyCheckpoint, directory: Path, **settings: Any) -> avjax.Model:
    """The checkpoint with another generation config."""
    shutil.copytree(tiny.directory, directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return avjax.load(directory)


def hf_tokens(tiny: TinyCheckpoint, token_ids: np.ndarray, **settings: Any) -> list[int]:
    ids = torch.tensor(token_ids)
    out = tiny.torch_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, **settings
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.exhaustive
@pytest.mark.parametrize("penalty", [0.8, 1.05, 1.6])
def test_the_checkpoints_repetition_penalty(penalty: float, omni: TinyCheckpoint, token_ids, tmp_path: Path):
    model = with_settings(omni, tmp_path / "checkpoint", repetition_penalty=penalty)
    prompt = model.prompt_from_hf({"input_ids": token_ids})
    got = avjax.generate(model, prompt, max_new_tokens=24).tokens.tolist()
    assert got == hf_tokens(omni, token_ids, repetition_penalty=penalty)
    plain = avjax.generate(model, prompt, max_new_tokens=24, repetition_penalty=1.0).tokens.tolist()
    assert plain == hf_tokens(omni, token_ids)
    assert penalty < 1.5 or plain != got, "a strong penalty must change something"


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_out_of_range_is_refused(penalty: float, omni_model: avjax.Model, token_ids):
    with pytest.raises(ValueError, match="repetition_penalty"):
        avjax.generate(omni_model, omni_model.prompt_from_hf({"input_ids": token_ids}), repetition_penalty=penalty)


def test_settings_that_are_not_implemented_are_refused(omni: TinyCheckpoint, token_ids, tmp_path: Path):
    model = with_settings(omni, tmp_path / "checkpoint", no_repeat_ngram_size=2, num_beams=1, temperature=0.1)
    prompt = model.prompt_from_hf({"input_ids": token_ids})
    assert avjax.run(model, prompt).logits.shape[0] == 1
    with pytest.raises(ValueError, match="no_repeat_ngram_size=2, which"):
        avjax.generate(model, prompt)


@pytest.mark.exhaustive
def test_decoding_ends_with_the_last_variant(omni: TinyCheckpoint, token_ids, tmp_path: Path, monkeypatch):
    """A token that the clean model says soon becomes its stop token: it ends there, and the loop with it."""
    free = hf_tokens(omni, token_ids)
    stop = free[3]
    length = free.index(stop) + 1
    model = with_settings(omni, tmp_path / "checkpoint", eos_token_id=stop)
    prompt = model.prompt_from_hf({"input_ids": token_ids})
    buffers: list[np.ndarray] = []

    def recorded(*args: Any, **kwargs: Any):
        out = decode(*args, **kwargs)
        buffers.append(np.asarray(out[2]))
        return out

    decode = generate.decode
    monkeypatch.setattr(generate, "decode", recorded)
    got = avjax.generate(model, prompt, max_new_tokens=24)
    assert got.tokens.tolist() == free[:length]
    assert got.logits.shape[0] == length
    assert np.abs(buffers[0][0, :length]).max(-1).min() > 0
    assert np.all(buffers[0][0, length:] == 0), "no step may run after every variant has stopped"

    edited = "all->all@0:8#h0"
    both = avjax.generate_variants(model, prompt, [[], edited], max_new_tokens=24)
    assert both[0].tokens.tolist() == free[:length]
    assert both[1].tokens.tolist() == avjax.generate(model, prompt, edited, max_new_tokens=24).tokens.tolist()


@pytest.mark.exhaustive
def test_a_clip_is_encoded_once(clip: Path, omni: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch):
    model = avjax.load(omni.directory)
    calls: list[str] = []
    for name in ("encode_audio", "encode_vision"):
        encode = getattr(model_module, name)
        monkeypatch.setattr(
            model_module, name, lambda *args, encode=encode, name=name: (calls.append(name), encode(*args))[1]
        )
    size = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}
    first = model.prompt("Describe this.", video=clip, audio="from_video", **size)
    expected = np.asarray(model.encode(first).embeddings)
    assert sorted(calls) == ["encode_audio", "encode_vision"]
    np.testing.assert_array_equal(model.encode(first).embeddings, expected)
    model.encode(model.prompt("And now?", video=clip, **size))
    assert len(calls) == 2
    kernel = model.network.vision.merger.fc2.kernel
    kernel[...] = 2 * kernel[...]
    assert np.abs(np.asarray(model.encode(first).embeddings) - expected).max() > 0.1
    assert len(calls) == 3, "other parameters compute other features"
