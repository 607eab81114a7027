"""One of several processes that run the same sweeps on the same mesh; alone, on one device.

Arguments: a directory with `clip-0.mp4` to `clip-2.mp4`, where the results go; then for a process of several its
number, how many they are, the coordinator's port, and meshes such as 2,1,2.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

DEVICES = 2  # of each process
AXES = ("data", "variant", "model")


def results(mesh: Any, clips: Path) -> dict[str, Any]:
    import avjax

    model = avjax.load("tiny-av", mesh=mesh)
    words = "Describe what you see and hear."
    prompts = {
        i: model.prompt(words, video=clips / f"clip-{i}.mp4", audio="from_video", opening="I hear") for i in range(3)
    }
    found: dict[str, Any] = {}

    def keep(name: str, data: Any) -> None:
        found[f"{name} samples"] = data.sample.values.tolist()
        found.update({f"{name} {variable}": data[variable].values for variable in data.data_vars})

    windows = avjax.windows(4)
    edges = avjax.grid(avjax.Knockout(query="answer", key=avjax.axis("key", ["audio", "video"]), layers=windows))
    metrics = avjax.metrics
    # By the numbers of their tokens, that a checkpoint trained anew keeps.
    read = [metrics.LogProb(7), metrics.KL(), metrics.AttentionMass("video"), metrics.Caption(max_new_tokens=6)]
    keep("edges", avjax.sweep(model, prompts, edges, read, progress=False))
    source = avjax.run(model, prompts[0], "last->audio@2:5", capture=("resid_post",))
    sites = [
        avjax.Scale("audio", factor=2.0, site="z", layers=[3]),
        avjax.Ablate("video", mode="mean", site="resid_post", layers=[2]),
        avjax.Patch("audio", source=source, site="resid_post", layers=[1]),
    ]
    forced = metrics.LogLikelihood(" a dog barking")
    keep("sites", avjax.sweep(model, prompts, sites, forced, progress=False))
    keep("reference", avjax.sweep(model, prompts, sites[:1], forced, executor="reference", progress=False))
    written = avjax.generate(model, prompts[1], "answer->video@0:4", max_new_tokens=8)
    found |= {"tokens": written.tokens, "chosen from": written.logits, "run": np.asarray(source.logits)}
    return found | {"captured": np.asarray(source.captures["resid_post"])}


def main(clips: str, out: str, *process: str) -> None:
    meshes: list[tuple[int, ...]] = []
    if process:
        number, count, port = map(int, process[:3])
        jax.config.update("jax_num_cpu_devices", DEVICES)
        jax.distributed.initialize(f"localhost:{port}", count, number)
        meshes = [tuple(map(int, sizes.split(","))) for sizes in process[3:]]
    found = [results(jax.make_mesh(sizes, AXES), Path(clips)) for sizes in meshes] or [results(None, Path(clips))]
    Path(out).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
