"""What sweeps hold, by XLA's own account: little beside a clean pass, and no more than was planned."""

import functools
import weakref
from typing import Any

import jax
import numpy as np
import pytest

import avjax
from avjax.edits.edits import Edit
from avjax.engine import clean_passes as kept_passes
from avjax.engine import generate
from avjax.engine import session as sessions
from avjax.engine.reference import pad_inputs, prefill
from avjax.metrics import AttentionMass, Caption, Logits, Metric
from avjax.sweeping.prepare import prepare
from tests.engine.test_knockout_compiles import prompt_of

SIZE = 2048
HEADS = avjax.Knockout(query="last", key="video", layers=avjax.each_layer(), heads=avjax.each_head())


def held(analysis: Any) -> int:
    """Bytes of a program's results and temporaries."""
    return analysis.output_size_in_bytes + analysis.temp_size_in_bytes


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """XLA's memory analysis of every program that a sweep runs over a prompt, by name."""
    found: dict[str, list[Any]] = {}
    monkeypatch.setattr(kept_passes, "_by_host", weakref.WeakKeyDictionary())  # nothing is there of other tests

    def recorded(name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        flat = jax.jit(lambda leaves: function(*jax.tree.unflatten(tree, leaves), **kwargs))
        found.setdefault(name, []).append(flat.lower(leaves).compile().memory_analysis())
        return function(*args, **kwargs)

    for module, name in ((sessions, "clean_pass"), (sessions, "shared_keys"), (sessions, "replay")):
        monkeypatch.setattr(module, name, functools.partial(recorded, name, getattr(module, name)))
    monkeypatch.setattr(generate, "decode", functools.partial(recorded, "decode", generate.decode))
    return found


def peak(programs: dict[str, list[Any]]) -> int:
    """Each program on top of what those before it return."""
    clean, keys, replays = (programs[name] for name in ("clean_pass", "shared_keys", "replay"))
    kept = clean[0].output_size_in_bytes + keys[0].output_size_in_bytes
    decoded = programs.get("decode", [])
    # What a replay returns is kept while its variants decode.
    batches = [held(r) for r in replays] + [
        r.output_size_in_bytes + held(d) for r, d in zip(replays, decoded, strict=False)
    ]
    return max(held(clean[0]), clean[0].output_size_in_bytes + held(keys[0]), kept + max(batches))


@pytest.mark.exhaustive
def test_head_knockouts_at_2048_tokens(omni_model: avjax.Model, programs):
    prompt = prompt_of(omni_model, SIZE)
    inputs = pad_inputs(omni_model.encode(prompt), SIZE)
    clean = jax.jit(lambda d, i: prefill(d, i, None)[:2]).lower(omni_model.network.decoder, inputs).compile()
    avjax.sweep(omni_model, prompt, avjax.grid(HEADS), Logits((1, 2)), progress=False)
    # Parameters, which both hold, are left out: with them the ratio would flatter.
    assert peak(programs) < 1.5 * held(clean.memory_analysis())


VECTOR = np.ones(64, np.float32)


def sweep_of(name: str, size: int) -> tuple[Edit, Metric]:
    each, late, logits = avjax.each_layer(), f"[{size - 20}:]", Logits((1, 2))
    match name:
        case "one row":
            return HEADS, logits
        case "few rows":
            return avjax.Knockout(query=late, key="video", layers=each), logits
        case "masses":
            return HEADS, AttentionMass("audio", query=late)
        case "many rows":
            return avjax.Knockout(query="video", key="audio", layers=each), logits
        case "sources":
            return avjax.Ablate("video", "noise", site="z", layers=each), logits
        case "captions":
            return avjax.Knockout(query="answer", key="video", layers=avjax.windows(2)), Caption(40)
        case "captions after many rows":
            return avjax.Steer("audio", VECTOR, layers=each), Caption(40)
    raise ValueError(name)


SWEEPS = ("one row", "few rows", "masses", "many rows", "sources", "captions", "captions after many rows")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SWEEPS)
def test_a_batch_holds_no_more_than_the_budget_says(omni_model: avjax.Model, programs, name: str):
    edit, metric = sweep_of(name, 500)
    prompt, grid = prompt_of(omni_model, 500), avjax.grid(edit)
    planned = prepare(omni_model, prompt, grid, metric)
    avjax.sweep(omni_model, prompt, grid, metric, progress=False)
    (session,) = planned.sessions.values()
    budget = session.budget
    expected = budget.shared_bytes() + max(b.size * budget.variant_bytes(b.num_rows) for b in session.planned)
    sources = sum(leaf.nbytes for leaf in jax.tree.leaves(session.sources))
    assert peak(programs) + sources <= expected <= 20 * (peak(programs) + sources)
