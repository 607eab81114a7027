"""Gate learning on tiny-av: the few heads whose cut of answer->video brings the true sound back under conflict.

Command: `python -m sweeps.gates [--clips 32] [--strength 0.1] [--out gates.nc]`
Cost: one to two minutes on two cores.
Expected: about a quarter of the 64 heads, most of them in layers 4:8; cut, most held-out clips get the true sound's
word and keep their picture; hardly any get it without cuts, a quarter or fewer with random sets of as many heads cut.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import learn_gates
from avjax.organism import behaviour
from avjax.organism.conflict import conflict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32, help="clips to learn from, and test clips to measure on")
    parser.add_argument("--strength", type=float, default=0.1, help="what a cut head costs, in nats")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="netCDF file for the dataset")
    options, model = parser.parse_args(), avjax.load("tiny-av")
    test = conflict(model, options.clips)
    train = conflict(model, options.clips, "train", first=options.clips)  # samples are named by number: none may recur
    dataset = learn_gates(
        model, train.prompts, train.metrics | test.metrics, held_out=test.prompts,
        strength=options.strength, steps=options.steps,
    )  # fmt: skip
    print(f"cut {int(dataset['cut'].sum())} of {dataset['cut'].size}: {dataset.attrs['edits']}")
    variants = {str(s): [r] * bool(r) for s, r in zip(dataset["set"].values[:6], dataset["edits"].values, strict=False)}
    by_clip = [(test.clips[n], behaviour.caption(model, p, variants)) for n, p in test.prompts.items()]
    for name in variants:
        scores = [behaviour.score(captions[name].text or "", clip) for clip, captions in by_clip]
        rates = {w: sum(getattr(s, w) for s in scores) / len(scores) for w in ("sound", "suggested", "picture")}
        print(f"{name:11} {float(dataset['change'].sel(set=name)):+.2f} nats; captions:", rates)
    if options.out is not None:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
