"""The benchmark's arithmetic: samples stand for wholes, and a disagreement cannot pass for parity."""

import pytest

from sweeps.bench.checkpoint import SIZES
from sweeps.bench.comparison import best_peer, break_even, parity, summary, whole_seconds
from sweeps.bench.table import markdown
from sweeps.bench.workloads import document


def answer(seconds: float, variants: int, fixed: float = 0.0) -> dict:
    return {"seconds": seconds, "fixed_seconds": fixed, "variants": variants, "peak_bytes": 0}


@pytest.mark.parametrize(("size", "counts"), [("small", (96, 36, 96, 48, 96)), ("large", (384, 36, 192, 96, 96))])
def test_workloads_have_the_stated_variants(size, counts):
    content = document(SIZES[size])
    assert tuple(len(content["workloads"][name]) for name in "abcde") == counts
    assert len(content["ids"]) == len(content["kinds"]) == SIZES[size].num_tokens
    assert content["kinds"][:56] == ["text"] * 16 + ["video"] * 40
    assert content["kinds"][56:67] == ["audio"] * 10 + ["video"]
    assert content["kinds"][-25:] == ["audio"] + ["text"] * 24


def test_a_sample_does_not_multiply_what_happens_once():
    assert whole_seconds(answer(5.0, 2, fixed=1.0), 10) == pytest.approx(21.0)
    found = summary([answer(9.0, 2, fixed=1.0), answer(5.0, 2, fixed=1.0)], 10)
    assert found["seconds"] == pytest.approx(21.0)
    assert found["cold_seconds"] == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("workload", "theirs", "passed"),
    [
        ("a", {"1": [1.0, 2.00005]}, True),
        ("a", {"1": [1.0, 2.001]}, False),
        ("a", {"1": [1.0, float("nan")]}, False),
        ("b", {"1": [1, 2]}, True),
        ("b", {"1": [1, 3]}, False),
        ("b", {"1": [1]}, False),
    ],
)
def test_parity_fails_on_any_disagreement(workload, theirs, passed):
    assert parity(workload, {"0": [0, 0], "1": [1, 2]}, theirs).passed is passed


def test_parity_needs_a_common_variant():
    with pytest.raises(ValueError, match="in common"):
        parity("a", {"0": [1.0]}, {"1": [1.0]})


def test_break_even_counts_compilation():
    ours = summary([answer(10.0, 96), answer(1.0, 96)], 96)
    loop = summary([answer(2.0, 4), answer(2.0, 4)], 96)
    assert break_even(ours, loop) == 20
    assert break_even(ours | {"cold_seconds": 100.0}, loop) is None


def test_a_failed_parity_is_printed():
    ours = summary([answer(1.0, 96), answer(1.0, 96)], 96)
    row = dict(ours)
    row |= {"ratio": 1.0, "ratio_of_best": 1.0, "parity": {"difference": 0.5, "effect": 2.0}, "parity_passed": False}
    results = {
        "machine": "m",
        "size": "small",
        "rounds": 1,
        "methods": {},
        "failed": {},
        "busy_cores": {"a": 0.8},
        "workloads": {"a": {"avjax": ours, "p": row}},
    }
    text = markdown(results)
    assert "1 of 1 FAILED" in text
    assert "DISTURBED" in text and "a 0.8" in text
    assert "a, p: PARITY FAILED, difference 5.0e-01" in text


def test_the_strong_baseline_is_not_the_best_peer():
    found = {"avjax": {"seconds": 1.0}, "strong": {"seconds": 0.5}, "p": {"seconds": 9.0}, "q": {"seconds": 8.0}}
    assert best_peer(found | {"r": {"unsupported": "no component"}}) == "q"
    assert best_peer({"avjax": {"seconds": 1.0}, "r": {"unsupported": "no component"}}) is None
