"""Fixtures of the converters' tests."""

from pathlib import Path

import pytest


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory that a conversion may write; its parent does not exist either."""
    return tmp_path / "out" / "converted"
