"""Replay sweeps against peers on the same weights and prompt: seconds, parity and memory per workload.

Command: `python -m sweeps.bench [--size small] [--workloads a,b] [--peers hooks,strong] [--rounds 5] [--sample 4]`
Cost: the first run builds an environment per peer (1 to 2 GB each; `--reuse-current` spares those of hooks, hooks_sdpa
and strong). With the defaults about half an hour on two quiet cores.
Expected: every parity passes, with logits equal to 1e-4 and ids exactly; where edits reach few rows (a, b, e) avjax is
much faster than the loops; where they reach nearly all (f, g, h) or there is one variant (i), hardly or not.

Parity comes first, and a failure is printed before anything is timed; the exit status is then 1.
Methods are interleaved within rounds, so that a noisy machine disturbs all alike; medians and minima are of the warm
rounds, compilation is told apart. A peer that loops over variants runs a seeded sample, and its time is multiplied.
Peak memory is above the loaded model, compilation included; on a CPU it counts what earlier workloads left resident.
Cores that other processes kept busy are stated per workload: a disturbed run is not worth citing.
In tables "difference of spread" is the largest difference from avjax and how far the edits move the logits.
Peers and workloads: `sweeps/bench/environments.py`, `sweeps/bench/workloads.py`.
"""

import argparse
import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

from sweeps.bench.checkpoint import SIZES, write
from sweeps.bench.client import Client
from sweeps.bench.comparison import OURS, Parity, break_even, failures, parity, summary
from sweeps.bench.environments import METHODS
from sweeps.bench.machine import Others
from sweeps.bench.table import markdown
from sweeps.bench.workloads import TITLES, document


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in METHODS if name != OURS]
    parser.add_argument("--workloads", default=",".join(TITLES), help="letters, joined by commas")
    parser.add_argument("--peers", default=",".join(peers), help=f"any of {', '.join(peers)}, joined by commas")
    parser.add_argument("--rounds", type=int, default=5, help="warm rounds; one cold round comes before them")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--sample", type=int, default=4, help="variants to run for a method that loops; 0 is all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--directory", type=Path, default=Path(".bench"), help="environments, checkpoint and results")
    parser.add_argument("--out", type=Path, help="results, as OUT.md and OUT.json; by default in the directory")
    parser.add_argument("--reuse-current", action="store_true", help="run peers that need only HF in this interpreter")
    options = parser.parse_args()
    options.out = options.out or options.directory / f"results-{options.size}"
    options.workloads, options.peers = options.workloads.split(","), options.peers.split(",")
    for given, known in ((options.workloads, TITLES), (options.peers, peers)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"expected names among {', '.join(known)}, got {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    return options


def prepare(directory: Path, name: str) -> dict[str, Any]:
    """The checkpoint, when it is not there yet, and the workload document."""
    if not (directory / name / "thinker" / "model.safetensors").is_file():
        write(directory / name, SIZES[name])
    content = document(SIZES[name])
    (directory / name / "workload.json").write_text(json.dumps(content))
    return content


def measure(
    clients: dict[str, Client], workload: str, total: int, rounds: int, sample: int | None
) -> tuple[dict[str, Any], float | None]:
    """Every method on one workload: a cold call each, whose results are compared, then interleaved rounds.

    Returns:
      What was found, by method, and the cores that other processes kept busy during the rounds.
    """
    answers: dict[str, list[dict[str, Any]]] = {
        name: [client.ask(workload, sample)] for name, client in clients.items()
    }
    agreed = compare(workload, answers)
    names = [name for name, records in answers.items() if "seconds" in records[0]]
    watched = Others()
    for round_index in range(rounds):
        turn = round_index % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            answers[name].append(clients[name].ask(workload, sample))
    cores = watched.cores(sum(a.get("cpu_seconds", 0.0) for records in answers.values() for a in records[1:]))
    # Unsupported, or failed in any round: printed as such.
    refused = {name: bad for name, records in answers.items() for bad in records if "seconds" not in bad}
    names = [name for name in names if name not in refused]
    records: dict[str, Any] = {name: summary(answers[name], total) for name in names} | refused
    if OURS in refused:
        return records, cores
    for name in names:
        if name == OURS:
            continue
        records[name] |= {
            "ratio": records[name]["seconds"] / records[OURS]["seconds"],
            "ratio_of_best": records[name]["best"] / records[OURS]["best"],
            "parity": {k: v for k, v in dataclasses.asdict(agreed[name]).items() if k != "passed"},
            "parity_passed": agreed[name].passed,
        }
        if clients[name].about["loops"]:
            records[name]["break_even"] = break_even(records[OURS], records[name])
    return records, cores


def compare(workload: str, answers: dict[str, list[dict[str, Any]]]) -> dict[str, Parity]:
    """The first answers against avjax's, printed at once."""
    ours, agreed = answers[OURS][0], {}
    for name, (first, *_) in answers.items():
        if "seconds" not in first:
            print(f"{workload}, {name}: {first.get('unsupported') or first['error']}", flush=True)
        elif name != OURS and "seconds" in ours:
            agreed[name] = compared = parity(workload, ours["results"], first["results"])
            verdict = "parity" if compared.passed else "PARITY FAILED"
            size = f"{compared.difference:.1e} of {compared.effect:.2g} in {compared.variants} variants"
            line = f"{verdict}, difference {size}"
            print(f"{workload}, {name}: {line}", flush=True)
    return agreed


def main() -> None:
    options = arguments()
    options.directory.mkdir(parents=True, exist_ok=True)
    content = prepare(options.directory, options.size)
    clients: dict[str, Client] = {}
    failed: dict[str, str] = {}
    for name in (OURS, *options.peers):
        try:
            clients[name] = Client(
                name, METHODS[name], options.directory, options.size, options.threads, options.reuse_current
            )
        except RuntimeError as error:
            failed[name] = str(error)
            print(error, flush=True)
    results = {
        "machine": f"{platform.machine()}, {options.threads} threads for every method",
        "size": options.size,
        "rounds": options.rounds,
        "sample": options.sample,
        "methods": {n: {"about": METHODS[n].about, **c.about} for n, c in clients.items()},
        "failed": failed,
        "busy_cores": {},
        "workloads": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for workload in options.workloads:
        total = len(content["workloads"][workload])
        measured, busy = measure(clients, workload, total, options.rounds, options.sample or None)
        results["busy_cores"][workload] = busy
        results["workloads"][workload] = measured
        # Written after every workload, so that an interrupted run leaves what it measured.
        Path(f"{options.out}.json").write_text(json.dumps(results, indent=2) + "\n")
        Path(f"{options.out}.md").write_text(markdown(results))
        print(f"{workload}: {TITLES[workload]} done", flush=True)
    for client in clients.values():
        client.close()
    print(markdown(results))
    if failed or failures(results["workloads"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
