"""Starting a run in a store, or continuing the one that is there."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avjax.model import Model
from avjax.provenance import run_provenance
from avjax.runs.differences import changed_samples, identity_differences, listed
from avjax.runs.run import StoredRun
from avjax.runs.store import Store


def begin(
    store: Store,
    model: Model,
    run: StoredRun,
    fixed: Mapping[str, Any],
    spec: Mapping[str, Any] | None = None,
    directory: Path | None = None,
) -> None:
    """Starts a run in a store, or continues the one that is there.

    Args:
      fixed: what decides the values of all samples.
      spec: of the run, as plain values.
      directory: that the specification's files are relative to.

    Raises:
      ValueError: the store holds another one.
    """
    samples = {str(sample.name): sample.digest for sample in run.samples}
    identity = json.loads(json.dumps({**fixed, "grid": run.grid_digest, "block_cells": run.block_cells}))
    content = {"identity": identity, "samples": samples, "layout": vars(run.layout)}
    content["provenance"] = run_provenance(model, directory or Path(), seed=None if spec is None else spec["seed"])
    if spec is not None and directory is not None:
        content |= {"spec": spec, "directory": str(directory.absolute())}
    stored = store.begin(content)
    different = identity_differences(content, stored)
    if different and not store.parts() and not store.claims.exists():  # nothing was kept, and nobody works on it
        store.amend(content)
        return
    if [*stored["samples"]] != [*samples]:
        different.append(f"the names of its samples (now {listed(samples)}; then {listed(stored['samples'])})")
    if not different and stored["samples"] != samples:
        different = changed_samples(_changed(store, run, stored["samples"]), content, stored)
        if not different:
            store.amend({"samples": samples})
    if different:
        raise ValueError(
            f"{store.path}: it holds another run, which differs in {'; '.join(different)}; choose another store, or "
            "restore the settings that this one was begun with"
        )


def _changed(store: Store, run: StoredRun, before: Mapping[str, str]) -> list[str]:
    """Names of samples whose clip or words changed after cells of them were kept."""
    old = dataclasses.replace(
        run, samples=tuple(dataclasses.replace(s, digest=before[str(s.name)]) for s in run.samples)
    )
    done = store.parts()
    computed_samples = {old.samples[block.sample] for block in old.blocks() if block.name in done}
    now = {str(sample.name): sample.digest for sample in run.samples}
    return [repr(s.name) for s in old.samples if s in computed_samples and now[str(s.name)] != s.digest]
