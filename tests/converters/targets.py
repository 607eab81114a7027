"""What must hold of a checkpoint that is refused, and of the target directory afterwards."""

from pathlib import Path

import pytest

import avjax
from avjax.checkpoint.huggingface import CheckpointError
from converters.convert import convert


def assert_nothing_was_written(target: Path) -> None:
    assert not target.exists()
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def refusal(source: Path, target: Path) -> str:
    """The message with which a conversion refuses, and with which a load does; they are the same."""
    with pytest.raises(CheckpointError) as on_disk:
        convert(source, target)
    assert_nothing_was_written(target)
    with pytest.raises(CheckpointError) as in_memory:
        avjax.load(source)
    assert str(in_memory.value) == str(on_disk.value)
    return str(on_disk.value)
