"""A process that works on a store, for the tests that kill it and those that run several: cells without a model.

Arguments: the store, a file that is told of each block before it is computed, and how many blocks it computes before it
waits to be killed; without that number, all.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xarray as xr

import avjax
from avjax.edits.grids import as_cells
from avjax.models.config import DecoderConfig
from avjax.runs import execute as executing
from avjax.runs.execute import execute
from avjax.runs.run import Block, Sample, StoredRun
from avjax.runs.store import Store

NUM_SAMPLES, BLOCK_CELLS = 5, 10
CONFIG = DecoderConfig(
    num_layers=10,
    num_heads=10,
    num_kv_heads=2,
    head_dim=8,
    embed_dim=80,
    mlp_dim=64,
    vocab_size=100,
    norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(1, 1, 2),
    tied_embeddings=True,
)


def run() -> StoredRun:
    """2,005 cells: 5 samples x (400 + the unedited one)."""
    grid = avjax.grid(
        avjax.Knockout(
            query="answer",
            key=avjax.axis("key", ["audio", "video", "text", "image"]),
            layers=avjax.each_layer(),
            heads=avjax.each_head(),
        )
    )
    samples = tuple(Sample(name=f"clip {i}", digest=str(i), prompt=_no_clip, metrics=()) for i in range(NUM_SAMPLES))
    return StoredRun(digest="fake", cells=as_cells(grid, CONFIG), samples=samples, settings={}, block_cells=BLOCK_CELLS)


def _no_clip() -> Any:
    return None


def computed(model: Any, run: StoredRun, block: Block, prompt: Any, prepared: Any = None) -> xr.Dataset:
    """Numbers that are drawn from the block's name."""
    rng = np.random.default_rng(int(block.name, 16))
    count = len(block.cells)
    with Path(sys.argv[2]).open("a") as told:
        told.write(f"{block.name}\n")
    if len(sys.argv) > 3 and len(Path(sys.argv[2]).read_text().split()) > int(sys.argv[3]):
        time.sleep(600)
    values: dict[str, Any] = {
        "score": (("variant", "sample"), rng.normal(size=(count, 1)).astype(np.float32), {"units": "nats"})
    }
    values["score_clean"] = (("sample",), rng.normal(size=1).astype(np.float32), {"units": "nats"})
    texts = np.array([[" ".join(map(str, rng.integers(9, size=5)))] for _ in range(count)], object)
    values["caption"] = (("variant", "sample"), texts, {})
    values["caption_clean"] = (("sample",), np.array(["clean"], object), {})
    values["edges"] = (("variant", "sample"), rng.integers(9, size=(count, 1)), {})
    return xr.Dataset(values, {"sample": [run.samples[block.sample].name]})


def main() -> None:
    executing._computed = computed  # pyright: ignore[reportPrivateUsage]
    store, made = Store(sys.argv[1]), run()
    store.begin({"layout": vars(made.layout)})
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    execute(SimpleNamespace(mesh=None), made, store, progress=False)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
