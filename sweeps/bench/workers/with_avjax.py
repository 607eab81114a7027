"""avjax: a replay sweep per workload, in the benchmark's own environment.

Command: started by `python -m sweeps.bench`. Prompts enter as embeddings, and the lens reads one capturing pass.
The first call of a workload compiles; the benchmark tells it apart.
"""

import argparse
import os
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several methods hold one device at a time

import functools

import jax
import jax.numpy as jnp
import numpy as np
from protocol import Task, Worker, serve

import avjax
from avjax.models.top_k import top_k


class Replay:
    """The model, and workloads as grids."""

    def __init__(self, options: argparse.Namespace):
        self.model = avjax.load(options.checkpoint / "thinker")

    def prompt(self, ids: list[int], kinds: list[str]) -> avjax.Prompt:
        table = self.model.network.decoder.embed.embedding
        positions = np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
        return self.model.prompt_from_embeddings(np.asarray(table[jnp.asarray(ids)]), positions, kinds)

    def __call__(self, task: Task) -> dict[int, Any]:
        prompt = self.prompt(task.document["ids"], task.document["kinds"])
        if task.name == "e":
            return self.lens(task, prompt)
        corrupt = None
        if task.name == "c":
            other = self.prompt(task.document["corrupt_ids"], task.document["kinds"])
            corrupt = avjax.run(self.model, other, capture=["resid_post"])
        grid = [edit(variant, corrupt) for variant in task.variants.values()]
        metric: avjax.metrics.Metric
        if task.name == "b":
            metric = avjax.metrics.Caption(max_new_tokens=task.document["max_new_tokens"])
        else:
            metric = avjax.metrics.Logits(task.document["answers"])
        data = avjax.sweep(self.model, prompt, grid, metric, executor="replay", progress=False)
        values = data[metric.name].isel(sample=0).values
        if task.name == "b":  # without a tokenizer, a text is its token ids
            values = [[int(token) for token in str(text).split()] for text in values]
        return dict(zip(task.variants, values, strict=True))

    def lens(self, task: Task, prompt: avjax.Prompt) -> dict[int, Any]:
        places = jnp.array([v["position"] for v in task.variants.values()])
        residuals = avjax.run(self.model, prompt, capture=["resid_post"]).captures["resid_post"]
        tokens = np.asarray(likeliest(self.model.network.decoder, residuals, places, task.document["top"]))
        return dict(zip(task.variants, tokens.transpose(1, 0, 2), strict=True))


@functools.partial(jax.jit, static_argnames="top")
def likeliest(decoder: Any, residuals: jax.Array, places: jax.Array, top: int) -> jax.Array:
    """The likeliest tokens [L, P, top], a layer at a time, so that logits never exist for all of them."""

    def one(rows: jax.Array) -> jax.Array:
        return top_k(decoder.logits(rows), top)[1]

    return jax.lax.map(one, residuals[:, places])


def edit(variant: Any, corrupt: Any) -> Any:
    """A variant of the document as an edit."""
    match variant["op"]:
        case "knockout":
            where = {"layers": variant["layers"], "heads": variant["heads"]}
            return avjax.Knockout(query=variant["query"], key=variant["key"], **where)
        case "patch":
            span = f"[{variant['start']}:{variant['stop']}]"
            return avjax.Patch(span, corrupt, "resid_post", [variant["layer"]])
        case "scale" if variant["layer"] is None:
            return avjax.Scale(variant["where"], variant["factor"])
        case "scale":
            return avjax.Scale(variant["where"], variant["factor"], "resid_pre", [variant["layer"]])
        case "ablate":
            return avjax.Ablate("all", "zero", "z", [variant["layer"]], [variant["head"]])
    raise ValueError(f"variant: expected knockout, patch, scale or ablate, got {variant['op']!r}")


def device_peak() -> int:
    """The device's peak above what it holds now; XLA cannot count it anew, so it is the highest so far."""
    stats = jax.devices()[0].memory_stats() or {}
    return max(0, stats.get("peak_bytes_in_use", 0) - stats.get("bytes_in_use", 0))


def load(options: argparse.Namespace) -> Worker:
    jax.config.update("jax_default_matmul_precision", "highest")  # as torch computes float32
    device = jax.devices()[0]
    on_device = device.platform != "cpu"
    return Worker(
        run=Replay(options),
        versions={"jax": jax.__version__},
        device=device.device_kind if on_device else "cpu",
        loops=False,
        peak_bytes=device_peak if on_device else None,
    )


if __name__ == "__main__":
    serve(load)
