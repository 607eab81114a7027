"""How long a run of a million cells takes to find out what it has still to do, and in how much memory.

    python -m sweeps.bench.store

2,000 clips x (500 cells and the unedited one), every tenth block missing. Parts hold one block's bytes each: what is
there is read from their names alone. Under a minute on two cores, most of it for writing the parts.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

import avjax
from avjax.checkpoint.loading import load
from avjax.edits.grids import as_cells
from avjax.prompts.prompt import Prompt
from avjax.runs.rows import encoded
from avjax.runs.run import Sample, StoredRun
from avjax.runs.store import Claim, Store

NUM_SAMPLES, FACTORS, EVERY = 2000, 25, 10


def no_clip() -> Prompt:
    raise RuntimeError("listing decodes no clip")


def million() -> StoredRun:
    """2,000 samples x 500 cells in blocks of 512."""
    factors = avjax.axis("factor", [float(f) for f in np.linspace(0.1, 2.5, FACTORS)])
    grid = avjax.grid(
        avjax.ScaleAttention(query="answer", key="audio", factor=factors, layers=avjax.axis("layers", range(4))),
        avjax.Knockout(query="answer", key="video", heads=avjax.axis("heads", range(5))),
    )
    cells = as_cells(grid, load("tiny-av").config.decoder)
    samples = tuple(Sample(name=f"{i}", digest=f"{i}", prompt=no_clip, metrics=()) for i in range(NUM_SAMPLES))
    return StoredRun(digest="run", cells=cells, samples=samples, settings={}, block_cells=512)


def part(run: StoredRun) -> bytes:
    """Of a block, with a number and a caption in each cell."""
    block = run.blocks()[0]
    count = len(block.cells)
    values = {
        "log_prob": (("variant", "sample"), np.random.default_rng(0).normal(size=(count, 1)).astype(np.float32)),
        "log_prob_clean": (("sample",), np.zeros(1, np.float32)),
        "caption": (("variant", "sample"), np.full((count, 1), "I hear barking and I see a dog.", object)),
        "caption_clean": (("sample",), np.array(["I hear barking and I see a dog."], object)),
    }
    dataset = xr.Dataset(values, {"sample": ["0"]})  # pyright: ignore[reportArgumentType]
    return encoded(dataset, run.layout, "0", np.array(block.cells), run.keys(block), block.clean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run, store = million(), Store(Path(directory) / "run")
        store.begin({})
        data, blocks = part(run), run.blocks()
        blocks_kept = [block for i, block in enumerate(blocks) if i % EVERY]
        for block in blocks_kept:
            store.write(Claim(block.name, None), data)
        again, before = million(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        done = store.parts()
        missing = [block for block in again.blocks() if block.name not in done]
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert len(missing) == len(blocks) - len(blocks_kept)
        rows, absent = sum(block.num_rows for block in blocks), sum(block.num_rows for block in missing)
        print(
            f"{absent:,} of {rows:,} cells are missing: found in {seconds:.2f} s; the process peaks at "
            f"{after / 2**20:.2f} GB, {max(0, after - before) / 2**10:.0f} MB of it for this"
        )


if __name__ == "__main__":
    main()
