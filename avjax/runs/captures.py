"""Activations of a run's cells, kept beside its parts: `captures/BLOCK.zarr`, for `xarray.open_zarr`.

Each cell is one full forward pass more than its metrics take. A block's captures are whole before its part appears.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from etils import epath

from avjax.edits.edits import Edit
from avjax.engine.run import run_cell
from avjax.model import Model
from avjax.models.sites import Site
from avjax.prompts.prompt import Prompt
from avjax.runs.store import Store

HEADS = (Site.Z, Site.VALUE)
SITES = (
    Site.RESID_PRE,
    Site.RESID_MID,
    Site.RESID_POST,
    Site.ATTN_IN,
    Site.ATTN_OUT,
    Site.MLP_IN,
    Site.MLP_OUT,
    *HEADS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captured:
    """Which activations are kept of every cell.

    Attributes:
      sites: among `SITES`, of all layers.
      at: a selector of prompt positions.
    """

    sites: tuple[str, ...]
    at: str | tuple[int, ...]

    def of(
        self, model: Model, prompt: Prompt, cells: Sequence[tuple[int, str, Sequence[Edit]]], **settings: Any
    ) -> xr.Dataset:
        """float32 [cell, layer, position, ...] of each site.

        Args:
          cells: places in the grid (-1 is the unedited run), what they do in words, and their edits.
          settings: of `avjax.run`.
        """
        activations: dict[str, list[np.ndarray]] = {site: [] for site in self.sites}
        at = np.zeros(0, int)
        for _, _, edits in cells:
            result = run_cell(model, prompt, edits, at=self.at, capture=self.sites, **settings)
            at = result.at
            for site in self.sites:
                activations[site].append(np.asarray(result.captures[site], np.float32)[:, at])
        variables: dict[str, Any] = {}
        for site, arrays in activations.items():
            inner = (f"{site}_head", f"{site}_dim") if site in HEADS else ("embed",)
            variables[site] = (("cell_index", "layer", "position", *inner), np.stack(arrays))
        coordinates: dict[str, Any] = {"cell_index": [place for place, _, _ in cells], "position": at}
        coordinates["cell"] = ("cell_index", np.array([name for _, name, _ in cells]))
        return xr.Dataset(variables, coordinates)


def keep(store: Store, block: str, activations: xr.Dataset) -> None:
    """Writes a claimed block's captures, all of them at once."""
    place = _place(store, block)
    if not store.local:
        activations.to_zarr(str(place), mode="w", zarr_format=2)
        return
    partial, whole = Path(store.path / "captures" / f".{block}.partial"), Path(place)
    for left in (partial, whole):  # by a process that was killed before the part appeared
        shutil.rmtree(left, ignore_errors=True)
    try:
        with store.writing():
            partial.parent.mkdir(parents=True, exist_ok=True)
            activations.to_zarr(partial, zarr_format=2)
            partial.rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # it is there where something failed


def copy(block: str, source: Store, into: Store) -> None:
    """A block's captures, where it has any, for a store that has claimed it."""
    if (place := _place(source, block)).exists():
        with xr.open_zarr(str(place)) as stored:
            keep(into, block, stored.load())


def _place(store: Store, block: str) -> epath.Path:
    return store.path / "captures" / f"{block}.zarr"
