"""Selectors over a prompt, and the token groups that they induce."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avjax.prompts.selectors import KINDS, MODALITIES, NAMES, partition, select


@dataclasses.dataclass
class Layout:
    kinds: np.ndarray
    roles: np.ndarray
    special: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray


# One row per position: modality, speaker, control token, clip seconds, grid step.
nan = float("nan")
ROWS = (
    ("text", "system", True, nan, -1),  # 0
    ("text", "system", False, nan, -1),  # 1
    ("text", "user", True, nan, -1),  # 2
    ("image", "user", False, nan, -1),  # 3
    ("image", "user", False, nan, -1),  # 4
    ("video", "user", False, 0.0, 0),  # 5
    ("video", "user", False, 0.0, 0),  # 6
    ("audio", "user", False, 0.0, -1),  # 7
    ("audio", "user", False, 0.04, -1),  # 8
    ("video", "user", False, 1.5, 1),  # 9
    ("video", "user", False, 3.0, 2),  # 10
    ("audio", "user", False, 2.0, -1),  # 11
    ("text", "user", False, nan, -1),  # 12
    ("text", "assistant", True, nan, -1),  # 13
    ("text", "assistant", False, nan, -1),  # 14
)
T = len(ROWS)
GENERATED = T
LAYOUT = Layout(
    kinds=np.array([MODALITIES.index(row[0]) for row in ROWS], np.int8),
    roles=np.array([row[1] for row in ROWS]),
    special=np.array([row[2] for row in ROWS]),
    seconds=np.array([row[3] for row in ROWS], np.float32),
    frames=np.array([row[4] for row in ROWS], np.int32),
)

TEXT = [0, 1, 2, 12, 13, 14]
EXPECTED = {
    "text": TEXT,
    "query_text": TEXT,  # the published name
    "image": [3, 4],
    "video": [5, 6, 9, 10],
    "audio": [7, 8, 11],
    "system": [1],
    "user": [12],
    "special": [0, 2, 13],
    "generated": [GENERATED],
    "last": [T - 1],
    "answer": [T - 1, GENERATED],
    "all": [*range(T), GENERATED],
    # seconds of the clip, end exclusive
    "audio[0s:0.04s]": [7],
    "audio[0s:2s]": [7, 8],
    "audio[2s:4s]": [11],
    "video[1.5s:3s]": [9],
    "video[1.5:3s]": [9],
    "video[:2s]": [5, 6, 9],
    "video[1s:]": [9, 10],
    "all[0s:1s]": [5, 6, 7, 8],
    "text[0s:9s]": [],
    # grid steps
    "video[f0:f1]": [5, 6],
    "video[f1:]": [9, 10],
    "video[f1:3]": [9, 10],
    "all[:f2]": [5, 6, 9],
    "all[f0:]": [5, 6, 9, 10],
    "video[:f2]": [5, 6, 9],
    "audio[f0:f9]": [],
    # by order within the group
    "audio[0:2]": [7, 8],
    "audio[2:9]": [11],
    "video[:1]": [5],
    "video[1:]": [6, 9, 10],
    "text[5:6]": [14],
    # positions
    "[0]": [0],
    "[0, 5:8]": [0, 5, 6, 7],
    "[:2]": [0, 1],
    "[13:]": [13, 14],
    "[:]": [*range(T)],
    "[ 3 : 5 , 14 ]": [3, 4, 14],
    # joined; - binds closest, then &, then |
    "audio|video": [5, 6, 7, 8, 9, 10, 11],
    "text - special": [1, 12, 14],
    "all - text - audio - video - image": [GENERATED],
    "all & text": TEXT,
    "image | video & [0:7]": [3, 4, 5, 6],
    "(image | video) & [0:4]": [3],
    "audio & all - [7]": [8, 11],
    "(audio & all) - [7] | [7]": [7, 8, 11],
    "video & text | image": [3, 4],
    "text - (system | special)": [12, 14],
    "text - system | special": [0, 2, 12, 13, 14],
    "all - [0:3] & text": [12, 13, 14],
    "((last))": [T - 1],
    "  audio[ 0s : 0.04s ]  ": [7],
}


def positions(mask: np.ndarray) -> list[int]:
    assert mask.dtype == bool and mask.shape == (T + 1,)
    return np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("opened", [1, 2])
def test_an_opening_is_part_of_the_answer(opened: int):
    kinds = LAYOUT.kinds.copy()
    kinds[T - opened :] = KINDS.index("generated")
    layout = dataclasses.replace(LAYOUT, kinds=kinds)

    def named(selector: str) -> list[int]:
        return np.flatnonzero(select(layout, selector)).tolist()

    assert named("generated") == [*range(T - opened, T), GENERATED]
    assert named("answer") == [*range(T - opened - 1, T), GENERATED]
    assert named("last") == [T - 1], "the position that the next token is predicted from"
    assert named("text") == [p for p in TEXT if p < T - opened]
    assert named("special") == [p for p in EXPECTED["special"] if p < T - opened]
    assert named("all") == [*range(T), GENERATED]


@pytest.mark.parametrize("selector", EXPECTED)
def test_selected_positions(selector: str):
    assert positions(select(LAYOUT, selector)) == EXPECTED[selector]


def test_every_name_is_tested():
    assert EXPECTED.keys() >= set(NAMES)


def test_positions_as_objects():
    assert positions(select(LAYOUT, [0, 5, 14])) == [0, 5, 14]
    assert positions(select(LAYOUT, (np.int64(3),))) == [3]
    assert positions(select(LAYOUT, range(3, 6))) == [3, 4, 5]


MALFORMED = {
    "": "the end",
    "   ": "the end",
    "vidio": "unknown token type 'vidio'",
    "Audio": "unknown token type 'Audio'",
    "audio |": "the end",
    "| audio": "expected a name",
    "audio video": "expected the end of the text",
    "audio & & video": "expected a name",
    "(audio": "not closed",
    "audio)": "expected the end of the text",
    "()": "expected a name",
    "audio + video": "cannot read",
    "audio[2s:4s": "cannot read",
    "audio[]": "cannot read the span",
    "audio[two:four]": "cannot read the span",
    "audio[3]": "cannot read the span",
    "audio[4s:2s]": "empty",
    "audio[2s:2s]": "empty",
    "audio[.:2s]": "cannot read the span",
    "video[f2:f1]": "empty",
    "video[0s:1s][0:1]": "expected the end of the text",
    "video[f0:2s]": "cannot read the span",
    "video[f0.5:f2]": "cannot read the span",
    "audio[0.5:2]": "cannot read the span",
    "[]": "cannot read the positions",
    "[1,]": "cannot read the positions",
    "[-1]": "cannot read the positions",
    "[15]": "within 0:15",
    "[3:99]": "within 0:15",
    "[5:5]": "within 0:15",
    "[7:5]": "within 0:15",
    "[3](4)": "cannot read",
    "[3] audio": "expected the end of the text",
    "video[f:f2]": "cannot read the span",
    "audio[s:2s]": "cannot read the span",
    "audio[1 0:2 0]": "cannot read the span",
}


@pytest.mark.parametrize("selector", MALFORMED)
def test_malformed_selectors(selector: str):
    with pytest.raises(ValueError, match="selector") as refused:
        select(LAYOUT, selector)
    assert MALFORMED[selector] in str(refused.value)
    assert repr(selector) in str(refused.value) or selector in str(refused.value)


@pytest.mark.parametrize("selector", [[15], [-1], [0, 99]])
def test_positions_out_of_range(selector: list[int]):
    with pytest.raises(ValueError, match="within 0:15"):
        select(LAYOUT, selector)


EXPRESSIONS = st.recursive(
    st.sampled_from([*NAMES, "[0:4]", "[7]", "video[f1:]", "audio[0s:1s]"]),
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("|&-"), inner),
    max_leaves=8,
)


def evaluated(text: str) -> set[int]:
    """The same expression by Python's own sets, whose operators bind in the same order."""
    names = {f"x{i}": set(positions(select(LAYOUT, name))) for i, name in enumerate(ATOMS)}
    for i, name in sorted(enumerate(ATOMS), key=lambda item: -len(item[1])):
        text = text.replace(f"<{name}>", f"x{i}")
    return eval(text, {"__builtins__": {}}, names)


ATOMS = [*NAMES, "[0:4]", "[7]", "video[f1:]", "audio[0s:1s]"]


@given(data=st.data(), count=st.integers(1, 7))
def test_operators_bind_as_for_python_sets(data: st.DataObject, count: int):
    atoms = data.draw(st.lists(st.sampled_from(ATOMS), min_size=count, max_size=count))
    operators = data.draw(st.lists(st.sampled_from("|&-"), min_size=count - 1, max_size=count - 1))
    flat = [part for pair in zip(atoms, [*operators, ""], strict=True) for part in pair if part]
    marked = [f"<{part}>" if part in ATOMS else part for part in flat]
    assert set(positions(select(LAYOUT, " ".join(flat)))) == evaluated(" ".join(marked))


@given(selectors=st.lists(EXPRESSIONS, max_size=6))
def test_partition(selectors: list[str]):
    masks = [select(LAYOUT, selector) for selector in selectors]
    groups = partition(masks, T)
    of = np.append(groups.prompt, groups.generated)
    assert of.shape == (T + 1,) and groups.prompt.dtype == np.int32
    for mask, members in zip(masks, groups.members, strict=True):
        assert members.shape == (groups.num_groups,)
        np.testing.assert_array_equal(members[of], mask)  # a selector is a union of groups
    belongs = [tuple(bool(mask[i]) for mask in masks) for i in range(T + 1)]
    for i in range(T + 1):
        for j in range(i):
            assert (of[i] == of[j]) == (belongs[i] == belongs[j])  # and no partition is coarser
    assert list(dict.fromkeys(of.tolist())) == list(range(groups.num_groups))  # numbered as they first appear


def test_partition_of_nothing():
    groups = partition([], T)
    assert groups.num_groups == 1 and groups.generated == 0 and not groups.prompt.any()
    assert groups.prompt.shape == (T,) and groups.members == ()


@pytest.mark.parametrize("selector", ["generated[0:1]", "answer[0:2]", "all[3:5]"])
def test_generated_tokens_cannot_be_counted(selector: str):
    """They are one group, so that a span of them would be all of them."""
    with pytest.raises(ValueError, match="counts generated tokens"):
        select(LAYOUT, selector)
