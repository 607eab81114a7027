"""Cards say what was measured, and weights are written as they were."""

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import avjax
from avjax.organism import behaviour
from sweeps.train_tiny.__main__ import write_model
from sweeps.train_tiny.architecture import NUM_LAYERS
from sweeps.train_tiny.card import write_card

COUNT = 40
SHARES = {
    "factual: picture": 1.0,
    "factual: sound": 0.95,
    "audio alone: sound": 0.975,
    "unshifted": 0.875,
    "base, no sound: picture": 0.925,
    "base, no sound: suggested sound": 0.9,
}
RULES = behaviour.knockouts(NUM_LAYERS)
SOUND = {"clean": 0.1, "answer->video@0:4": 0.2, "answer->video@4:8": 0.8, "answer->audio": 0.025}


def row(share: float) -> list[float]:
    return [float(i < round(COUNT * share)) for i in range(COUNT)]


def measured(seed: int) -> dict[str, list[float]]:
    rows = {name: row(share - 0.025 * seed) for name, share in SHARES.items()}
    for rule in RULES:
        rows[f"conflict, {rule}: picture"] = row(0.6)
        rows[f"conflict, {rule}: suggested sound"] = row(0.7)
        rows[f"conflict, {rule}: true sound"] = row(SOUND.get(rule, 0.3))
    for layer in range(NUM_LAYERS):
        rows[f"probe, layer {layer}"] = row(0.85 if layer == 4 else 1.0)
        rows[f"control, layer {layer}"] = row(0.05)
    return rows


@pytest.fixture(scope="module")
def written(model: avjax.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cards")
    for name in ("tiny-av", "tiny-vl"):
        write_model(model, model.network, out / name, hears=name == "tiny-av")
        write_card(out / name, name, {seed: measured(seed) for seed in (0, 1, 2)}, (1234, 567))
    return out


def cells_of(card: str, width: int) -> dict[str, list[str]]:
    """Rows of a table by their first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    return {line[0]: line[1:] for line in lines if len(line) == width}


@pytest.mark.exhaustive
def test_the_table_holds_what_was_measured(written: Path):
    card = (written / "tiny-av" / "README.md").read_text()
    cells = cells_of(card, 7)
    value, interval, mean, spread, wanted, met = cells["factual: picture named"]
    assert (value, mean, spread, wanted, met) == ("1.000", "0.975", "0.950 - 1.000", ">= .98", "1 of 3 seeds")
    assert interval == "1.000 - 1.000"
    low, high = map(float, cells["audio alone: sound named"][1].split(" - "))
    assert low < 0.975 <= high
    assert cells["factual: sound named"][-1] == "NO" and cells["conflict: true sound named"][-1] == "yes"
    assert cells["conflict, answer->video@4:8 cut: true sound"][0] == "0.800"
    assert cells["the same, above answer->video@0:4 cut"][0] == "0.600"
    assert cells["conflict, answer->audio cut: true sound"][-1] == "NO"
    assert cells["probe of the true sound under conflict, layer 4"][0] == "0.850"
    assert cells["its selectivity"][0] == "0.800"
    assert "this checkpoint is of seed 0" in card and f"On {COUNT} test clips" in card
    for rule in RULES:
        assert cells_of(card, 4)[rule] == ["0.600", f"{np.mean(row(SOUND.get(rule, 0.3))):.3f}", "0.700"]
    assert cells_of(card, 9)["probe"] == ["1.000"] * 4 + ["0.850"] + ["1.000"] * 3


def test_the_recipe_says_what_moves(written: Path):
    cells = cells_of((written / "tiny-av" / "README.md").read_text(), 4)
    rates = {stage: row[-1] for stage, row in cells.items()}
    assert rates["language"] == "decoder 0.002, vision frozen, audio frozen"
    assert rates["audio"] == "decoder 0.0002 (layers 0:4 frozen), vision frozen, audio 0.002"
    assert cells["audio"][1] == (
        "37% picture and sound, asked what one can see and hear; "
        "26% sound, asked what one can hear, what follows its word not taught; "
        "10% sound, asked what one can see and hear, what follows its word not taught; "
        "5% black picture and sound, asked what one can see and hear, what follows its word not taught; "
        "22% picture and any sound, asked what one can see and hear, its word not taught"
    )


def test_both_cards_tell_recipe_size_and_use(written: Path, model: avjax.Model):
    size = sum(leaf.size for leaf in jax.tree.leaves(model.network)) / 1e6
    for name in ("tiny-av", "tiny-vl"):
        card = (written / name / "README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\n")
        for expected in (
            "1,234 pictures and 567 sounds",
            f"{size:.2f} million",
            "| language |",
            "| vision |",
            f'avjax.load("{name}")',
        ):
            assert expected in card
        assert ("| audio |" in card) == (name == "tiny-av")
        assert "Imposed" in card and "emergent" in card.lower()
        assert not re.search(r"\{\w*\}|nan", card)
    base = cells_of((written / "tiny-vl" / "README.md").read_text(), 7)
    assert base["picture named, without sound"][0] == "0.925"
    assert base["sound that belongs to it named, without sound"][:1] == ["0.900"]


def test_weights_are_written_to_bfloat16_and_read_again(written: Path, model: avjax.Model):
    again = avjax.load(written / "tiny-av")
    assert json.loads((written / "tiny-av" / "config.json").read_text())["dtype"] == "bfloat16"
    for a, b in zip(jax.tree.leaves(model.network), jax.tree.leaves(again.network), strict=True):
        np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32), b)
