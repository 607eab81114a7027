"""Properties of the key tables and of the rules that they consist of."""

import collections

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from avjax.families.key_rules import Rule
from avjax.families.registry import abstract_network, family_of, read_config
from avjax.models.config import ModelConfig
from avjax.models.parameters import parameter_paths
from tests.tiny_hf import hf_config

IDS = {"vocab_size": 40} | dict.fromkeys(
    ("image", "video", "audio", "vision_bos", "vision_eos", "audio_bos", "audio_eos"), 1
)


def config_of(family: str, *, tied: bool) -> ModelConfig:
    return read_config({**hf_config(IDS, family), "tie_word_embeddings": tied})


CONFIGS = {
    f"{family}-{'tied' if tied else 'untied'}": config_of(family, tied=tied)
    for family in ("qwen2_5_omni", "qwen2_5_vl")
    for tied in (False, True)
}
RULES = sorted({rule for config in CONFIGS.values() for rule in family_of(config).key_table(config).rules}, key=str)

configs = pytest.mark.parametrize("name", CONFIGS)


@given(rule=st.sampled_from(RULES), data=st.data())
def test_to_source_undoes_to_target(rule: Rule, data: st.DataObject):
    right = rule.axes.split("->")[1].split()
    place = tuple(data.draw(st.integers(1, 5), label=axis) for axis in right)
    tensor = np.arange(np.prod(place)).reshape(rule.source_shape(place))
    laid_out = rule.to_target(tensor, place)
    assert laid_out.shape == place
    np.testing.assert_array_equal(rule.to_source(laid_out), tensor)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.source}: {rule.axes}")
def test_every_rule_is_inverted_at_unequal_sizes(rule: Rule):
    """Not left to a draw: distinct sizes on every axis, so that no exchange of axes goes unseen."""
    place = (2, 3, 5, 7, 11)[: len(rule.axes.split("->")[1].split())]
    tensor = np.arange(np.prod(place)).reshape(rule.source_shape(place))
    laid_out = rule.to_target(tensor, place)
    assert laid_out.shape == place
    np.testing.assert_array_equal(rule.to_source(laid_out), tensor)


@pytest.mark.parametrize(
    ("axes", "source", "place", "expected"),
    [
        # torch's Linear is [out, in]; heads are the slow axis of `out`.
        ("(N H) D -> D N H", (6, 5), (5, 2, 3), lambda w, d, n, h: w[n * 3 + h, d]),
        ("D (N H) -> N H D", (5, 6), (2, 3, 5), lambda w, n, h, d: w[d, n * 3 + h]),
        ("(C N H) D -> C D N H", (18, 5), (3, 5, 2, 3), lambda w, c, d, n, h: w[c * 6 + n * 3 + h, d]),
        ("D C W -> W C D", (5, 4, 3), (3, 4, 5), lambda w, k, c, d: w[d, c, k]),
    ],
)
def test_layouts_element_by_element(axes: str, source: tuple[int, ...], place: tuple[int, ...], expected):
    rule = Rule("s", "t", axes)
    tensor = np.arange(np.prod(source)).reshape(source)
    assert rule.source_shape(place) == source
    laid_out = rule.to_target(tensor, place)
    for index in np.ndindex(*place):
        assert laid_out[index] == expected(tensor, *index)


@given(num_layers=st.integers(1, 12), name=st.sampled_from(list(CONFIGS)))
def test_no_source_name_occurs_twice_in_a_table(num_layers: int, name: str):
    table = family_of(CONFIGS[name]).key_table(CONFIGS[name])
    names = collections.Counter(entry for rule in table.rules for _, entry in rule.entries(num_layers))
    assert max(names.values()) == 1
    assert not names.keys() & table.aliases.keys(), "a repeated tensor is no rule's own"
    assert set(table.aliases.values()) <= names.keys()
    assert not any(table.skips(entry) for entry in names)


@given(num_layers=st.integers(1, 12), rule=st.sampled_from(RULES))
def test_places_count_layers_then_alternatives(num_layers: int, rule: Rule):
    entries = list(rule.entries(num_layers))
    places = [place for place, _ in entries]
    assert places == sorted(set(places))
    for place, entry in entries:
        if "{l}" in rule.source:
            assert f".{place[0]}." in entry
        if "{q|k|v}" in rule.source:
            assert f".{'qkv'[place[1]]}." in entry
    assert len(entries) == max(1, num_layers * ("{l}" in rule.source)) * (3 if "|" in rule.source else 1)


@configs
def test_every_parameter_is_filled_by_one_rule(name: str):
    config = CONFIGS[name]
    filled = collections.Counter(rule.target for rule in family_of(config).key_table(config).rules)
    assert filled == collections.Counter(list(parameter_paths(abstract_network(config))))


@configs
def test_patterns_fit_the_parameters(name: str):
    """Axes on the right of a rule, after those that stack, are the axes of its parameter."""
    config = CONFIGS[name]
    shapes = {path: leaf.shape for path, leaf in parameter_paths(abstract_network(config)).items()}
    for rule in family_of(config).key_table(config).rules:
        stacked = rule.source.count("{")
        assert len(shapes[rule.target]) == stacked + len(rule.axes.split("->")[1].split()), rule


def test_a_pattern_that_does_not_fit_names_its_rule():
    rule = Rule("model.norm.weight", "decoder.final_norm.scale", "D -> D")
    with pytest.raises(ValueError, match=r"model\.norm\.weight -> decoder\.final_norm\.scale: .*does not fit"):
        rule.source_shape((2, 3))
