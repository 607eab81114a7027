"""Dose-response curves: the choice of the sound's word when the answer attends less or more to the picture or sound.

Command: `python -m sweeps.scale [--clips 16] [--what attention|value|embed] [--width W] [--out scale.nc]`
Cost: about 15 s on two cores with 16 clips.
Expected on tiny-av, under conflict: the more the picture is attended to, the less the sound that is heard is chosen;
the more the sound is, the more.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import scale_modalities
from avjax.analysis.means import floor_line, row_of
from avjax.organism.conflict import conflict
from avjax.statistics import below_floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--what", default="attention", choices=("attention", "value", "embed"))
    parser.add_argument("--width", type=int, help="layers in a window; by default all layers are scaled")
    parser.add_argument("--out", type=Path, help="a netCDF file for the dataset")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips = conflict(model, options.clips)
    dataset = scale_modalities(model, clips.prompts, clips.metrics, what=options.what, width=options.width)
    print("logit of the sound that is heard minus that of the one that is suggested, nats")
    means = dataset["logit_diff"].mean("sample")
    below = below_floor(dataset, "logit_diff")
    others = [d for d in means.dims if d != "factor"]
    rows = means.stack(row=others).transpose("row", "factor")
    marks = None if below is None else below.stack(row=others).transpose("row", "factor")
    print("  factor  " + "".join(f"{factor:>7g} " for factor in means["factor"].values))
    for i, name in enumerate(rows["row"].values):
        label = "@".join(map(str, name if isinstance(name, tuple) else [name]))
        print(f"  {label:<8}{row_of(rows[i], None if marks is None else marks[i], 2, 8)}")
    if line := floor_line(below, dataset.get("logit_diff_floor"), "nats"):
        print(line)
    if options.out:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
