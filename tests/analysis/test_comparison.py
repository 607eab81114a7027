"""Base comparison: against distributions from torch-free single runs, tags, refusals, and claim 4 on the tiny pair."""

import numpy as np
import pytest
import scipy.special

import avjax
from avjax.analysis import compare_with_base, shift_shares
from avjax.analysis.comparison import check_base
from avjax.organism import behaviour, world
from avjax.organism.world import KINDS

pytestmark = pytest.mark.exhaustive

CLASSES = {"sound": [kind.sound for kind in KINDS], "thing": [kind.thing for kind in KINDS]}


@pytest.fixture(scope="module")
def pair(tiny_av: avjax.Model) -> tuple[avjax.Model, avjax.Model, dict, dict]:
    """tiny-av and tiny-vl with 16 clips under conflict, the base's without sound."""
    base = avjax.load("tiny-vl")
    clips = [world.clip("test", i, "counterfactual") for i in range(16)]
    heard = dict(enumerate(prompt for _, prompt in behaviour.prompts_of(tiny_av, clips)))
    silent = dict(enumerate(prompt for _, prompt in behaviour.prompts_of(base, clips, sound=False)))
    return tiny_av, base, heard, silent


def test_numbers_are_those_of_two_distributions(pair):
    model, base, heard, silent = pair
    text = "I hear barking and I see a dog."
    found = compare_with_base(model, base, heard[0], silent[0], captions=text, classes=CLASSES, progress=False)
    tokens = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.sizes == {"sample": 1, "token": len(tokens)}
    for place in (0, 2, len(tokens) - 1):
        p, q = (
            scipy.special.log_softmax(np.asarray(avjax.run(m, prompt.continued(tokens[:place])).logits[0], np.float64))
            for m, prompt in ((model, heard[0]), (base, silent[0]))
        )
        cell = found.isel(sample=0, token=place)
        np.testing.assert_allclose(cell["kl_model_base"], np.sum(np.exp(p) * (p - q)), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(cell["kl_base_model"], np.sum(np.exp(q) * (q - p)), rtol=1e-3, atol=1e-5)
        assert cell["rank"] == 1 + np.sum(q > q[tokens[place]])
    assert "".join(found["text"].values[0]) == text
    tags = dict(zip(found["text"].values[0], found["token_class"].values[0], strict=True))
    assert tags[" barking"] == "sound" and tags[" dog"] == "thing" and tags[" hear"] == "other"
    assert "sibling" in found.attrs["caveat"]


def test_a_model_is_unshifted_from_itself(pair):
    model, _, _, silent = pair
    found = compare_with_base(model, model, silent[0], silent[0], progress=False)
    assert (found["shift"] == "unshifted").all() and float(found["kl_model_base"].max()) < 1e-5


def test_prompts_that_do_not_belong_together_are_refused(pair):
    model, base, heard, silent = pair
    with pytest.raises(ValueError, match="sample 0 show different pictures to model and base"):
        compare_with_base(model, base, heard[0], silent[1], progress=False)
    with pytest.raises(ValueError, match=r"the model's pictures and no sound, got .*'audio': 51.* and .*'audio': 51"):
        compare_with_base(model, base, heard[0], heard[0], progress=False)
    with pytest.raises(ValueError, match=r"the model's pictures and no sound, got .*'video': 18.* and .*'video': 0"):
        compare_with_base(model, base, heard[0], base.prompt(world.PROMPT), progress=False)
    with pytest.raises(ValueError, match="expected single words, got 'dog barking' for 'sound'"):
        compare_with_base(model, base, heard[0], silent[0], classes={"sound": ["dog barking"]}, progress=False)
    with pytest.raises(ValueError, match=r"captions: sample 0: expected token ids within 0:510, got \[40, 600\]"):
        compare_with_base(model, base, heard[0], silent[0], captions=[40, 600], progress=False)
    with pytest.raises(TypeError, match="captions: sample 0: expected integers"):
        compare_with_base(model, base, heard[0], silent[0], captions=np.array([1.7, 2.0]), progress=False)


def test_the_sound_word_is_the_bases(pair):
    """Claim 4 of the paper on the tiny pair."""
    model, base, heard, silent = pair
    found = compare_with_base(model, base, heard, silent, classes=CLASSES, max_new_tokens=12, progress=False)
    shares = shift_shares(found)
    assert shares["share"].sel(token_class="sound", shift="unshifted") >= 0.7
    np.testing.assert_allclose(shares["share"].sum("shift"), 1)
    missing = found["shift"].values == ""
    assert np.isnan(found["rank"].values[missing]).all() and not np.isnan(found["rank"].values[~missing]).any()


def test_refusals(pair, omni_model: avjax.Model):
    model, base, heard, silent = pair
    with pytest.raises(ValueError, match="expected models of one vocabulary"):
        check_base(model, omni_model)
    with pytest.raises(ValueError, match="have different words for the model and the base"):
        compare_with_base(model, base, heard[0], silent[0].continued([3]), progress=False)
    with pytest.raises(ValueError, match="the caption of sample 0 is empty"):
        compare_with_base(model, base, heard[0], silent[0], captions="  ", progress=False)
    with pytest.raises(ValueError, match="prompts of the same samples"):
        compare_with_base(model, base, {"a": heard[0]}, {"b": silent[0]}, progress=False)
    with pytest.raises(ValueError, match="is in two classes"):
        compare_with_base(model, base, heard[0], silent[0], classes={"a": ["x"], "b": ["X"]}, progress=False)
