"""What the logit lens and a tuned lens read in clips of the tiny world whose sound is of another thing.

Command: `python -m sweeps.lens [--clips 32] [--out lens.nc]`
Cost: about a minute on two cores.
Expected on tiny-av: the sound that is heard is the lens's first choice at hardly any audio token, the thing that is
seen at a tenth or more from layer 4 on; after "I hear", layers 5 to 7 choose the sound that belongs to the picture. A
tuned lens lowers the divergence of layers 0 to 3 from the model's output.
"""

import argparse

import avjax
from avjax.analysis import latent_audio_understanding, logit_lens, train_tuned_lens
from avjax.organism.behaviour import prompts_of
from avjax.organism.world import KINDS, clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-av")
    parser.add_argument("--clips", type=int, default=32, help="test clips; as many others train the lens")
    parser.add_argument("--out", help="netCDF file of the lens at audio tokens")
    options = parser.parse_args()
    model = avjax.load(options.model)
    clips, known = ([clip(split, i, "counterfactual") for i in range(options.clips)] for split in ("test", "train"))
    prompts, trained_on = (dict(enumerate(p for _, p in prompts_of(model, several))) for several in (clips, known))
    heard, seen = ([KINDS[getattr(c, what)] for c in clips] for what in ("heard", "seen"))
    answers = {
        "heard": dict(enumerate(kind.sound for kind in heard)),
        "suggested": dict(enumerate(kind.sound for kind in seen)),
        "seen": dict(enumerate(kind.thing for kind in seen)),
    }
    tuned = train_tuned_lens(model, trained_on, prompts)
    print("KL(final || lens), nats:", tuned.report[["kl_before", "kl_after"]].to_dataframe().round(2), sep="\n")
    audio = logit_lens(model, prompts, answers=answers)
    opening = logit_lens(model, prompts, "generated", answers=answers, captions="I hear a").isel(position=[-1])
    with_tuned = logit_lens(model, prompts, answers=answers, lens=tuned)
    for name, dataset in {"audio tokens": audio, "the same, tuned lens": with_tuned, "after 'I hear'": opening}.items():
        print(f"share of positions ({name}) at which the word is the lens's first choice:")
        print((dataset["rank"] == 1).mean(["sample", "position"]).to_pandas().round(2))
    latent = latent_audio_understanding(model, prompts, answers["heard"])
    for name in ("recall", "recall_swapped", "understanding"):
        print(name, *(f"{float(latent[f'{name}_{part}']):.2f}" for part in ("mean", "low", "high")))
    if options.out:
        audio.to_netcdf(options.out)


if __name__ == "__main__":
    main()
