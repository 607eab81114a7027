"""Gate learning: planted problems whose answer is known, what is refused, and tiny-av's headline on held-out clips."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import avjax
from avjax import metrics
from avjax.analysis import gate_edits, gate_training, learn_gates
from avjax.organism import behaviour, world

D = 64
TYPES = ["text"] * 4 + ["audio"] * 10 + ["video"] * 10 + ["text"] * 8
LAYER, HEAD = 5, 2  # the head that is planted
QUICK: dict[str, Any] = {"steps": 60, "learning_rate": 0.2, "batch": 4, "num_random": 3, "progress": False}


def drawn(model: avjax.Model, seed: int) -> avjax.Prompt:
    rng = np.random.default_rng(seed)
    return model.prompt_from_embeddings(rng.normal(size=(len(TYPES), D)), np.tile(np.arange(len(TYPES)), (3, 1)), TYPES)


@pytest.fixture(scope="module")
def planted(omni_model) -> avjax.Model:
    """A model in which one head alone writes what it reads: edges of all others do nothing."""

    def only_one_head(path: Any, leaf: jax.Array) -> jax.Array:
        if "decoder.layers.attn.o.kernel" not in jax.tree_util.keystr(path, simple=True, separator="."):
            return leaf
        keep = np.zeros(leaf.shape[:2])
        keep[LAYER, HEAD] = 1
        return leaf * keep[:, :, None, None]

    made = jax.tree_util.tree_map_with_path(only_one_head, omni_model)
    changed = [a.shape for a, b in zip(*map(jax.tree.leaves, (made, omni_model)), strict=True) if a is not b]
    assert changed == [(8, 4, 16, 64)]
    return made


@pytest.fixture(scope="module")
def prompts(omni_model) -> dict[str, avjax.Prompt]:
    return {f"s{seed}": drawn(omni_model, seed) for seed in range(10)}


@pytest.fixture(scope="module")
def wanted(planted, prompts) -> dict[str, metrics.Metric]:
    """By sample, the difference of two logits that the planted head's cut raises most."""
    found: dict[str, metrics.Metric] = {}
    for name, prompt in prompts.items():
        clean, cut = (
            np.asarray(avjax.run(planted, prompt, *edits).logits[0]) for edits in ([], [f"last->video@{LAYER}#h{HEAD}"])
        )
        assert np.abs(cut - clean).max() > 0.02
        others = [layer for layer in range(8) if layer != LAYER]
        rest = avjax.Knockout(query="last", key="video", layers=others)
        np.testing.assert_allclose(avjax.run(planted, prompt, rest).logits[0], clean, atol=1e-5)
        found[name] = metrics.LogitDiff([int(np.argmax(cut - clean))], [int(np.argmin(cut - clean))])
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("penalty", ["l0", "l1"])
def test_the_planted_head_is_found_and_nothing_else(planted, prompts, wanted, penalty):
    found = learn_gates(planted, prompts, wanted, held_out=0.5, query="last", penalty=penalty, strength=0.01, **QUICK)
    cut = np.zeros((8, 4), bool)
    cut[LAYER, HEAD] = True
    np.testing.assert_array_equal(found["cut"], cut)
    assert gate_edits(found) == [avjax.Knockout(query="last", key="video", layers=[LAYER], heads=[HEAD])]
    assert found.attrs["edits"] == f"last->video@{LAYER}#h{HEAD}"
    assert found["num_cut"].values.tolist() == [0, 1, 32, 1, 1, 1]
    held = found["held_out"]
    np.testing.assert_allclose(held.sel(set="found"), held.sel(set="everything"), atol=1e-4)
    np.testing.assert_allclose(held.sel(set="nothing"), found["held_out_clean"], atol=1e-6)
    assert (found["change_low"].sel(set="found") > 0) and (found["found_minus_random_low"] > 0)
    assert found["train_objective"][-10:].mean() > found["train_objective"][:10].mean()


@pytest.mark.exhaustive
def test_layers_as_gates_and_a_price_that_nothing_is_worth(planted, prompts, wanted):
    common = {"held_out": 0.5, "query": "last", **QUICK}
    found = learn_gates(
        planted, prompts, wanted, per="layer", strength=0.01, layers=range(3, 8), heads=[1, 2], **common
    )
    assert found["cut"].dims == ("layer",)
    np.testing.assert_array_equal(found["cut"], found["layer"] == LAYER)
    assert gate_edits(found) == [avjax.Knockout(query="last", key="video", layers=[LAYER], heads=[1, 2])]
    dear = learn_gates(planted, prompts, wanted, strength=100.0, **common)
    assert gate_edits(dear) == [] and dear.attrs["edits"] == "" and not dear["cut"].any()
    np.testing.assert_allclose(dear["change"].sel(set="found"), 0, atol=1e-6)


@pytest.mark.exhaustive
def test_held_out_values_are_those_of_runs_and_statistics_of_numpy(planted, prompts, wanted):
    train = {name: prompts[name] for name in ("s0", "s1", "s2")}
    test = {name: prompts[name] for name in ("s3", "s4", "s5")}
    found = learn_gates(planted, train, wanted, held_out=test, query="last", strength=0.01, **QUICK)
    assert found["sample"].values.tolist() == list(test)
    for name, prompt in test.items():
        a, b = wanted[name].a[0], wanted[name].b[0]
        for label, rules in zip(found["set"].values, found["edits"].values, strict=True):
            logits = np.asarray(avjax.run(planted, prompt, *([rules] if rules else [])).logits[0])
            assert found["held_out"].sel(set=label, sample=name).item() == pytest.approx(
                logits[a] - logits[b], abs=1e-4
            )
    change = found["held_out"] - found["held_out_clean"]
    np.testing.assert_allclose(found["change"], change.mean("sample"), atol=1e-9)
    random = found["held_out"][3:].mean("set")
    gained = (found["held_out"].sel(set="found") - random).mean().item()
    assert found["found_minus_random"].item() == pytest.approx(gained)


@pytest.mark.exhaustive
def test_a_seed_decides_everything_and_another_draws_anew(planted, prompts, wanted):
    def learned(seed: int):
        options = QUICK | {"steps": 8}
        return learn_gates(planted, prompts, wanted, held_out=0.5, query="last", strength=0.01, seed=seed, **options)

    one, again, other = learned(0), learned(0), learned(1)
    assert one.identical(again)
    assert not np.array_equal(one["train"], other["train"])


@pytest.mark.exhaustive
def test_one_program_for_all_steps_and_samples(planted, prompts, wanted):
    before = gate_training._step._cache_size()
    options = QUICK | {"steps": 12, "batch": 3}
    learn_gates(planted, prompts, wanted, held_out=0.5, query="last", strength=0.01, **options)
    assert gate_training._step._cache_size() == before + 1


def test_a_draw_of_gates_is_hard_concrete():
    """Its mass at 0 against the closed form that the penalty counts."""
    log_alpha = np.linspace(-3, 3, 5).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.vmap(lambda key: gate_training._noisy(log_alpha, key))(keys))
    assert drawn.min() == 0 and drawn.max() == 1
    expected = 1 / (1 + np.exp(-(log_alpha - 2 / 3 * np.log(0.1 / 1.1))))
    np.testing.assert_allclose((drawn > 0).mean(0), expected, atol=0.02)
    total = float(gate_training._expected_cuts(log_alpha, "l0"))
    assert total == pytest.approx(expected.sum(), rel=1e-5)


ANSWER = metrics.LogProb([7])
BAD = [
    ({"strength": -1.0}, "strength: expected a number of at least 0, in the metric's units, got -1.0"),
    ({"strength": float("nan")}, "strength: expected a number of at least 0"),
    ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
    ({"steps": 0}, "steps: expected a whole number of at least 1, got 0"),
    ({"batch": 2.5}, "batch: expected a whole number of at least 1, got 2.5"),
    ({"num_random": 0}, "num_random: expected a whole number of at least 1"),
    ({"penalty": "l2"}, "penalty: expected l0 or l1, got 'l2'"),
    ({"per": "model"}, "per: expected head or layer, got 'model'"),
    ({"held_out": []}, "held_out: expected at least 2 prompts, got none"),
    ({"held_out": 0.1}, "expected a share between 0 and 1 that leaves at least 2 of 4 prompts"),
    ({"held_out": 1.0}, "expected a share between 0 and 1"),
    ({"prompts": {}}, "prompts: expected at least one, got none"),
    ({"key": "image"}, "key 'image': the prompt of sample 's1' has no such tokens"),
    ({"query": "[0:3]"}, "has no such edge, since no query comes at or after a key"),
    ({"query": "generated"}, "query 'generated': the prompt of sample 's1' has no such tokens"),
    ({"layers": [8]}, "expected layers within 0:8"),
    ({"heads": [4]}, "expected heads within 0:4"),
    ({"metric": metrics.Rank([7])}, "its gradient is zero"),
    ({"metric": metrics.TopK(2)}, "expected one number"),
    ({"metric": {"s0": ANSWER}}, "metric: expected one for each sample, got none for 's1'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_learned_is_refused_before_anything_compiles(
    omni_model, prompts, monkeypatch: pytest.MonkeyPatch, changes, message: str
):
    monkeypatch.setattr(gate_training, "_step", None)
    monkeypatch.setattr(gate_training, "prepared", None)
    few = {name: prompts[name] for name in ("s0", "s1", "s2", "s3")}
    given = {"prompts": few, "metric": ANSWER, "held_out": 0.5, "query": "last"} | changes
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        learn_gates(omni_model, given.pop("prompts"), given.pop("metric"), **given)


def test_held_out_prompts_are_others(omni_model, prompts):
    few = {name: prompts[name] for name in ("s0", "s1")}
    with pytest.raises(ValueError, match="held_out: sample 't' is the same prompt as 's1' in prompts"):
        learn_gates(omni_model, few, ANSWER, held_out={"r": prompts["s2"], "t": prompts["s1"]}, query="last")
    by_sample = dict.fromkeys(prompts, ANSWER)
    with pytest.raises(ValueError, match="held_out: sample 's1' is among prompts too"):
        learn_gates(omni_model, few, by_sample, held_out={"s1": prompts["s2"], "s3": prompts["s3"]}, query="last")
    with pytest.raises(ValueError, match="expected at least 2 prompts, got 1"):
        learn_gates(omni_model, few, ANSWER, held_out=prompts["s2"], query="last")
    bad = dataclasses.replace(prompts["s2"], embeddings=np.full_like(prompts["s2"].embeddings, np.inf))
    with pytest.raises(ValueError, match="got a NaN or infinity in sample 'bad'"):
        learn_gates(omni_model, few, ANSWER, held_out={"bad": bad, "s3": prompts["s3"]}, query="last")


@pytest.mark.exhaustive
def test_a_few_heads_hold_the_picture_against_the_sound():
    """Learned from training clips under conflict, measured on test clips by what the model would say next."""
    av = avjax.load("tiny-av")
    clips: dict[str, world.Clip] = {}
    for split in ("train", "test"):
        clips |= {f"{split} {i}": world.clip(split, i, "counterfactual") for i in range(len(world.KINDS))}
    opening, made = av.encode_text(behaviour.OPENING), behaviour.prompts_of(av, clips.values())
    prompts = {name: prompt.continued(opening) for name, (_, prompt) in zip(clips, made, strict=True)}

    def word(kind: int | None) -> tuple[int, ...]:
        assert kind is not None
        return av.encode_text(f" {world.KINDS[kind].sound}")

    by_sample = {name: metrics.LogitDiff(word(clip.heard), word(clip.seen)) for name, clip in clips.items()}
    train, test = ({n: p for n, p in prompts.items() if n.startswith(split)} for split in ("train", "test"))
    options = {"strength": 0.1, "steps": 80, "batch": 4, "num_random": 6, "progress": False}
    found = learn_gates(av, train, by_sample, held_out=test, **options)
    cut = found["cut"]
    assert 2 <= cut.sum() <= cut.size / 3
    assert cut.sel(layer=slice(4, 7)).sum() > 2 * cut.sel(layer=slice(0, 3)).sum()
    assert found["found_minus_random_low"] > 1.0
    true_wins = (found["held_out"] > 0).mean("sample")
    random = true_wins[3:].mean()
    assert true_wins.sel(set="found") > random + 0.2 and random < 0.4
    assert true_wins.sel(set="found") > true_wins.sel(set="nothing") + 0.2
