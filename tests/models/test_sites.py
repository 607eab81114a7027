"""Names of sites: avjax's own, TransformerLens's for the same tensor, and what is refused with the right one."""

import re

import numpy as np
import pytest

import avjax
from avjax.models.sites import FLOW, Site, parse_site


@pytest.fixture(scope="module")
def tiny_av() -> avjax.Model:
    return avjax.load("tiny-av")


SAME = {
    "blocks.3.hook_resid_pre": ("resid_pre", 3),
    "blocks.12.hook_mlp_out": ("mlp_out", 12),
    "blocks.3.attn.hook_z": ("z", 3),
    "blocks.3.attn.hook_v": ("value", 3),
    "hook_embed": ("embed", None),
    "blocks.3.ln1.hook_out": ("attn_in", 3),
    "blocks.3.attn.hook_in": ("attn_in", 3),
    "blocks.0.ln2.hook_out": ("mlp_in", 0),
    "blocks.0.mlp.hook_in": ("mlp_in", 0),
}
OTHERS = {
    "blocks.3.ln1.hook_normalized": "before the norm's weight; expected 'attn_in', after norm and weight, or "
    "'blocks.3.ln1.hook_out'",
    "blocks.3.ln2.hook_normalized": "expected 'mlp_in', after norm and weight, or 'blocks.3.ln2.hook_out'",
    "blocks.3.hook_attn_in": "TransformerLens reads it before the norm in HookedTransformer",
    "blocks.3.hook_mlp_in": "expected 'mlp_in'",
    "resid_pots": "did you mean 'resid_post'?",
    "Resid-Post": "did you mean 'resid_post'?",
    "mlp_input": "did you mean 'mlp_in'?",
    "blocks.3.hook_resid_pots": "did you mean 'blocks.3.hook_resid_post'?",
    "blocks.3.resid_mid": "did you mean 'blocks.3.hook_resid_mid'?",
    "hook_resid_pre": "did you mean 'blocks.0.hook_resid_pre'?",
    "blocks.0.hook_embed": "did you mean 'hook_embed'?",
}


@pytest.mark.parametrize("name", SAME)
def test_names_of_the_same_tensor(name: str):
    assert parse_site(name) == SAME[name]


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_tensors_and_slips(name: str):
    with pytest.raises(ValueError, match=re.escape(OTHERS[name])) as error:
        parse_site(name)
    assert "\n" not in str(error.value) and repr(name) in str(error.value)


def test_every_site_of_a_layer_is_named_once_in_the_order_of_the_pass():
    assert set(FLOW) == set(Site) - {"pattern", "mass", "value_mass", "received", "peak"}


def test_a_capture_says_the_nearest_name(tiny_av: avjax.Model):
    prompt = tiny_av.prompt("nothing to hear")
    for name, message in (("resid_pots", "'resid_post'"), ("blocks.3.hook_mlp_in", "expected 'mlp_in'")):
        with pytest.raises(ValueError, match=f"^capture: .*{message}"):
            avjax.run(tiny_av, prompt, capture=[name])
    with pytest.raises(ValueError, match=r"got 'resid_pots'; did you mean 'resid_post'\?, 'banana'"):
        avjax.run(tiny_av, prompt, capture=["resid_pots", "banana"])


@pytest.mark.exhaustive
def test_an_edit_of_what_attention_reads_changes_queries_keys_and_values(tiny_av: avjax.Model):
    """At its own positions: the residual goes on past it, and the MLP's input is edited apart."""
    prompt = tiny_av.prompt("nothing to hear")
    sites = ["resid_pre", "attn_in", "value", "pattern", "resid_mid", "mlp_in"]
    clean = avjax.run(tiny_av, prompt, capture=sites).captures
    edited = avjax.run(tiny_av, prompt, avjax.Scale([2], -3.0, site="attn_in", layers=[1]), capture=sites).captures
    apart = {site: np.abs(np.asarray(edited[site][1]) - np.asarray(clean[site][1])) for site in sites}
    assert (
        not apart["resid_pre"].any() and not apart["attn_in"][[0, 1, 3]].any() and not apart["value"][[0, 1, 3]].any()
    )
    assert apart["attn_in"][2].max() > 0.1 and apart["value"][2].max() > 1e-2
    assert apart["pattern"][:, 2].max() > 1e-2 and apart["pattern"][:, 3:, 2].max() > 1e-2
    np.testing.assert_allclose(edited["attn_in"][1][2], -3 * clean["attn_in"][1][2], rtol=1e-5)
    only = avjax.run(tiny_av, prompt, avjax.Ablate([2], "zero", site="mlp_in", layers=[1]), capture=sites).captures
    assert not np.asarray(only["mlp_in"][1][2]).any()
    np.testing.assert_array_equal(only["resid_mid"][1], clean["resid_mid"][1])
