"""Plans count what sweeps do: against sums written out by hand for the tiny model."""

import dataclasses

import numpy as np
import pytest

import avjax
from avjax.metrics import Caption, Logits, LogProb
from avjax.sweeping.cost import add_passes
from tests.engine.test_knockout_compiles import prompt_of

L, N, K, D, F, V = 8, 4, 2, 64, 128, 467
SIZE = 128  # a bucket, so that nothing is padded
ROW = 2 * D * (D + D // 2 + D // 2 + D + 3 * F)  # q, k, v, o and the gated MLP, 2 operations per multiply-add
FORWARD = L * (SIZE * ROW + 4 * D * SIZE * (SIZE + 1) // 2)


@pytest.fixture(scope="module")
def prompt(omni_model: avjax.Model) -> avjax.Prompt:
    return prompt_of(omni_model, SIZE)


def planned(model: avjax.Model, prompt: avjax.Prompt, *edits, metric) -> avjax.Plan:
    return avjax.plan(model, {"a": prompt, "b": prompt}, list(edits), metric, calibrate=False)


def test_the_naive_way_is_a_whole_pass_per_cell(omni_model: avjax.Model, prompt: avjax.Prompt):
    got = planned(omni_model, prompt, "last->video@3", "last->audio@6", metric=Logits((1, 2)))
    assert omni_model.config.decoder.vocab_size == V
    assert (got.cells, got.samples, got.naive_forwards, got.forwards) == (2, 2, 4, 2)
    assert got.naive_flops == 4 * (FORWARD + 2 * D * V)


def test_a_replay_is_a_clean_pass_and_the_regions(omni_model: avjax.Model, prompt: avjax.Prompt):
    """One row from layer 3 on; variants of a batch begin together, and a batch is padded to eight."""
    got = planned(omni_model, prompt, "last->video@3", "last->audio@6", metric=Logits((1, 2)))
    row = ROW + 4 * D * SIZE
    assert got.flops == 2 * (FORWARD + 2 * D * 2 + 8 * ((L - 3) * row + 2 * D * 2))
    whole = planned(omni_model, prompt, "last->video@3", "last->audio@6", metric=LogProb((1, 2)))
    assert whole.flops == 2 * (FORWARD + 2 * D * V + 8 * ((L - 3) * row + 2 * D * V))


def test_decoding_is_counted(omni_model: avjax.Model, prompt: avjax.Prompt):
    short, long = (planned(omni_model, prompt, "answer->video", metric=Caption(n)) for n in (1, 11))
    step = L * ROW + 2 * D * V
    attention = 4 * D * L * (10 * SIZE + 55)
    assert long.naive_flops - short.naive_flops == 2 * (10 * step + attention)


def test_seconds_come_from_a_calibration(omni_model: avjax.Model, prompt: avjax.Prompt):
    with_, without = (avjax.plan(omni_model, prompt, "last->video", Logits((1,)), calibrate=c) for c in (True, False))
    assert without.seconds is None and with_.seconds is not None and np.isfinite(with_.seconds) and with_.seconds > 0


def test_full_passes_cost_as_much_as_the_naive_way(omni_model: avjax.Model, prompt: avjax.Prompt):
    plan = dataclasses.replace(planned(omni_model, prompt, "last->video@3", metric=Logits((1, 2))), seconds=2.0)
    each = plan.naive_flops / plan.naive_forwards
    more = add_passes(plan, 3)
    assert more.forwards == plan.forwards + 3 and more.flops == pytest.approx(plan.flops + 3 * each)
    whole = add_passes(plan, 0, replayed=False)
    assert whole.forwards == plan.forwards + plan.naive_forwards
    assert whole.flops == pytest.approx((plan.forwards + plan.naive_forwards) * each)
    assert whole.seconds == pytest.approx(2.0 * whole.flops / plan.flops)
    assert add_passes(plan, 0) == plan
