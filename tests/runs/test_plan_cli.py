"""`avjax plan` of a run's specification, without compiling."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.tpu import topology_plan

SPEC = {
    "model": "tiny-av",
    "prompt": "What?",
    "clips": [{"video": "clip.mp4", "labels": {"sound": "ticking"}}],
    "grid": {"edit": "knockout", "query": "answer", "key": "video"},
    "metrics": [{"metric": "log_prob", "answer": "{sound}"}],
}
HERE = ["-m", "tiny-av", "-p", "What?"]
THERE = ["--topology", "v5e:2x2", "--config", "qwen2.5-omni-3b", "--prompt-tokens", "300"]


class Seen(Exception):
    """What a plan was asked for."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The settings that `avjax plan` passes on, for a specification with some keys more."""

    def seen(*_: object, **settings: Any) -> None:
        raise Seen(settings)

    def ask(words: list[str], name: str = "spec.yaml", **more: Any) -> dict[str, Any]:
        written = (json.dumps if name.endswith("json") else yaml.safe_dump)({**SPEC, **more})
        (tmp_path / name).write_text(written)
        found = CliRunner().invoke(app, ["plan", "--grid", str(tmp_path / name), *words])
        assert isinstance(found.exception, Seen), found.output
        return found.exception.args[0]

    def load(path: str, *, dtype: str) -> SimpleNamespace:
        model = SimpleNamespace(dtype=dtype, prompt=lambda *_, **__: None)
        model.with_reader = lambda reader: model
        return model

    monkeypatch.setattr(avjax, "load", load)
    monkeypatch.setattr(avjax, "plan", lambda model, *_, **settings: seen(dtype=model.dtype, **settings))
    monkeypatch.setattr(topology_plan, "plan_topology", seen)
    return ask


@pytest.mark.parametrize("name", ["spec.yaml", "spec.json"])
def test_it_is_planned_as_it_would_run(asked: Any, name: str):
    assert asked(HERE, name) == {"dtype": "float32", "compat": None, "allow_noop": False, "memory_bytes": None}
    more = {"dtype": "bfloat16", "compat": "published", "allow_noop": True, "memory_bytes": 10**9}
    assert asked(HERE, name, **more) == more
    assert asked([*HERE, "--dtype", "float32", "--memory-bytes", "5"], name, **more) == {
        **more,
        "dtype": "float32",
        "memory_bytes": 5,
    }


def test_on_a_topology_too(asked: Any):
    assert asked(THERE)["dtype"] == "bfloat16"
    there = asked(THERE, dtype="float32", compat="published")
    assert there["dtype"] == "float32" and there["compat"] == "published"
    assert asked([*THERE, "--dtype", "bfloat16"], dtype="float32")["dtype"] == "bfloat16"
    more = {"allow_noop": True, "memory_bytes": 10**9, "opening": "I hear", "block_cells": 7}
    there = asked(THERE, **more, mesh={"data": -1, "model": 2})
    assert there["mesh"] == (2, 1, 2) and more.items() <= there.items()
    assert asked([*THERE, "--mesh", "1,1,4"], mesh={"model": 2})["mesh"] == (1, 1, 4)


def test_what_a_plan_leaves_out_is_said(asked: Any, tmp_path: Path):
    def said(**more: Any) -> str:
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, **more}))
        return CliRunner().invoke(app, ["plan", "--grid", str(tmp_path / "spec.yaml"), *THERE]).stderr

    assert "names no dtype, so it runs in float32; this plan is in bfloat16" in said()
    assert said(dtype="float32") == ""
    assert "one more forward pass per cell, which this plan leaves out" in said(
        dtype="float32", capture={"sites": ["z"]}
    )


def test_another_executor_is_not_planned(tmp_path: Path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "executor": "reference"}))
    refused = CliRunner().invoke(app, ["plan", "--grid", str(path), *HERE])
    assert refused.exit_code == 2 and "expected executor replay" in refused.output


def test_a_specification_is_planned_with_its_words(spec: Path):
    """Labels of its first clip, its opening and prompt."""
    words = ["plan", "-m", "tiny-av", "--video", str(spec.parent / "clip-0.mp4"), "--grid", str(spec), "--json"]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["cells"] == 16
