"""A specification on clips of the tiny world."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from avjax.organism import world

NUM_CLIPS = 3


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of clips under conflict, with their table."""
    directory = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(NUM_CLIPS):
        clip = world.clip("test", i, "counterfactual")
        assert clip.heard is not None and clip.seen is not None
        clip.write(directory / f"clip-{i}.mp4")
        sounds = {"sound": world.KINDS[clip.heard].sound, "suggested": world.KINDS[clip.seen].sound}
        rows.append({"video": f"clip-{i}.mp4", **sounds})
    with (directory / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return directory


@pytest.fixture
def given(clips: Path) -> dict[str, Any]:
    """A specification in plain values."""
    return {
        "model": "tiny-av",
        "prompt": world.PROMPT,
        "opening": "I hear",
        "clips": str(clips / "clips.csv"),
        "grid": {
            "edit": "knockout",
            "query": "answer",
            "key": {"axis": ["audio", "video"]},
            "layers": {"width": 4, "placement": "leading"},
        },
        "metrics": [{"metric": "logit_diff", "a": "{sound}", "b": "{suggested}"}],
        "block_cells": 5,
    }


@pytest.fixture
def spec(clips: Path, given: dict[str, Any], tmp_path: Path) -> Path:
    """The same as a file, its clips relative to it."""
    for file in clips.iterdir():
        (tmp_path / file.name).symlink_to(file)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**given, "clips": "clips.csv", "store": "run"}))
    return path
