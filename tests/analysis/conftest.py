"""tiny-av and clips under conflict, made once."""

from pathlib import Path
from typing import Any

import pytest

import avjax
from avjax.organism.conflict import Conflict, conflict

TEXT = "Describe what you see and hear."
SMALL: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 56 * 84}


@pytest.fixture(scope="session")
def prompt(omni_model: avjax.Model, clip: Path) -> avjax.Prompt:
    """A generated clip for a tiny random model."""
    return omni_model.prompt(TEXT, video=clip, audio="from_video", **SMALL)


@pytest.fixture(scope="session")
def muted(omni_model: avjax.Model, clip: Path) -> avjax.Prompt:
    """The same without its sound."""
    return omni_model.prompt(TEXT, video=clip, audio="from_video", corrupt=avjax.MuteAudio(), **SMALL)


@pytest.fixture(scope="session")
def tiny_av() -> avjax.Model:
    return avjax.load("tiny-av")


@pytest.fixture(scope="session")
def clashing(tiny_av: avjax.Model) -> Conflict:
    """16 clips under conflict: each kind is seen once."""
    return conflict(tiny_av, 16)
