"""Whether a run keeps the device busy: its time against the sum of device time.

    python -m sweeps.bench.scheduling [--clips 32] [--rounds 3]

Device time is what the same cells take when nothing else is to be done: prompts are made beforehand, programs are
compiled, and nothing is kept on disk. The run decodes its clips, computes, and writes its store; on a CPU the decoding
competes with the device for cores, so that each gets its own. Rounds alternate. A few minutes on two cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    # Threads that jax starts stay on the cores that the process has now; those of decoding may have all of them.
    os.sched_setaffinity(0, cores[: max(1, len(cores) // 2)])
    import jax.numpy as jnp

    jnp.ones(8).block_until_ready()
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as directory:
        _measure(Path(directory), options.clips, options.rounds)


def _measure(directory: Path, count: int, rounds: int) -> None:
    import avjax
    from avjax.organism import world
    from avjax.runs.execute import _computed
    from avjax.runs.prepare import prepare_run
    from avjax.runs.spec.spec import Spec
    from avjax.runs.store import Store

    clips = []
    for i in range(count):
        world.clip("test", i, "counterfactual").write(directory / f"{i}.mp4")
        clips.append({"video": f"{i}.mp4"})
    given = {
        "model": "tiny-av",
        "prompt": world.PROMPT,
        "opening": "I hear",
        "clips": clips,
        "grid": {"edit": "knockout", "query": "answer", "key": {"axis": ["audio", "video"]}, "heads": "each"},
        "metrics": [{"metric": "kl"}, {"metric": "caption", "max_new_tokens": 20}],
    }
    given["grid"]["layers"] = "each"
    spec, model = Spec.of(given, directory), avjax.load("tiny-av")
    warm = prepare_run(spec, model)
    prompts = [sample.prompt() for sample in warm.run.samples]
    blocks = warm.run.blocks()
    _computed(model, warm.run, blocks[0], prompts[blocks[0].sample])
    device, whole = [], []
    for number in range(rounds):
        model.host.encoded.clear()
        began = time.perf_counter()
        for block in blocks:
            _computed(model, warm.run, block, prompts[block.sample])
        device.append(time.perf_counter() - began)
        model.host.encoded.clear()
        began = time.perf_counter()
        outcome = prepare_run(spec, model).execute(Store(directory / f"run-{number}"), progress=False)
        whole.append(time.perf_counter() - began)
        assert outcome.computed == sum(block.num_rows for block in blocks)
        print(f"round {number + 1}: device {device[-1]:.2f} s, run {whole[-1]:.2f} s")
    ratios = sorted(run / alone for run, alone in zip(whole, device, strict=True))
    cells, least, most = sum(block.num_rows for block in blocks), ratios[0], ratios[-1]
    print(f"{count} clips, {cells:,} cells: run / device {statistics.median(ratios):.3f} ({least:.3f} - {most:.3f})")


if __name__ == "__main__":
    main()
