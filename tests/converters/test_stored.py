"""A converted checkpoint that is damaged: loading and exporting refuse it, naming all that is wrong."""

import json
import shutil
from pathlib import Path

import pytest

import avjax
from avjax.checkpoint.orbax import PARAMS
from converters.convert import convert
from converters.export import export
from tests.tiny_hf import TinyCheckpoint

KERNEL = "decoder.layers.attn.q.kernel"


@pytest.fixture(scope="module")
def converted(omni: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "orbax"
    convert(omni.directory, target)
    return target


@pytest.fixture
def damaged(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "orbax"))


def set_config(directory: Path, section: str, **changes: int) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw[section] |= changes
    path.write_text(json.dumps(raw))


def refusal(directory: Path) -> str:
    with pytest.raises(ValueError) as loading:
        avjax.load(directory)
    with pytest.raises(ValueError) as exporting:
        export(directory, directory.parent / "back")
    assert not (directory.parent / "back").exists()
    assert str(loading.value) == str(exporting.value)
    return str(loading.value)


def test_missing_chunks_and_parameters_are_named_together(damaged: Path):
    (damaged / PARAMS / KERNEL / "4.0.0.0").unlink()
    shutil.rmtree(damaged / PARAMS / "audio.proj.bias")
    shutil.rmtree(damaged / PARAMS / "decoder.final_norm.scale")
    shutil.copytree(damaged / PARAMS / "audio.proj.kernel", damaged / PARAMS / "audio.other.kernel")
    message = refusal(damaged)
    assert f"{KERNEL}: 1 of 8 chunks are missing, the first is 4.0.0.0" in message
    assert "audio.proj.bias: absent" in message
    assert "decoder.final_norm.scale: absent" in message
    assert "audio.other.kernel: this architecture has no such parameter" in message


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 7}, {"num_hidden_layers": 9}, {"intermediate_size": 64}])
def test_another_config(damaged: Path, changes: dict[str, int]):
    set_config(damaged, "text_config", **changes)
    message = refusal(damaged)
    assert "decoder.layers.mlp.up.kernel: expected shape" in message
    assert str(damaged) in message


def test_a_truncated_chunk(damaged: Path):
    chunk = damaged / PARAMS / KERNEL / "2.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be read"):
        avjax.load(damaged)


@pytest.mark.parametrize("name", ["config.json", "avjax.json", "generation_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(damaged: Path, name: str, content: str):
    (damaged / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        if name == "avjax.json":
            export(damaged, damaged.parent / "back")
        else:
            avjax.load(damaged)
