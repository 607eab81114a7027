"""Trains tiny-vl and tiny-av from seeds, measures them on test clips and writes their model cards.

Command: `python -m sweeps.train_tiny [--seeds 1,0,2] [--out tiny-models]`
Cost: about 8 minutes on two cores for the training clips, which take 3.2 GB of disk; 35 to 45 per seed on a core of its
own, and 3 to measure it. A run that was stopped goes on where it was.
Expected: the tables of the cards in avjax/assets/checkpoints, to the noise of training: processors round differently,
so that weights of another machine are others; the ranges over seeds say how much that matters.

The pair of the first seed is what avjax ships: OUT/tiny-vl and OUT/tiny-av, copied into avjax/assets/checkpoints.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax

import avjax
from avjax.checkpoint.builtin import BUILT_IN
from avjax.families.qwen2_5_omni import Qwen2_5Omni
from avjax.model import Model
from avjax.models.network import Network
from converters.convert import atomic_directory, copy_side_files
from converters.export import write_weights
from sweeps.train_tiny import table
from sweeps.train_tiny.architecture import untrained
from sweeps.train_tiny.card import write_card
from sweeps.train_tiny.data import Features, training_features
from sweeps.train_tiny.stages import AUDIO, STAGES, VISION, train

NUM_PICTURES, NUM_SOUNDS = 16384, 8192  # for training
NUM_TEST = 128
SAVED_AFTER = {VISION.name: "tiny-vl", AUDIO.name: "tiny-av"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,0,2", help="joined by commas; the first one's models are shipped")
    parser.add_argument("--out", type=Path, default=Path("tiny-models"), help="features, states, models and cards")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that make training clips")
    options = parser.parse_args()
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds: expected integers joined by commas, got {options.seeds!r}")
    if options.processes < 1 or min(options.seeds) < 0:
        parser.error(f"expected processes of at least 1 and seeds of at least 0, got {vars(options)}")
    return options


def train_pair(seed: int, features: Features, out: Path) -> dict[str, Path]:
    """The directories of a seed's `tiny-vl` and `tiny-av` in `out`, trained where they are not there yet.

    All that is kept is named by its recipe, so that nothing of another one is gone on from. A stage after a model that
    was written starts from it as it was written, rounded to bfloat16.
    """
    model = untrained(out / "untrained", seed)
    assert isinstance(model.network, Qwen2_5Omni)
    network, sizes = model.network, (seed, len(features.patches), len(features.mel))
    recipe = repr((sizes, model.config, sorted(model.processor.tokenizer.get_vocab().items())))
    digests: dict[str, str] = {}
    for stage in STAGES:
        recipe += repr(stage)
        digests[stage.name] = hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()
    files = {stage: out / f"{name}-{digests[stage]}" for stage, name in SAVED_AFTER.items()}
    first = 0
    for i, stage in enumerate(STAGES):
        if stage.name in files:
            if not files[stage.name].is_dir():
                break
            network, first = _network(files[stage.name]), i + 1
    for stage in STAGES[first:]:
        saved = out / f"{stage.name}-{digests[stage.name]}"
        network = train(stage, model, network, features, seed=seed, saved=saved, report=_say)
        if stage.name in files:
            write_model(model, network, files[stage.name], hears=stage.name == AUDIO.name)
            network = _network(files[stage.name])
    return {SAVED_AFTER[stage]: directory for stage, directory in files.items()}


def _network(directory: Path) -> Qwen2_5Omni:
    """In float32."""
    network = avjax.load(directory, dtype="float32").network
    assert isinstance(network, Qwen2_5Omni)
    return network


def write_model(model: Model, network: Network, directory: Path, *, hears: bool) -> None:
    """A Hugging Face directory, in bfloat16; it appears whole or not at all, and one that is there is kept.

    Args:
      hears: whether it was trained on sound; a model that was not refuses it.
    """
    if directory.is_dir():
        return
    with atomic_directory(directory, 2 * sum(leaf.size for leaf in jax.tree.leaves(network))) as building:
        copy_side_files(Path(model.host.source), building)
        write_weights(network, model.config, building, "bfloat16")
        if not hears:
            path = building / "preprocessor_config.json"
            options = json.loads(path.read_text())
            options["media_options"] = {**options.get("media_options", {}), "hears": False}
            path.write_text(json.dumps(options, indent=2) + "\n")


def results_of(pair: Mapping[str, Path]) -> dict[str, table.Row]:
    """What a pair does with test clips; kept beside tiny-av."""
    path = pair["tiny-av"].with_name(f"{pair['tiny-av'].name}-{NUM_TEST}.json")
    if not path.is_file():
        av, vl = (avjax.load(pair[name]) for name in BUILT_IN)
        _say(f"{path.stem}: measuring on {NUM_TEST} test clips")
        results = table.measure(av, vl, "test", NUM_TEST) | table.probe(av, "test", NUM_TEST)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(results) + "\n")
        partial.rename(path)
    return json.loads(path.read_text())


def main() -> None:
    options, started = arguments(), time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    avjax.cache_compilations(options.out / "compiled")
    features = training_features(options.out, NUM_PICTURES, NUM_SOUNDS, options.processes)
    pairs, results = {}, {}
    for seed in options.seeds:
        pairs[seed] = train_pair(seed, features, options.out / f"seed-{seed}")
        results[seed] = results_of(pairs[seed])
        _say(f"seed {seed}: trained and measured after {(time.monotonic() - started) / 60:.0f} minutes")
    for name, directory in pairs[options.seeds[0]].items():
        shutil.copytree(directory, options.out / name, dirs_exist_ok=True)
        write_card(options.out / name, name, results, (NUM_PICTURES, NUM_SOUNDS))
        _say(f"{options.out / name}: the model, with its card")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
