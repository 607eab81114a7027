"""What must hold of a target directory after a refusal."""

from pathlib import Path


def assert_nothing_was_written(target: Path) -> None:
    assert not target.exists()
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
