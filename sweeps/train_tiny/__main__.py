"""Trains tiny-vl and tiny-av from seeds, measures them on test clips and writes their model cards.

Command: `python -m sweeps.train_tiny [--seeds 0,1,2] [--out tiny-models]`
Cost: about 20 minutes per seed on two cores, and 5 for the training clips; a run that was stopped goes on where it was.
Expected: the tables of the cards in avjax/assets/checkpoints, to the noise of training: processors round differently,
so that weights of another machine are others, and each number lies within its interval.

The pair of the first seed is what avjax ships: OUT/tiny-vl and OUT/tiny-av, copied into avjax/assets/checkpoints.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import avjax
from avjax.assets.builtin import BUILT_IN
from avjax.model import Model
from avjax.models.qwen2_5_omni import Qwen2_5Omni
from avjax.organism.world import Split
from avjax.parameters import Network
from converters.convert import copy_side_files
from converters.export import write_weights
from sweeps.train_tiny import table
from sweeps.train_tiny.architecture import untrained
from sweeps.train_tiny.card import write_card
from sweeps.train_tiny.data import Features, training_features
from sweeps.train_tiny.stages import AUDIO, STAGES, VISION, train

NUM_PICTURES, NUM_SOUNDS = 16384, 4096  # for training
NUM_SELECTION, NUM_TEST = 64, 192
SAVED_AFTER = {VISION.name: "tiny-vl", AUDIO.name: "tiny-av"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="joined by commas; the first one's models are shipped")
    parser.add_argument("--out", type=Path, default=Path("tiny-models"), help="features, states, models and cards")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that make training clips")
    options = parser.parse_args()
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds: expected integers joined by commas, got {options.seeds!r}")
    return options


def train_pair(seed: int, features: Features, out: Path) -> None:
    """Writes `tiny-vl` and `tiny-av` of a seed to `out`, unless they are there."""
    if all((out / name / "model.safetensors").is_file() for name in BUILT_IN):
        return
    model = untrained(out / "untrained", seed)
    assert isinstance(model.network, Qwen2_5Omni)
    network, recipe = model.network, f"{seed} {len(features.patches)} {len(features.mel)}"
    for stage in STAGES:
        recipe += repr(stage)
        # A state of another recipe must not be gone on from.
        digest = hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()
        saved = out / f"{stage.name}-{digest}"
        network = train(stage, model, network, features, seed=seed, saved=saved, report=_say)
        if stage.name in SAVED_AFTER:
            write_model(model, network, out / SAVED_AFTER[stage.name])


def write_model(model: Model, network: Network, directory: Path) -> None:
    """A Hugging Face directory, in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    copy_side_files(Path(model.host.source), directory)
    write_weights(network, model.config, directory, "bfloat16")


def results_of(out: Path) -> dict[str, Any]:
    """What the pair in `out` does with selection and test clips; kept beside it."""
    path = out / "measured.json"
    if not path.is_file():
        vl, av = avjax.load(out / "tiny-vl"), avjax.load(out / "tiny-av")
        counts: dict[Split, int] = {"selection": NUM_SELECTION, "test": NUM_TEST}
        probes = table.probe(av, counts)
        found = {split: table.measure(av, vl, split, count) | probes[split] for split, count in counts.items()}
        path.write_text(json.dumps(found) + "\n")
    return json.loads(path.read_text())


def main() -> None:
    options, started = arguments(), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    avjax.cache_compilations(options.out / "compiled")
    features = training_features(options.out, NUM_PICTURES, NUM_SOUNDS, options.processes)
    results = {}
    for seed in options.seeds:
        out = options.out / f"seed-{seed}"
        train_pair(seed, features, out)
        results[seed] = results_of(out)
        _say(f"seed {seed}: trained and measured after {(time.monotonic() - started) / 60:.0f} minutes")
    for name in BUILT_IN:
        shutil.copytree(options.out / f"seed-{options.seeds[0]}" / name, options.out / name, dirs_exist_ok=True)
        write_card(options.out / name, name, results)
        _say(f"{options.out / name}: {(options.out / name / 'README.md').stat().st_size} bytes of model card")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
