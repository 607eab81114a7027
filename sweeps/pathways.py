"""Which pathway is enough: everything cut but one, against random keys; the heads that matter; what decides.

Command: `python -m sweeps.pathways [--clips 16] [--out pathways.nc]`
Cost: about a minute on two cores with 16 clips.
Expected on tiny-av, under conflict: with the picture alone the suggested sound leads by some 5 nats, with the sound's
tokens alone the true one; no head's cut from the picture makes up for more than a nat; the picture decides most clips.
"""

import argparse
from collections import Counter
from pathlib import Path

import avjax
from avjax.analysis import deciding_modality, edge_sufficiency, knockout_heads
from avjax.analysis.means import MARK, floor_line
from avjax.organism.conflict import conflict
from avjax.statistics import below_floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path, help="a netCDF file for the pathways' data")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips = conflict(model, options.clips)
    data = edge_sufficiency(model, clips.prompts, clips.metrics, pathways=("audio", "video", "text - answer"))
    print("logit of the sound that is heard minus that of the one that is suggested, nats")
    for pathway in data["pathway"].values:
        alone, random = (float(data[name].sel(pathway=pathway).mean()) for name in ("logit_diff", "logit_diff_random"))
        print(f"  {pathway:<14} alone {alone:+6.2f}, as many random keys {random:+6.2f}")
    heads = knockout_heads(model, clips.prompts, clips.metrics, keys=["video"])
    gain = (heads["logit_diff"] - heads["logit_diff_clean"]).mean("sample").isel(key=0).stack(place=("layers", "heads"))
    print("heads where cutting answer->video changes it most")
    below = below_floor(heads, "logit_diff")
    for place in gain.sortby(gain, ascending=False)["place"].values[:5]:
        mark = "" if below is None or not below.isel(key=0).sel(layers=place[0], heads=place[1]) else MARK
        print(f"  layer {place[0]}, head {place[1]}: {float(gain.sel(place=place)):+.2f}{mark}")
    if line := floor_line(below, heads.get("logit_diff_floor"), "nats"):
        print(line)
    decided = Counter(deciding_modality(model, clips.prompts, clips.suggested)["by"].values.tolist())
    print("clips that one modality decides:", {by or "none": count for by, count in sorted(decided.items())})
    if options.out:
        data.to_netcdf(options.out)


if __name__ == "__main__":
    main()
