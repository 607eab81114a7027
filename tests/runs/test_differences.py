"""What two runs differ in: in words, with both values, and never by digests."""

import copy
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from avjax.cli import app
from avjax.runs.differences import changed_samples, identity_differences, plain_differences
from avjax.runs.export import export
from avjax.runs.store import Store

HEX = "0123456789abcdef" * 2
ABOUT: dict[str, Any] = {
    "identity": {
        "checkpoint": HEX,
        "parameters": HEX,
        "settings": HEX,
        "family": "qwen2_5_omni",
        "dtype": "float32",
        "executor": "replay",
        "metrics": [{"metric": "avjax.metrics.LogProb", "answer": "siren", "name": "log_prob"}],
        "grid": HEX,
        "block_cells": 5,
    },
    "layout": {
        "samples": ["a"],
        "coordinates": {"key": ["audio", "video"], "layers": [*range(8)]},
        "notes": {},
        "cells": [f"answer->{key}@{layer}" for key in ("audio", "video") for layer in range(8)],
    },
    "provenance": {"checkpoint": "/models/one"},
}


def other(**changes: Any) -> dict[str, Any]:
    about = copy.deepcopy(ABOUT)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        about[section][name] = value
    return about


OTHER_HEX = HEX[::-1]
CASES = [
    ({"identity__dtype": "bfloat16"}, ['dtype (now "bfloat16", then "float32")']),
    ({"identity__block_cells": 7}, ["block_cells (now 7, then 5)"]),
    (
        {"identity__metrics": [{"metric": "avjax.metrics.LogProb", "answer": "rain", "name": "log_prob"}]},
        ["metrics (now LogProb(answer='rain'), then LogProb(answer='siren'))"],
    ),
    (
        {"identity__metrics": [*ABOUT["identity"]["metrics"], {"metric": "kl", "direction": "forward"}]},
        ["metrics (now LogProb(answer='siren'), kl(direction='forward'), then LogProb(answer='siren'))"],
    ),
    (
        {"identity__metrics": [{**ABOUT["identity"]["metrics"][0], "source": HEX}]},
        ["metrics (source code of LogProb(answer='siren') differs, now vs. then)"],
    ),
    (
        {"identity__grid": OTHER_HEX, "layout__coordinates": {"key": ["audio"], "layers": [*range(8)]}},
        ["grid (now key: audio, then key: audio, video)"],
    ),
    (
        {"identity__grid": OTHER_HEX, "layout__coordinates": {"variant": ["x"]}, "layout__cells": ["last->audio"]},
        ["grid (now 1 cell, first last->audio, then 16 cells over key (audio, video), layers (0 to 7), first "
         "answer->audio@0)"],
    ),
    (
        {"identity__grid": OTHER_HEX},
        ["grid (16 cells with the same names, but a source, vector or seed differs, now vs. then)"],
    ),
    (
        {"identity__checkpoint": OTHER_HEX, "identity__parameters": OTHER_HEX, "provenance__checkpoint": "/models/two"},
        ["checkpoint (now /models/two, then /models/one)"],
    ),
    ({"identity__checkpoint": OTHER_HEX}, ["checkpoint (files in /models/one differ, now vs. then)"]),
    (
        {"identity__parameters": OTHER_HEX},
        ["parameters (weights in memory differ, now vs. then, from the same checkpoint)"],
    ),
    (
        {"identity__capture": {"sites": ["z"], "at": "last"}},
        ['capture (now {"sites": ["z"], "at": "last"}, then null)'],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=lambda x: ",".join(x) if isinstance(x, dict) else "")
def test_words(changes: dict[str, Any], expected: list[str]):
    said = identity_differences(other(**changes), ABOUT)
    assert said == expected
    assert not re.search(r"[0-9a-f]{16}", " ".join(said))
    assert identity_differences(ABOUT, ABOUT) == []


def test_long_values_are_shortened_and_nested_keys_are_named():
    assert plain_differences({"a": {"b": "x" * 500, "c": 1}}, {"a": {"b": "y", "c": 1}}) == [
        f'a.b (now "{"x" * 56}..., then "y")'
    ]
    many = [f"clip-{i}" for i in range(1000)]
    assert changed_samples(many) == ["the clip or words of clip-0, clip-1, clip-2, clip-3, clip-4 and 995 more"]
    assert changed_samples([]) == []
    specs = [{"spec": {"prompt": words, "opening": "I hear"}} for words in ("Tell.", "Describe.")]
    assert changed_samples(["a"], *specs) == ['the clip or words of a (prompt: now "Tell.", then "Describe.")']


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.exhaustive
def test_an_unfinished_run_is_exported_on_request(spec: Path, tmp_path: Path):
    """How much of it there is, is said; a finished one needs no word."""
    store, few = spec.parent / "run", ("grid.layers.stride=4",)
    assert run("run", spec, *few, "--shard", "0/2").exit_code == 0
    done = len(pd.read_parquet(store / "cells"))
    assert 0 < done < 15
    refused = run("runs", "export", store, tmp_path / "t.csv")
    assert refused.exit_code == 2 and not (tmp_path / "t.csv").exists()
    assert f"expected a finished run, got {done} of 15 cells" in refused.output and "--partial" in refused.output
    with pytest.raises(ValueError, match=r"got \d+ of 15 cells; run it again .* partial=True"):
        export(Store(store), tmp_path / "t.nc")
    for name in ("t.csv", "t.parquet", "t.nc", "t.zarr"):
        made = run("runs", "export", store, tmp_path / name, "--partial")
        assert made.exit_code == 0 and f"of an unfinished run: {done} of 15 cells" in made.output
    assert len(pd.read_csv(tmp_path / "t.csv")) == done
    assert not xr.load_dataset(tmp_path / "t.nc").done.all()
    changed = run("run", spec, *few, "prompt=Tell me what you hear.")
    assert changed.exit_code == 2 and 'prompt: now "Tell me what you hear.", then "' in changed.output
    assert run("run", spec, *few).exit_code == 0
    whole = run("runs", "export", store, tmp_path / "whole.csv")
    assert whole.exit_code == 0 and ", of an unfinished run" not in whole.output
