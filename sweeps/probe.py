"""Linear probes of the sound at audio tokens while the picture contradicts it.

Residuals of audio tokens of every layer are pooled and probed for the sound that is heard; the control task deals a
label to each pair of a sound and a half of the things, types that recur.

Command: `python -m sweeps.probe [--clips 320] [--out DIR]`
Cost: about a minute on two cores with 320 clips, nearly all of it for features.
Expected on tiny-av: in the middle layers nine in ten sounds and more are read, a quarter more than in the control,
though captions name the sound that belongs to the picture.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import probe_features, train_probes
from avjax.organism import world
from avjax.organism.behaviour import prompts_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--pooling", nargs="+", default=["mean", "last", "max"])
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e-3, 1e-2, 1e-1, 1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="directory for the probes and results.nc")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips = [world.clip("train", i, "counterfactual") for i in range(options.clips)]
    prompts = [prompt for _, prompt in prompts_of(model, clips)]
    features = probe_features(model, prompts, pooling=options.pooling)
    labels = [world.KINDS[clip.heard].sound for clip in clips if clip.heard is not None]
    pairs = [f"{clip.seen // 8} {clip.heard}" for clip in clips if clip.seen is not None]
    strengths, seeds = options.strengths, range(options.seeds)
    probes = train_probes(features, labels, control=pairs, strengths=strengths, seeds=seeds, validation_fraction=0.2)
    chosen = probes.results.sel(strength=probes.results.chosen)
    means = chosen[["accuracy", "balanced_accuracy", "auroc", "control_accuracy", "selectivity"]].mean("seed")
    print(f"sound at audio tokens under conflict; naming the commonest: {float(chosen.majority.mean()):.2f}")
    print(means.squeeze("site", drop=True).to_dataframe().round(2).to_string())
    if options.out:
        probes.save(options.out)
        probes.results.to_netcdf(options.out / "results.nc")


if __name__ == "__main__":
    main()
