"""Rule strings: both forms, the way back, and what is refused."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import avjax
from avjax.edits.edits import Knockout
from avjax.edits.rules import as_edits, parse_rules
from avjax.models.config import DecoderConfig
from avjax.prompts.selectors import NAMES

LAYERS, HEADS = 36, 16
CONFIG = DecoderConfig(
    num_layers=LAYERS,
    num_heads=HEADS,
    num_kv_heads=2,
    head_dim=128,
    embed_dim=2048,
    mlp_dim=64,
    vocab_size=100,
    norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    tied_embeddings=True,
)

FORMS = {
    "generated->video@18:36#h0,h3": ("generated", "video", range(18, 36), [0, 3]),
    "generated->video": ("generated", "video", None, None),
    "answer -> audio @ 3": ("answer", "audio", [3], None),
    "answer->audio#h2": ("answer", "audio", None, [2]),
    "answer->audio@1,4,7:9#0,h2:h4": ("answer", "audio", [1, 4, 7, 8], [0, 2, 3]),
    "text - system->audio[2s:4s] | video[f1:f3]@0:4": ("text - system", "audio[2s:4s] | video[f1:f3]", range(4), None),
    "[3, 5:9]->[0]@2": ("[3, 5:9]", "[0]", [2], None),
    "generated,video,18,36": ("generated", "video", range(18, 36), None),
    " query_text , audio , 0 , 35 ": ("query_text", "audio", range(35), None),
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str):
    query, key, layers, heads = FORMS[text]
    assert parse_rules(text) == (Knockout(query=query, key=key, layers=layers, heads=heads),)


def test_several_rules():
    rules = parse_rules("generated,video,0,4; answer->audio@2 ;")
    assert rules == (
        Knockout(query="generated", key="video", layers=range(4)),
        Knockout(query="answer", key="audio", layers=[2]),
    )
    assert as_edits(["generated->video;answer->audio", rules[0]]) == (
        *parse_rules("generated->video"),
        *parse_rules("answer->audio"),
        rules[0],
    )


def test_the_published_end_is_exclusive():
    assert parse_rules("generated,video,0,35")[0].layer_indices(CONFIG) == tuple(range(35))  # layer 35 stays open


INDICES = st.none() | st.lists(st.integers(0, 40), min_size=1, max_size=6)
SELECTORS = st.sampled_from([*NAMES, "text - system", "audio[2s:4s]", "(audio | video) & [0:9]", "[0, 5:9]"])


@given(query=SELECTORS, key=SELECTORS, layers=INDICES, heads=INDICES)
def test_round_trip(query: str, key: str, layers: list[int] | None, heads: list[int] | None):
    rule = Knockout(query=query, key=key, layers=layers, heads=heads)
    assert parse_rules(str(rule)) == (rule,)


@given(start=st.integers(0, 30), width=st.integers(1, 6))
def test_published_form_round_trips(start: int, width: int):
    (rule,) = parse_rules(f"generated,video,{start},{start + width}")
    assert parse_rules(str(rule)) == (rule,)
    assert rule.layer_indices(CONFIG) == tuple(range(start, start + width))


def test_positions_come_back_as_a_selector():
    rule = Knockout(query=[7, 8], key=range(3))
    assert str(rule) == "[7, 8]->[0, 1, 2]"
    (back,) = parse_rules(str(rule))
    assert (back.query, back.key) == ("[7, 8]", "[0, 1, 2]")


MALFORMED = [
    "",
    " ; ",
    "generated",
    "generated-video",
    "generated->",
    "->video",
    "generated>video",
    "generated->video@",
    "generated->video#",
    "generated->video@a:b",
    "generated->video@3:",
    "generated->video@-1",
    "generated->video@1.5",
    "generated->video#h",
    "generated->video#x1",
    "generated->video#h0@3",
    "generated->video->audio",
    "generated,video",
    "generated,video,18",
    "generated,video,18,36,2",
    "generated,video,a,b",
    "generated,,0,4",
    ",video,0,4",
    "generated,video,1.5,3",
    "generated->video@9:3",
    "generated->video@4:4",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_rules(text: str):
    """Refused when parsed, or at the latest when the rule meets the model."""
    with pytest.raises(ValueError, match="rule") as refused:
        [rule.layer_indices(CONFIG) for rule in parse_rules(text)]
    assert repr(text) in str(refused.value) or text in str(refused.value)
    assert "expected" in str(refused.value) or "empty" in str(refused.value)


@pytest.mark.parametrize("text", ["generated,video,36,18", "generated,video,4,4"])
def test_empty_window_of_the_published_form(text: str):
    with pytest.raises(ValueError, match=f"rule '{text}': the window .* is empty"):
        parse_rules(text)


@pytest.mark.parametrize("layers", [[], range(3, 3)])
def test_empty_window(layers: list[int]):
    with pytest.raises(ValueError, match="layer window is empty"):
        Knockout(query="answer", key="audio", layers=layers).layer_indices(CONFIG)
    with pytest.raises(ValueError, match="head window is empty"):
        Knockout(query="answer", key="audio", heads=layers).head_indices(CONFIG)


@pytest.mark.parametrize(("window", "wrong"), [("30:40", "36:40"), ("36", "36"), ("0,99", "99")])
def test_layers_out_of_range(window: str, wrong: str):
    with pytest.raises(ValueError, match=rf"expected layers within 0:36 \(0-based, end exclusive\), got {wrong}"):
        parse_rules(f"generated->video@{window}")[0].layer_indices(CONFIG)


def test_negative_indices_are_out_of_range():
    """Python would count from the end; a rule never does."""
    for layers in ([-1], range(-2, 3)):
        with pytest.raises(ValueError, match="layers within 0:36"):
            Knockout(query="answer", key="audio", layers=layers).layer_indices(CONFIG)
    with pytest.raises(ValueError, match="layers within 0:36"):
        parse_rules("generated,video,-3,4")[0].layer_indices(CONFIG)


@pytest.mark.parametrize(("heads", "wrong"), [("h16", "16"), ("h0,h3:h18", "16:18")])
def test_heads_out_of_range(heads: str, wrong: str):
    with pytest.raises(ValueError, match=rf"expected heads within 0:16 .* got {wrong}"):
        parse_rules(f"generated->video#{heads}")[0].head_indices(CONFIG)


def test_defaults_are_all_layers_and_heads():
    rule = Knockout(query="answer", key="audio")
    assert rule.layer_indices(CONFIG) == tuple(range(LAYERS))
    assert rule.head_indices(dataclasses.replace(CONFIG, num_heads=3)) == (0, 1, 2)
    assert Knockout(query="answer", key="audio", layers=3, heads=[2, 1, 2]).head_indices(CONFIG) == (1, 2)


def test_neither_rule_nor_edit():
    with pytest.raises(TypeError, match="expected an intervention or a rule string, got int"):
        as_edits([3])  # pyright: ignore[reportArgumentType]


def test_rules_meet_the_prompt(omni_model: avjax.Model):
    """What a rule says of tokens is checked when it meets a prompt; the message names the rule."""
    prompt = omni_model.prompt("Describe what you hear.")
    for rule, reason in {
        "generated->video": "no video tokens",
        "last->vidio": "unknown token type 'vidio'",
        "last->text@99": "expected layers within 0:8",
        "last->text#h9": "expected heads within 0:4",
        "last->[9999]": "expected positions within",
    }.items():
        with pytest.raises(ValueError, match=r"rule|selector") as refused:
            avjax.run(omni_model, prompt, rule)
        assert reason in str(refused.value)


@pytest.mark.parametrize(
    "field",
    [
        {"layers": 1.9},
        {"layers": ["2:4"]},
        {"layers": [1.9]},
        {"layers": {"width": 4}},
        {"layers": avjax.windows},
        {"heads": avjax.Scale},
        {"layers": [False, True]},
        {"heads": [0.0]},
        {"query": np.ones(3, bool)},
        {"key": [1.5]},
    ],
)
def test_only_integers_are_indices(field: dict):
    """A mask or a fraction would silently become other indices."""
    with pytest.raises(TypeError, match="expected integers"):
        avjax.Knockout(**{"query": "text", "key": "text", **field})


@pytest.mark.parametrize(
    ("indices", "expected"),
    [("4:8", (4, 5, 6, 7)), ("12", (12,)), ("0,3", (0, 3)), (" 0, 2:4 ", (0, 2, 3)), (slice(1, 3), (1, 2)), (3, (3,))],
)
def test_layers_and_heads_may_be_text_as_in_rules(indices: Any, expected: tuple[int, ...]):
    for field in ("layers", "heads"):
        edits = (
            Knockout(query="answer", key="audio", **{field: indices}),
            avjax.Scale("audio", 0.5, site="z", **{field: indices}),
        )
        for edit in edits:
            assert getattr(edit, field) == expected
    swept = avjax.grid(Knockout(query="answer", key="audio", layers=avjax.axis("layers", ["0:4", "4:8"])))
    assert [cell.edits[0].layers for cell in swept.cells(CONFIG).cells] == [tuple(range(4)), tuple(range(4, 8))]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ("4-8", "did you mean '4:8'?"),
        ("[4:8)", "expected layers such as 12, 18:36 or 0,3"),
        ("18:", "give the end too, as 18:END"),
        (":8", "did you mean '0:8'?"),
        ("all", "leave layers out for all of them"),
        ("each", "avjax.each_layer() takes one at a time"),
        ("-1", "counting starts at 0, and negative numbers are refused"),
        ("8:4", "the window 8:4 is empty"),
        ("last", "expected layers such as"),
        (slice(4, None), "give both ends"),
    ],
)
def test_text_that_is_no_layers(indices: Any, message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Knockout(query="answer", key="audio", layers=indices)
    assert "\n" not in str(error.value) and "layers" in str(error.value)
    if isinstance(indices, str):
        with pytest.raises(ValueError, match=r"^rule 'answer->audio@.*"):
            parse_rules(f"answer->audio@{indices}")


def test_negative_layers_name_the_last_one():
    with pytest.raises(ValueError, match="got -1; the last layer is 35"):
        Knockout(query="answer", key="audio", layers=[-1]).layer_indices(CONFIG)


def test_what_is_no_edit():
    for edit, message in (
        (Knockout, r"the class Knockout; call it: Knockout\(\.\.\.\)"),
        ({"edit": "knockout"}, "in Python an edit is an object"),
        (avjax.grid("answer->audio"), "a grid cannot be part of a list"),
    ):
        with pytest.raises(TypeError, match=message):
            as_edits([edit])
    with pytest.raises(ValueError, match=r"got 'zeros'; did you mean 'zero'\?"):
        avjax.Ablate("audio", "zeros")
