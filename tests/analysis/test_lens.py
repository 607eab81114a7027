"""The logit lens against Hugging Face's hidden states through its own norm and head, and what it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import avjax
from avjax.analysis import logit_lens
from avjax.metrics import Rank, answer_tokens
from converters.verify import hf_batch, media_prompt
from tests.models.test_media_logits import sound, video
from tests.tiny_hf import TinyCheckpoint

L = 8


@pytest.fixture(scope="module")
def prompt(omni_model: avjax.Model) -> avjax.Prompt:
    clips = (video(omni_model, 6),)
    return media_prompt(omni_model, videos=clips, audio=(sound(omni_model, 3.0),), audio_in_video=True)


@pytest.fixture(scope="module")
def states(omni: TinyCheckpoint, omni_model: avjax.Model, prompt: avjax.Prompt) -> dict[str, torch.Tensor]:
    """Residual-width activations [L, T, D] of the torch model, by hooks."""
    model, seen = omni.torch_model.model, {name: [] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    hooks = []
    for layer in model.language_model.layers if hasattr(model, "language_model") else model.layers:
        hooks += [
            layer.register_forward_pre_hook(
                lambda m, a, kw: seen["resid_pre"].append((a or [kw["hidden_states"]])[0][0]), with_kwargs=True
            ),
            layer.self_attn.register_forward_hook(lambda m, a, out: seen["attn_out"].append(out[0][0])),
            layer.mlp.register_forward_hook(lambda m, a, out: seen["mlp_out"].append(out[0])),
            layer.register_forward_hook(
                lambda m, a, out: seen["resid_post"].append((out[0] if isinstance(out, tuple) else out).reshape(-1, 64))
            ),
        ]
    omni.torch_model(**hf_batch(prompt, omni_model))
    for hook in hooks:
        hook.remove()
    found = {name: torch.stack(rows) for name, rows in seen.items()}
    return found | {"resid_mid": found["resid_pre"] + found["attn_out"]}


def expected(omni: TinyCheckpoint, x: torch.Tensor, norm: bool) -> np.ndarray:
    """Log-probabilities [..., V]."""
    model = omni.torch_model.model
    final = model.language_model.norm if hasattr(model, "language_model") else model.norm
    return torch.log_softmax(omni.torch_model.lm_head(final(x) if norm else x), -1).numpy()


@pytest.mark.exhaustive
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
def test_equals_torch(omni: TinyCheckpoint, omni_model: avjax.Model, prompt, states, site: str, norm: bool):
    found = logit_lens(omni_model, prompt, site=site, norm=norm, answers=[7, "dog"], k=3, progress=False).isel(sample=0)
    rows = found["prompt_position"].values
    assert (prompt.kinds[rows] == 1).all() and len(rows) == prompt.counts()["audio"]
    log_probs = expected(omni, states[site][:, rows], norm)
    assert log_probs.std() > 0.1
    order = np.argsort(-log_probs, -1, kind="stable")
    gap = np.take_along_axis(log_probs, order[..., :2], -1)
    clear = gap[..., 0] - gap[..., 1] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found["top_token"].values[..., 0][clear], order[..., 0][clear])
    best = np.take_along_axis(log_probs, order[..., :3], -1)
    np.testing.assert_allclose(np.log(found["top_prob"].values), best, atol=1e-4)
    np.testing.assert_allclose(found["entropy"].values, -(np.exp(log_probs) * log_probs).sum(-1), atol=1e-4)
    np.testing.assert_allclose(found["log_prob"].values[..., 0], log_probs[..., 7], atol=1e-4)
    forms = list(answer_tokens(omni_model, "dog"))
    of_dog = np.logaddexp.reduce(log_probs[..., forms], -1)
    np.testing.assert_allclose(found["log_prob"].values[..., 1], of_dog, atol=1e-4)
    ranks = 1 + (log_probs > log_probs[..., forms].max(-1, keepdims=True)).sum(-1)
    assert np.mean(found["rank"].values[..., 1] == ranks) > 0.98 and ranks.std() > 10


@pytest.mark.exhaustive
def test_the_last_layer_is_the_model_itself(omni_model: avjax.Model, prompt):
    found = logit_lens(omni_model, prompt, "last", layers=L - 1, answers="dog", k=5, progress=False)
    logits = np.asarray(avjax.run(omni_model, prompt).logits[0])
    np.testing.assert_array_equal(found["top_token"].squeeze(), np.argsort(-logits)[:5])
    probs = np.exp(logits - np.logaddexp.reduce(logits))
    np.testing.assert_allclose(found["top_prob"].squeeze(), np.sort(probs)[::-1][:5], rtol=1e-4)
    rank = avjax.sweep(omni_model, prompt, [()], Rank("dog"), progress=False)["rank_clean"]
    assert float(found["rank"].squeeze()) == float(rank.squeeze())


@pytest.mark.exhaustive
def test_neither_chunks_nor_layers_change_anything(omni_model: avjax.Model, prompt):
    whole = logit_lens(omni_model, prompt, answers=[3], progress=False)
    vocab = omni_model.config.decoder.vocab_size
    for rows in (1, 7):
        cut = logit_lens(omni_model, prompt, answers=[3], chunk_bytes=4 * vocab * rows, progress=False)
        for name in ("top_prob", "entropy", "log_prob"):
            np.testing.assert_allclose(cut[name], whole[name], atol=1e-5)
        np.testing.assert_array_equal(cut["rank"], whole["rank"])
    some = logit_lens(omni_model, prompt, layers=[5, 2], answers=[3], progress=False)
    assert some["layer"].values.tolist() == [2, 5]
    for name in ("top_token", "entropy", "rank"):
        np.testing.assert_array_equal(some[name], whole[name].sel(layer=[2, 5]))
    named = logit_lens(omni_model, prompt, site="blocks.2.hook_resid_post", progress=False)
    np.testing.assert_array_equal(named["top_token"], whole["top_token"].sel(layer=[2]))
    assert named["layer"].values.tolist() == [2]


@pytest.mark.exhaustive
def test_groups_of_different_size_are_filled_with_what_is_no_result(omni_model: avjax.Model, prompt):
    short = media_prompt(omni_model, audio=(sound(omni_model, 0.7),))
    both = logit_lens(omni_model, {"long": prompt, "short": short}, answers=[3], progress=False)
    count = short.counts()["audio"]
    assert count < prompt.counts()["audio"]
    alone = logit_lens(omni_model, short, answers=[3], progress=False).isel(sample=0)
    mine = both.sel(sample="short")
    for name in ("top_token", "entropy", "rank"):
        np.testing.assert_array_equal(mine[name][:, :count], alone[name])
    rest = mine.isel(position=slice(count, None))
    for name in ("top_prob", "entropy", "log_prob", "rank", "seconds"):
        assert np.isnan(rest[name]).all(), name
    for name in ("top_token", "prompt_position", "frame", "input_token"):
        assert (rest[name] == -1).all(), name
    assert (rest["top_word"] == "").all() and (rest["modality"] == "").all()
    where = np.flatnonzero(prompt.kinds == 1)
    long = both.sel(sample="long")
    np.testing.assert_array_equal(long["seconds"], prompt.seconds[where])
    assert long["seconds"].max() > 2 and (long["modality"] == "audio").all()


@pytest.mark.exhaustive
def test_generated_positions_are_those_of_the_caption(omni_model: avjax.Model, prompt):
    caption = [5, 9, 12, 4]
    found = logit_lens(omni_model, prompt, "answer", captions=caption, progress=False).isel(sample=0)
    assert found["input_token"].values.tolist()[1:] == caption[:-1]
    assert found["modality"].values.tolist() == ["text", *["generated"] * 3]
    logits = avjax.run(omni_model, prompt.continued(caption[:-1]), at=range(len(prompt) - 1, len(prompt) + 3)).logits
    np.testing.assert_array_equal(found["top_token"].sel(layer=L - 1).values[:, 0], np.argmax(logits, -1))
    fed = logit_lens(omni_model, prompt, "generated", captions=caption, progress=False).isel(sample=0)
    np.testing.assert_array_equal(fed["top_token"], found["top_token"][:, 1:])


@pytest.mark.exhaustive
def test_answers_of_each_sample(omni_model: avjax.Model, prompt):
    answers = {"own": {"a": 3, "b": 8}, "same": 5}
    found = logit_lens(omni_model, {"a": prompt, "b": prompt}, answers=answers, progress=False)
    plain = logit_lens(omni_model, prompt, answers=[3, 8, 5], progress=False)["rank"].isel(sample=0)
    for sample, token in {"a": "3", "b": "8"}.items():
        np.testing.assert_array_equal(found["rank"].sel(sample=sample, answer="own"), plain.sel(answer=token))
        np.testing.assert_array_equal(found["rank"].sel(sample=sample, answer="same"), plain.sel(answer="5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": "image"}, "where='image': the prompt of sample 0 has no such token; it has .* audio"),
        ({"where": "audoi"}, "unknown token type 'audoi'"),
        ({"site": "resid"}, "site: expected one of"),
        ({"site": "z"}, "got 'z': it does not have the residual stream's width"),
        ({"site": "embed"}, "take resid_pre of layer 0"),
        ({"site": "blocks.3.attn.hook_z"}, "it does not have the residual stream's width"),
        ({"site": "attn_in"}, "it is the output of a norm other than the final one; use resid_pre"),
        ({"site": "blocks.8.hook_resid_post"}, "different layers within 0:8"),
        ({"site": "blocks.3.hook_resid_post", "layers": [2]}, "names a layer; leave layers out"),
        ({"layers": [8]}, r"different layers within 0:8, got \[8\]"),
        ({"layers": []}, "different layers within 0:8"),
        ({"layers": [1, 1]}, "different layers"),
        ({"k": 10**6}, "k: expected a whole number from 1 to the vocabulary size"),
        ({"k": 0}, "k: expected"),
        ({"answers": ["dog", " "]}, "expected a word, got nothing"),
        ({"answers": []}, "answers: expected at least one"),
        ({"answers": ["dog", "dog"]}, "expected distinct answers"),
        ({"answers": {"heard": {"clip": "dog"}}}, "'heard' has no answer for samples 0"),
        ({"answers": 10**6}, "expected token ids within"),
        ({"where": "generated", "captions": [5]}, "has one token, which is never fed back"),
        ({"chunk_bytes": 0}, "chunk_bytes: expected"),
    ],
)
def test_what_does_not_fit_is_refused(omni_model: avjax.Model, prompt, change: dict, message: str, monkeypatch):
    def compiled(*args, **kwargs):
        raise AssertionError("refused too late")

    monkeypatch.setattr("avjax.analysis.lens.lens_pass", compiled)
    with pytest.raises(ValueError, match=message):
        logit_lens(omni_model, prompt, **change, progress=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_activations_that_mean_nothing_are_named(omni_model: avjax.Model, prompt, value: float):
    """From layer 3 on, as an overflow in a checkpoint would make them."""
    down = omni_model.network.decoder.layers.mlp.down
    good = down.kernel[...]
    down.kernel[...] = good.at[3, :, 5].set(jnp.float32(value))
    try:
        with pytest.raises(ValueError, match=r"sample 'clip': expected finite .* resid_post of layer 3, position \d+"):
            logit_lens(omni_model, {"clip": prompt}, progress=False)
        early = logit_lens(omni_model, {"clip": prompt}, layers=range(3), progress=False)
        assert np.isfinite(early["entropy"]).all()
    finally:
        down.kernel[...] = good


@pytest.mark.exhaustive
def test_a_checkpoint_in_bfloat16(omni: TinyCheckpoint, prompt):
    model = avjax.load(omni.directory, dtype="bfloat16")
    found = logit_lens(model, prompt, "last", layers=[L - 1], k=1, progress=False)
    logits = avjax.run(model, prompt).logits[0]
    assert int(found["top_token"].squeeze()) == int(jnp.argmax(logits))


def test_a_prompt_of_another_architecture(vl_model: avjax.Model, prompt):
    with pytest.raises(ValueError, match="made for another architecture"):
        logit_lens(vl_model, prompt)
    with pytest.raises(TypeError, match="expected prompts"):
        logit_lens(vl_model, [dataclasses.asdict(prompt)["token_ids"]])
