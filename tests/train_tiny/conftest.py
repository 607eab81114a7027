"""An untrained model, and a few features to draw from."""

import numpy as np
import pytest

import avjax
from avjax.organism import world
from sweeps.train_tiny import training
from sweeps.train_tiny.architecture import untrained
from sweeps.train_tiny.data import Features


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> avjax.Model:
    return untrained(tmp_path_factory.mktemp("untrained"), seed=0)


@pytest.fixture(scope="session")
def features(model: avjax.Model) -> Features:
    """Two of each kind."""
    made = [training.features(model, world.clip("train", i)) for i in range(2 * len(world.KINDS))]
    patches, mel = (np.stack(part) for part in zip(*made, strict=True))
    return Features(patches=patches, mel=mel)
