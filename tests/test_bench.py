"""The benchmark's arithmetic: samples stand for wholes, and a disagreement cannot pass for parity."""

import pytest

from sweeps.bench.checkpoint import SIZES
from sweeps.bench.comparison import break_even, parity, summary, whole_seconds
from sweeps.bench.table import markdown
from sweeps.bench.workloads import document


def answer(seconds: float, variants: int, fixed: float = 0.0) -> dict:
    return {"seconds": seconds, "fixed_seconds": fixed, "variants": variants, "peak_bytes": 0}


@pytest.mark.parametrize(("size", "counts"), [("small", (96, 36, 96, 48, 96)), ("large", (384, 36, 192, 96, 156))])
def test_workloads_have_the_stated_variants(size, counts):
    content = document(SIZES[size])
    assert tuple(len(content["workloads"][name]) for name in "abcde") == counts
    assert len(content["ids"]) == len(content["kinds"]) == SIZES[size].num_tokens
    assert content["kinds"].count("audio") == SIZES[size].num_audio


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
    row = summary([answer(1.0, 96), answer(1.0, 96)], 96)
    row |= {"ratio": 1.0, "ratio_of_best": 1.0, "parity": {"difference": 0.5}, "parity_passed": False}
    results = {
        "machine": "m",
        "size": "small",
        "rounds": 1,
        "methods": {},
        "failed": {},
        "workloads": {"a": {"p": row}},
    }
    assert "FAILED" in markdown(results)
