"""What a user sees of avjax before anything runs: names, version, and how models and prompts show themselves."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.organism import world


@pytest.fixture(scope="module")
def tiny_av() -> avjax.Model:
    return avjax.load("tiny-av")


def test_every_public_name_is_there():
    assert set(avjax.__all__) <= set(dir(avjax))
    for name in avjax.__all__:
        assert getattr(avjax, name) is not None, name
    assert avjax.__version__ == version("avjax")
    assert "attention_mass" in dir(avjax.analysis)


def test_the_command_says_its_version():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"avjax {version('avjax')}\n"


def test_types_are_marked():
    assert (Path(avjax.__file__).parent / "py.typed").exists()


def test_importing_loads_nothing_heavy():
    code = "import sys, avjax; print(sorted({'jax', 'numpy', 'transformers', 'xarray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_model_shows_itself_in_a_line(tiny_av: avjax.Model):
    text = repr(tiny_av)
    assert len(text) < 200 and "\n" not in text and str(tiny_av) == text
    for part in ("tiny-av", "qwen2_5_omni", "1.83 million", "float32", "8 layers", "hears and sees"):
        assert part in text
    assert "hears" not in repr(avjax.load("tiny-vl"))
    assert tiny_av._repr_html_().count("<tr>") == 5


def test_a_prompt_shows_itself_in_a_line(tiny_av: avjax.Model):
    samples = np.zeros(16_000, np.float32)
    prompt = tiny_av.prompt("What is <this>?", audio=(samples, 16_000))
    assert len(repr(prompt)) < 200 and "audio" in repr(prompt) and "\n" not in repr(prompt)
    assert prompt._repr_html_().count("<tr>") == len(prompt.counts()) + 1


def test_html_shows_a_file_s_name_as_text(tiny_av: avjax.Model, tmp_path: Path):
    path = tmp_path / "<b>clip.mp4"
    world.clip("test", 0, "factual").write(path)
    prompt = tiny_av.prompt("What is this?", video=path)
    assert "<b>" not in prompt._repr_html_() and "&lt;b&gt;clip.mp4" in prompt._repr_html_()
