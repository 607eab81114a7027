"""Edits are data: rule sets of one shape share one executable."""

import contextlib
from collections.abc import Iterator

import chex
import jax
import jax.monitoring
import numpy as np
import pytest

import avjax
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower

MODALITIES = ("text", "audio", "video")
# Twenty sets of one or two rules; windows, heads, types and order all differ.
RULE_SETS = [
    f"{MODALITIES[i % 3]}->{MODALITIES[(i + i // 3) % 3]}@{i % 4}:{4 + i % 5}#h{i % 4}"
    + (f"; text->video@{i % 8}" if i % 2 else "; video->text")
    for i in range(20)
]


def prompt_of(model: avjax.Model, size: int = 90) -> avjax.Prompt:
    rng = np.random.default_rng(0)
    types = ["text", *rng.choice(MODALITIES, size - 1).tolist()]
    embeddings = rng.normal(size=(size, model.config.decoder.embed_dim))
    return model.prompt_from_embeddings(embeddings, np.broadcast_to(np.arange(size), (3, size)), types)


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Names of what XLA compiles meanwhile."""
    seen: list[str] = []

    def listener(event: str, seconds: float, **details: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(str(details.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_the_counter_counts():
    with count_compilations() as seen:
        jax.jit(lambda x: x * 3 + 1)(np.ones(17, np.float32))
    assert seen
    before = len(seen)
    jax.jit(lambda x: x * 5 + 1)(np.ones(17, np.float32))
    assert len(seen) == before, "it must stop counting"


def test_run_compiles_once_for_twenty_rule_sets(omni_model: avjax.Model):
    prompt = prompt_of(omni_model)
    first = avjax.run(omni_model, prompt, RULE_SETS[0], at="all", allow_noop=True)
    with count_compilations() as seen:
        logits = [avjax.run(omni_model, prompt, rule, at="all", allow_noop=True).logits for rule in RULE_SETS]
    assert seen == []
    np.testing.assert_array_equal(logits[0], first.logits)
    assert len({np.asarray(value).tobytes() for value in logits}) == 20, "no two sets may give the same logits"


@pytest.mark.exhaustive
def test_generation_compiles_once_for_twenty_rule_sets(omni_model: avjax.Model):
    prompt = prompt_of(omni_model)
    avjax.generate(omni_model, prompt, RULE_SETS[0], max_new_tokens=3, allow_noop=True, executor="reference")
    with count_compilations() as seen:
        for i, rule in enumerate(RULE_SETS):
            tokens = 2 + i % 3
            avjax.generate(omni_model, prompt, rule, max_new_tokens=tokens, allow_noop=True, executor="reference")
    assert seen == []


@pytest.mark.exhaustive
def test_a_replay_compiles_once_per_shape(omni_model: avjax.Model):
    """A region of 1, 8, 32 ... rows is a shape; layers, heads, factors and order are not."""
    prompt = prompt_of(omni_model)
    rules = [f"answer->{key}@{i}:{i + 2}#h{i % 4}" for i in range(6) for key in ("video", "audio")]
    avjax.generate(omni_model, prompt, "last->audio*3", max_new_tokens=3)
    with count_compilations() as seen:
        for rule in rules:
            avjax.generate(omni_model, prompt, rule, max_new_tokens=3)
    assert seen == []


def test_forward_is_traced_once(omni_model: avjax.Model):
    """For users who jit `avjax.forward` themselves, one partition of the prompt serves all sets."""
    prompt = prompt_of(omni_model)
    forward = jax.jit(chex.assert_max_traces(avjax.forward, n=1))
    variants = [avjax.parse_rules(rule) for rule in RULE_SETS]
    config, clean = omni_model.config.decoder, CleanRuns(omni_model)
    lowered = lower(prompt, config, variants, num_decoded=0, allow_noop=True, clean=clean)
    inputs = omni_model.encode(prompt, lowered.groups)
    for i in range(20):
        edit = lowered.intervention(i, len(prompt))
        forward(omni_model, inputs, edit)
