"""Features of training clips, made once and kept on disk, and the batches drawn from them."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from avjax.model import Model
from avjax.organism import world
from avjax.organism.world import KINDS
from avjax.progress import Progress
from sweeps.train_tiny.architecture import untrained
from sweeps.train_tiny.training import Batch, Task, caption_tokens, heard_features, seen_features, taught_tokens

LONGEST = 10  # tokens of a caption, its stop token included
PER_JOB = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Pictures and sounds of training clips; number i is of kind i modulo the number of kinds.

    Attributes:
      patches: float16 [pictures, steps, patches, P].
      mel: float16 [sounds, frames, bins].
    """

    patches: np.ndarray
    mel: np.ndarray


def training_features(directory: Path, num_pictures: int, num_sounds: int, processes: int) -> Features:
    """Features of the first training clips, from `directory` when they are there."""
    return Features(
        patches=_kept(directory / f"pictures-{num_pictures}.npy", _pictures, num_pictures, processes),
        mel=_kept(directory / f"sounds-{num_sounds}.npy", _sounds, num_sounds, processes),
    )


def _kept(path: Path, make: Callable[[range], np.ndarray], count: int, processes: int) -> np.ndarray:
    if not path.is_file():
        jobs, parts = [range(i, min(i + PER_JOB, count)) for i in range(0, count, PER_JOB)], []
        with (
            Progress(path.stem, count, "clips") as progress,
            ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        ):
            for result in pool.map(make, jobs):
                parts.append(result)
                progress.advance(len(result))
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.concatenate(parts))
        partial.rename(path)
    array = np.load(path, mmap_mode="r")
    if not np.array_equal(array[: len(KINDS)], make(range(len(KINDS)))):
        raise ValueError(f"{path}: expected features of the current clips, got an older version's; remove the file")
    return array


def _pictures(numbers: range) -> np.ndarray:
    with TemporaryDirectory() as directory:
        model = untrained(Path(directory), seed=0)
        return np.stack([seen_features(model, world.picture("train", i)) for i in numbers]).astype(np.float16)


def _sounds(numbers: range) -> np.ndarray:
    with TemporaryDirectory() as directory:
        model = untrained(Path(directory), seed=0)
        features = [heard_features(model, world.sound("train", i, i % len(KINDS))) for i in numbers]
    return np.stack(features).astype(np.float16)


def draw(model: Model, features: Features, task: Task, size: int, rng: np.random.Generator) -> Batch:
    """Clips, each the picture and the sound of some clips of one kind, with captions that answer the question.

    Where nothing is shown, captions are of any thing and any sound: language does not know which belong together. Where
    the task has any sound, what is heard and what the caption says of it are two draws.
    """
    kinds = rng.integers(len(KINDS), size=size)
    belong = (task.picture or task.sound) and not task.any_sound
    others = kinds if belong else rng.integers(len(KINDS), size=size)
    seen, heard = (
        kinds + len(KINDS) * rng.integers(len(made) // len(KINDS), size=size)
        for made in (features.patches, features.mel)
    )
    if task.any_sound:
        heard = rng.integers(len(features.mel), size=size)
    asked = ["see" in task.question, "hear" in task.question]
    texts = [
        world.caption(int(kind) if asked[0] else None, int(other) if asked[1] else None)
        for kind, other in zip(kinds, others, strict=True)
    ]
    captions = np.stack([caption_tokens(model, text, LONGEST) for text in texts])
    return Batch(
        patches=_shown(model, features, task, seen) if task.picture else None,
        mel=jnp.asarray(features.mel[heard], jnp.float32) if task.sound else None,
        captions=jnp.asarray(captions),
        taught=jnp.asarray(taught_tokens(captions, task)),
    )


def _shown(model: Model, features: Features, task: Task, numbers: np.ndarray) -> jax.Array:
    if not task.black:
        return jnp.asarray(features.patches[numbers], jnp.float32)
    black = seen_features(model, np.zeros_like(world.picture("train", 0)))
    return jnp.asarray(np.broadcast_to(black, (len(numbers), *black.shape)))
