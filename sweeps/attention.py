"""Where the token before the sound's word looks: attention to sound and picture, layer by layer.

Command: `python -m sweeps.attention [--clips 32] [--clip FILE ...] [--out attention.nc]`
Cost: one pass per clip; under a minute for 32 clips on two cores.
Expected on tiny-av, under conflict: in the deep half of the layers a video key gets over 3 times the attention of an
audio key, in the other half under twice.
"""

import argparse
from pathlib import Path

import avjax
from avjax.analysis import attention_mass
from avjax.organism import behaviour, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av", help="a checkpoint that avjax.load takes")
    parser.add_argument("--clip", type=Path, nargs="+", help="video files; by default conflicting clips are drawn")
    parser.add_argument("--clips", type=int, default=32, help="how many are drawn")
    parser.add_argument("--max-new-tokens", type=int, default=50)
    parser.add_argument("--out", type=Path, help="writes the dataset as netCDF")
    options = parser.parse_args()
    model = avjax.load(options.model)
    if options.clip:
        prompts = {str(path): model.prompt(world.PROMPT, video=path, audio="from_video") for path in options.clip}
    else:
        drawn = [world.clip("test", i, "counterfactual") for i in range(options.clips)]
        prompts = {f"test {i}": prompt for i, (_, prompt) in enumerate(behaviour.prompts_of(model, drawn))}
    dataset = attention_mass(
        model, prompts, ["audio", "video", "text"], "answer", max_new_tokens=options.max_new_tokens, per_token=True
    )
    if options.out:
        dataset.to_netcdf(options.out)
    # The tiny world's captions begin "I hear"; of other captions the mean over all tokens is shown.
    shown = dataset.mean("token") if options.clip else dataset.isel(token=behaviour.SOUND_WORD)
    mean = shown.mean(("sample", "head"))
    print("layer  mass: audio  video   text    per key: audio  video   text")
    for layer in dataset.layer.values:
        columns = [mean[name].sel(layer=layer).values for name in ("mass", "per_key")]
        print(f"{layer:5d}       " + (" " * 9).join("".join(f"{x:7.2f}" for x in column) for column in columns))
    ratio = mean.per_key.sel(key="video") / mean.per_key.sel(key="audio")
    half = dataset.sizes["layer"] // 2
    print(f"video over audio per key: first half {ratio[:half].mean():.1f}, deep half {ratio[half:].mean():.1f}")


if __name__ == "__main__":
    main()
