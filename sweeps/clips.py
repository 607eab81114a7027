"""Clips of the tiny world with their table, and the specifications of the paper's experiments beside them.

Command: `python -m sweeps.clips clips [--count 32] [--condition counterfactual]`
Cost: about a second per clip on two cores.

The table has a row per clip: its file, what is seen, the sound that is heard, and the one that the picture suggests.
Then `avjax run clips/knockout.yaml`; `model=` and `clips=` take yours. Factual clips suggest the sound that is heard,
and nothing tells the two apart: for them `factual.yaml`, `captions.yaml` and `attention.yaml`.
"""

import argparse
import csv
import shutil
from pathlib import Path

from avjax.organism import world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a directory; must not exist")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--condition", choices=("factual", "counterfactual"), default="counterfactual")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    with (options.out / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("video", "picture", "sound", "suggested"))
        for i in range(options.count):
            clip = world.clip("test", i, options.condition)
            assert clip.seen is not None and clip.heard is not None  # only other conditions lack one
            name = f"{options.condition}-{i:03}.mp4"
            clip.write(options.out / name)
            seen, heard = world.KINDS[clip.seen], world.KINDS[clip.heard]
            table.writerow((name, seen.thing, heard.sound, seen.sound))
    for spec in sorted((Path(__file__).parent / "specs").glob("*.yaml")):
        shutil.copy(spec, options.out)
    print(f"{options.out}: clips.csv of {options.count} clips, specifications to run")


if __name__ == "__main__":
    main()
