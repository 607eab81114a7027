"""Fixtures shared by all tests; jaxtyping annotations are checked while they run."""

import gc
import importlib
import os
import shutil
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

from tests.checked_rooms import CHECKED

# Plans for TPUs put shapes where arrays are declared; workers learn of it from the environment.
if "tpu" in sys.argv:
    os.environ["AVJAX_UNCHECKED"] = "1"
if "AVJAX_UNCHECKED" not in os.environ:
    install_import_hook(list(CHECKED), "tests.checked_rooms.check_types")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
import torch

import avjax
from tests.clip import write_clip
from tests.tiny_hf import TinyCheckpoint, write_checkpoint

torch.set_num_threads(1)
torch.set_grad_enabled(False)

# What one process compiled, the others need not, nor a module after `few_programs`: workers, and processes that tests
# start, inherit the environment.
FIRST = "AVJAX_TEST_COMPILED" not in os.environ
if FIRST:
    os.environ["AVJAX_TEST_COMPILED"] = tempfile.mkdtemp(prefix="avjax-compiled-")
COMPILED = os.environ["AVJAX_TEST_COMPILED"]
for option, value in {"compilation_cache_dir": COMPILED, "persistent_cache_min_compile_time_secs": 0.1}.items():
    os.environ[f"JAX_{option.upper()}"] = str(value)
    jax.config.update(f"jax_{option}", value)
os.environ["AVJAX_CACHE"] = "off"  # a test that wants caches of the user's makes them

# Compilation makes first examples slow, and the two cores are shared.
hypothesis.settings.register_profile(
    "avjax", deadline=None, max_examples=30, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("avjax")


def pytest_configure(config: pytest.Config) -> None:
    for checked in CHECKED:
        importlib.import_module(checked)  # a renamed room would go unchecked in silence


def pytest_unconfigure(config: pytest.Config) -> None:
    if FIRST:  # a directory that somebody gave stays
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def omni(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """A tiny random Qwen2.5-Omni thinker as a Hugging Face directory, beside the torch model itself."""
    return write_checkpoint(tmp_path_factory.mktemp("omni") / "checkpoint", "qwen2_5_omni")


@pytest.fixture(scope="session")
def vl(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """A tiny random Qwen2.5-VL as a Hugging Face directory, beside the torch model itself."""
    return write_checkpoint(tmp_path_factory.mktemp("vl") / "checkpoint", "qwen2_5_vl")


@pytest.fixture(scope="session")
def omni_model(omni: TinyCheckpoint) -> avjax.Model:
    return avjax.load(omni.directory)


@pytest.fixture(scope="session")
def vl_model(vl: TinyCheckpoint) -> avjax.Model:
    return avjax.load(vl.directory)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated mp4 of 4 s with picture and sound."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_clip(path)
    return path


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The directory of real clips, where the environment names one."""
    directory = os.environ.get("AVJAX_TEST_CLIPS")
    if not directory:
        pytest.skip("AVJAX_TEST_CLIPS names no directory of real clips")
    return Path(directory)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs before the process holds as many memory maps as Linux allows (65,530)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()
        gc.collect()
