"""`python -m sweeps.train_tiny` from end to end on a recipe of a few steps, and once more."""

import dataclasses
import sys
from pathlib import Path

import pytest

import avjax
from avjax.organism.world import PROMPT
from sweeps.train_tiny import __main__ as command
from sweeps.train_tiny import card, data, stages, table
from sweeps.train_tiny.training import READ

STEP = {"steps": 2, "tasks": {READ[0]: 1.0}, "batch": 4}
SHORT = tuple(dataclasses.replace(stage, **STEP) for stage in (stages.VISION, stages.AUDIO))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (command, stages, card):
        monkeypatch.setattr(module, "STAGES", SHORT)
        for name, stage in zip(("VISION", "AUDIO"), SHORT, strict=True):
            monkeypatch.setattr(module, name, stage, raising=False)
    for module, name, value in (
        (command, "NUM_PICTURES", 32),
        (command, "NUM_SOUNDS", 16),
        (command, "NUM_TEST", 2),
        (table, "PROBE_TRAIN", 16),
        (card, "PROBE_TRAIN", 16),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(avjax, "cache_compilations", lambda directory: None)


@pytest.mark.exhaustive
def test_it_trains_measures_and_writes_cards_once(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["train_tiny", "--seeds", "3,4", "--out", str(tmp_path), "--processes", "1"])
    command.main()
    told = capsys.readouterr().err
    assert "vision 2/2: loss" in told and "audio 2/2: loss" in told and "seed 4: trained and measured" in told
    text = (tmp_path / "tiny-av" / "README.md").read_text()
    assert "this checkpoint is of seed 3" in text and "On 2 test clips" in text and "32 pictures and 16 sounds" in text
    for name in ("tiny-av", "tiny-vl"):
        model = avjax.load(tmp_path / name)
        assert len(avjax.generate(model, model.prompt(PROMPT), max_new_tokens=2).tokens) > 0

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors") if "seed-" in str(path)}
    assert len(before) == 4
    command.main()
    assert "loss" not in capsys.readouterr().err, "what is there is not trained again"
    assert {path: path.stat().st_mtime_ns for path in before} == before

    monkeypatch.setattr(table, "measure", None)
    other = (SHORT[0], dataclasses.replace(SHORT[1], frozen_layers=2))
    for module in (command, stages, card):
        monkeypatch.setattr(module, "STAGES", other)
    with pytest.raises(TypeError):
        command.main()  # a new recipe is measured anew
    assert "audio 2/2" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_features_of_another_world_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data.training_features(tmp_path, 16, 16, 1)
    monkeypatch.setattr(data, "_sounds", lambda numbers: data._pictures(numbers)[:, 0])
    with pytest.raises(ValueError, match=r"sounds-16\.npy: expected features of the current clips.*remove the file"):
        data.training_features(tmp_path, 16, 16, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "a"], "integers joined by commas"),
        (["--seeds", "-1"], "at least 0"),
        (["--processes", "0"], "of at least 1"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["train_tiny", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err
