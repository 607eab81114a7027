"""The paper's knockout figure: windows of layers in which the answer cannot attend to the sound, or to the picture.

Command: `python -m sweeps.knockout [--clips 16] [--width 4] [--adjust] [--out knockout.nc]`
Cost: about 15 s on two cores with 16 clips.
Expected on tiny-av, under conflict: cutting answer->video in deep windows moves the choice of the sound's word by more
than 3 nats towards the sound that is heard, in windows of early layers by much less; cutting answer->audio does not.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import knockout_windows
from avjax.analysis.means import MARK, floor_line
from avjax.organism.conflict import conflict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--width", type=int, default=4, help="layers in a window")
    parser.add_argument("--adjust", action="store_true", help="p-values too, adjusted for the number of windows")
    parser.add_argument("--out", type=Path, help="a netCDF file for the dataset")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips = conflict(model, options.clips)
    dataset = knockout_windows(model, clips.prompts, clips.metrics, width=options.width, placement="leading")
    print("logit of the sound that is heard minus that of the one that is suggested, change by the cut, nats")
    names = [name for name in ("logit_diff", "logit_diff_clean", "logit_diff_floor") if name in dataset]
    change = avjax.bootstrap(dataset[names], adjust="benjamini-hochberg" if options.adjust else None)
    below = change.get("logit_diff_below_floor")
    for key in change["key"].values:
        for window, layer in zip(dataset["layers_window"].values, change["layers"].values, strict=True):
            at = change.sel(key=key, layers=layer)
            low, high = float(at["logit_diff_change_low"]), float(at["logit_diff_change_high"])
            line = f"  answer->{key}@{window}  {float(at['logit_diff_change']):+6.2f}  [{low:+.2f}, {high:+.2f}]"
            line += f"  p {float(at['logit_diff_change_p']):.2g}" if options.adjust else ""
            print(line + (f" {MARK}" if below is not None and bool(below.sel(key=key, layers=layer)) else ""))
    print("; ".join(change.attrs[name] for name in ("interval", "adjust", "no_interval") if name in change.attrs))
    if line := floor_line(below, change.get("logit_diff_floor"), "nats"):
        print(line)
    if options.out:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
