"""Sink tokens: outlier dimensions of the residual, the tokens that they mark, and which modality attends to those.

Command: `python -m sweeps.sinks [--clips 8] [--threshold T] [--out sinks.nc]`
Cost: about 20 s on two cores with 8 clips.
Expected on tiny-av: no dimension reaches the default threshold, so that it has no sinks; large pretrained models do.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import find_sinks
from avjax.organism.conflict import conflict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--threshold", type=float, help="of |RMSNorm(h)|; by default 25 at width 3,584")
    parser.add_argument("--out", type=Path, help="a netCDF file for the dataset")
    options = parser.parse_args()
    model = avjax.load(options.model)
    dataset = find_sinks(model, conflict(model, options.clips).prompts, options.threshold)
    peak = dataset["dimension_peak"].max("layer")
    largest = peak.sortby(peak, ascending=False)[:5]
    print(f"threshold {dataset.attrs['threshold']:.1f}; largest |RMSNorm(h)| by dimension:")
    print("  " + ", ".join(f"{int(d)}: {float(x):.1f}" for d, x in zip(largest["dimension"], largest, strict=True)))
    print(f"outlier dimensions: {dataset['dimension'].values[dataset['outlier'].values].tolist()}")
    sinks = dataset["sink_layers"] > 0
    for name in ("audio", "video", "text"):
        of = dataset["token_modality"] == name
        score = float(dataset["mds"].where(of & sinks).mean())
        print(f"  {name}: {int((sinks & of).sum())} sinks of {int(of.sum())} tokens; dominance score {score:+.2f}")
    if options.out:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
