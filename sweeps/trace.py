"""Causal tracing: the picture of a clip restored in a run with a black picture, by layer and token group.

Command: `python -m sweeps.trace [--clips 16] [--out trace.nc]`
Cost: about 20 s on two cores with 16 clips.
Expected on tiny-av, under conflict: restoring the picture's tokens gives the suggested sound its probability back in
early layers, restoring the last token in late ones, restoring the sound's tokens, or as many random other tokens as the
picture has, nowhere.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import avjax
from avjax.analysis import select_random, trace
from avjax.analysis.means import floor_line, row_of
from avjax.organism.conflict import conflict, opened
from avjax.statistics import below_floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path, help="a netCDF file for the dataset")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips = conflict(model, options.clips)
    blank = {name: dataclasses.replace(c, frames=np.zeros_like(c.frames)) for name, c in clips.clips.items()}
    groups = ["audio", "video", select_random(clips.prompts, "video", among="audio | text - last"), "last"]
    dataset = trace(model, clips.prompts, opened(model, blank), clips.suggested, clips.heard, groups=groups)
    print("probability that the suggested sound gains when a group is restored after a layer")
    means = dataset["ie_clean"].mean("sample").isel(site=0)
    below = below_floor(dataset, "ie_clean", ("sample", "site"))
    print("  layer            " + "".join(f"{layer:>7} " for layer in means["layers"].values))
    for group in means["group"].values:
        marks = None if below is None else below.sel(group=group)
        print(f"  {group:<17}{row_of(means.sel(group=group), marks, 3, 8)}")
    if line := floor_line(below, dataset.get("ie_clean_floor")):
        print(line)
    if options.out:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
