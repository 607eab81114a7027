"""The recipe: language, then vision, then audio; each stage resumes from its last saved step."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from avjax.families.qwen2_5_omni import Qwen2_5Omni
from avjax.model import Model
from avjax.organism import world
from avjax.progress import Progress
from sweeps.train_tiny.data import Features, draw
from sweeps.train_tiny.states import States
from sweeps.train_tiny.training import (
    DESCRIBE,
    GUESS,
    HARK,
    HEAR_OVER_BLACK,
    LISTEN,
    LOOK,
    LOOK_PAST,
    READ,
    Task,
    layout,
    optimiser,
    start,
    stepper,
)

SAVED_EVERY = 50  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
      tasks: the share of steps that are of each task.
      rates: peak learning rates by the start of a parameter's path; 0 freezes.
      frozen_layers: how many of the decoder's first layers stay as they are.
    """

    name: str
    steps: int
    tasks: Mapping[Task, float]
    rates: Mapping[str, float]
    frozen_layers: int = 0
    batch: int = 32


FROZEN = 4  # decoder layers that only the first stage trains
FULL, GENTLE = 2e-3, 2e-4
LANGUAGE = Stage(
    name="language",
    steps=150,
    tasks=dict(zip(READ, (0.5, 0.25, 0.25), strict=True)),
    rates={"decoder": FULL, "vision": 0.0, "audio": 0.0},
)
SIGHT = Stage(
    name="sight",
    steps=750,
    tasks={LOOK: 1.0},
    rates={"decoder": FULL, "vision": FULL, "audio": 0.0},
    frozen_layers=FROZEN,
)
VISION = Stage(
    name="vision",
    steps=450,
    tasks={GUESS: 0.7, LOOK: 0.3},
    rates={"decoder": FULL / 2, "vision": FULL / 4, "audio": 0.0},
    frozen_layers=FROZEN,
)
AUDIO = Stage(
    name="audio",
    steps=600,
    tasks={DESCRIBE: 0.37, LISTEN: 0.26, HARK: 0.1, HEAR_OVER_BLACK: 0.05, LOOK_PAST: 0.22},
    rates={"decoder": GENTLE, "vision": 0.0, "audio": FULL},
    frozen_layers=FROZEN,
)
STAGES = (LANGUAGE, SIGHT, VISION, AUDIO)
Report = Callable[[str], None]


def train(
    stage: Stage, model: Model, network: Qwen2_5Omni, features: Features, seed: int, saved: Path, report: Report
) -> Qwen2_5Omni:
    """The network after a stage.

    A step's batch is a function of seed, stage and step, so that a run that was stopped ends as one that was not.

    Args:
      saved: a directory for the stage's state.
      report: told of the loss from time to time.
    """
    network = jax.tree.map(jnp.array, network)  # steps take their arguments' memory
    places = {task: layout(model, world.clip("train", 0), task) for task in stage.tasks}
    transformation = optimiser(network, stage.rates, stage.steps, frozen_layers=stage.frozen_layers)
    steps = {task: stepper(place, transformation) for task, place in places.items()}
    with States(saved) as states, Progress(stage.name, stage.steps, "steps") as progress:
        done, (network, state) = states.latest((network, start(network, transformation)))
        progress.advance(done)
        for step in range(done, stage.steps):
            rng = np.random.default_rng([seed, STAGES.index(stage), step])
            task = list(stage.tasks)[rng.choice(len(stage.tasks), p=list(stage.tasks.values()))]
            batch = draw(model, features, task, stage.batch, rng)
            network, state, loss, hits = steps[task](network, state, batch)
            progress.advance(1)
            if (step + 1) % SAVED_EVERY == 0 or step + 1 == stage.steps:
                report(f"{stage.name} {step + 1}/{stage.steps}: loss {loss:.4f} nats, {hits:.3f} of tokens predicted")
                states.save(step + 1, (network, state))
    return network
