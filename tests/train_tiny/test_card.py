"""Cards say what was measured, and weights are written as they were."""

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import avjax
from avjax.organism import evidence
from sweeps.train_tiny.__main__ import write_model
from sweeps.train_tiny.architecture import NUM_LAYERS
from sweeps.train_tiny.card import deep_window, probed_layer, write_card

COUNT = 40
SHARES = {
    "factual: picture": 0.975,
    "factual: sound": 0.95,
    "audio alone: sound": 0.9,
    "unshifted": 0.875,
    "base, no sound: picture": 0.925,
}
RULES = evidence.knockouts(NUM_LAYERS)
SOUND = {"clean": 0.1, "answer->video@2:6": 0.3, "answer->video@3:7": 0.8, "answer->audio": 0.025}


def row(share: float) -> list[float]:
    return [float(i < round(COUNT * share)) for i in range(COUNT)]


def measured(seed: int) -> dict[str, dict[str, list[float]]]:
    """Selection draws prefer other windows and layers than test draws do, which must not decide."""
    found = {}
    for split, better in (("selection", "answer->video@3:7"), ("test", "answer->video@4:8")):
        rows = {name: row(share - 0.025 * seed) for name, share in SHARES.items()}
        for rule in RULES:
            rows[f"conflict, {rule}: picture"] = row(0.6)
            rows[f"conflict, {rule}: suggested sound"] = row(0.7)
            rows[f"conflict, {rule}: true sound"] = row(1.0 if rule == better else SOUND.get(rule, 0.2))
        for layer in range(NUM_LAYERS):
            best = 3 if split == "selection" else 5
            rows[f"probe, layer {layer}"] = row(1.0 if layer == best else 0.85)
            rows[f"control, layer {layer}"] = row(0.05)
        found[split] = rows
    return found


@pytest.fixture(scope="module")
def written(model: avjax.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cards")
    for name in ("tiny-av", "tiny-vl"):
        write_model(model, model.network, out / name)
        write_card(out / name, name, {seed: measured(seed) for seed in (0, 1, 2)})
    return out


def test_choices_are_made_on_selection_draws():
    selection = measured(0)["selection"]
    assert deep_window(selection) == "answer->video@3:7"
    assert probed_layer(selection) == 3


def test_the_table_holds_the_test_draws(written: Path):
    card = (written / "tiny-av" / "README.md").read_text()
    cells = {
        c[0]: c[1:] for line in card.splitlines() if len(c := [x.strip() for x in line.strip("|").split("|")]) == 6
    }
    factual = cells["factual: picture named"]
    assert factual[0] == "0.975" and factual[2] == "0.950" and factual[3] == "0.925 - 0.975" and factual[4] == ">= .98"
    low, high = map(float, factual[1].split(" - "))
    assert low < 0.975 <= high
    assert cells["conflict, answer->video@3:7 cut: true sound"][0] == "0.800"
    assert cells["the same, above answer->video@0:4 cut"][0] == "0.600"
    assert cells["probe of the true sound under conflict, layer 3"][0] == "0.850"
    assert cells["its selectivity"][0] == "0.800"
    assert "This checkpoint is of seed 0" in card and f"On {COUNT} test clips" in card
    for rule in RULES:
        shares = [np.mean(measured(0)["test"][f"conflict, {rule}: {what}"]) for what in ("picture", "true sound")]
        assert f"| {rule} | {shares[0]:.3f} | {shares[1]:.3f} | 0.700 |" in card


def test_both_cards_tell_recipe_size_and_use(written: Path, model: avjax.Model):
    size = sum(leaf.size for leaf in jax.tree.leaves(model.network)) / 1e6
    for name in ("tiny-av", "tiny-vl"):
        card = (written / name / "README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\n")
        for expected in (f"{size:.2f} million", "| language |", "| vision |", f'avjax.load("{name}")'):
            assert expected in card
        assert ("| audio |" in card) == (name == "tiny-av")
        assert "Imposed" in card and "emergent" in card.lower()
        assert not re.search(r"\{\w*\}|nan", card)
    assert "0.925" in (written / "tiny-vl" / "README.md").read_text()


def test_weights_are_written_to_bfloat16_and_read_again(written: Path, model: avjax.Model):
    again = avjax.load(written / "tiny-av")
    assert json.loads((written / "tiny-av" / "config.json").read_text())["dtype"] == "bfloat16"
    for a, b in zip(jax.tree.leaves(model.network), jax.tree.leaves(again.network), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32), b)
