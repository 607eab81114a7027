"""Base comparison: what tiny-vl, which never heard anything, would say in place of each token of tiny-av's captions.

Command: `python -m sweeps.compare [--clips 16] [--out compare.nc]`
Cost: about 15 s on two cores with 16 clips.
Expected under conflict: 80% and more of the sounds' words are the base's own first choice.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import compare_with_base, shift_shares
from avjax.organism import behaviour, world
from avjax.organism.world import KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--base", default="tiny-vl")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path, help="a netCDF file for the dataset")
    options = parser.parse_args()
    model, base = avjax.load(options.model), avjax.load(options.base)
    clips = [world.clip("test", i, "counterfactual") for i in range(options.clips)]
    heard = [prompt for _, prompt in behaviour.prompts_of(model, clips)]
    silent = [prompt for _, prompt in behaviour.prompts_of(base, clips, sound=False)]
    classes = {"sound": [kind.sound for kind in KINDS], "thing": [kind.thing for kind in KINDS]}
    dataset = compare_with_base(model, base, heard, silent, classes=classes, max_new_tokens=behaviour.MAX_NEW_TOKENS)
    shares = shift_shares(dataset)
    for name in shares["token_class"].values:
        of = shares.sel(token_class=name)
        divergence = float(dataset["kl_model_base"].where(dataset["token_class"] == name).mean())
        parts = ", ".join(f"{shift} {float(of['share'].sel(shift=shift)):.3f}" for shift in of["shift"].values)
        print(f"  {name:<6} {parts}; KL(model || base) {divergence:.3f} nats; {int(of['tokens'])} tokens")
    print(f"caveat: {dataset.attrs['caveat']}")
    if options.out:
        dataset.to_netcdf(options.out)


if __name__ == "__main__":
    main()
