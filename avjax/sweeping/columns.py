"""Values of a sweep as they come in, and the dataset that they make up."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.engine.session import Session
from avjax.engine.touched import count_touched
from avjax.metrics import Caption, Metric
from avjax.prompt import token_counts
from avjax.sweeping.names import CELL, COUNTS, dimensions
from avjax.sweeping.plan import Pass, Sweep


class Columns:
    """Values as they come in, and the dataset that they make up."""

    def __init__(self, planned: Sweep):
        self.planned = planned
        self.size = (len(planned.cells.cells), len(planned.prompts))
        self.values: dict[str, np.ndarray] = {}
        self.clean: dict[str, np.ndarray] = {}
        self.metric: dict[str, Metric] = {}
        self.touched = {name: np.zeros(self.size, np.int64) for name in COUNTS}

    def add(self, sample: int, one: Pass, variants: Sequence[int], values: Sequence[Any]) -> None:
        """Values of each metric; variant -1 is the clean run."""
        for metric, found in zip(one.metrics, values, strict=True):
            by_suffix = found if isinstance(found, Mapping) else {"": found}
            for suffix, array in by_suffix.items():
                name = f"{metric.name}_{suffix}" if suffix else metric.name
                self._put(name, metric, sample, variants, np.asarray(array))

    def _put(self, name: str, metric: Metric, sample: int, variants: Sequence[int], array: np.ndarray) -> None:
        self.metric.setdefault(name, metric)
        shape = array.shape[1:]
        if name not in self.clean:
            self.clean[name] = np.zeros((self.size[1], *shape), array.dtype)
            self.values[name] = np.zeros((*self.size, *shape), array.dtype)
        for variant, value in zip(variants, array, strict=False):
            if variant < 0:
                self.clean[name][sample] = value
            else:
                self.values[name][variant, sample] = value

    def add_captions(self, sample: int, caption: Caption, found: Sequence[Any]) -> None:
        """Continuations of the clean run and of every cell."""
        texts = [g.text if g.text is not None else " ".join(map(str, g.tokens)) for g in found]
        columns = {"": np.array(texts, object), "tokens": np.array([len(g.tokens) for g in found])}
        for suffix, column in columns.items():
            name = f"{caption.name}_{suffix}" if suffix else caption.name
            self._put(name, caption, sample, range(-1, len(found) - 1), column)
        for name in COUNTS:
            self.touched[name][:, sample] = [getattr(g.touched, name) for g in found[1:]]

    def add_touched(self, sample: int, session: Session, num_decoded: int) -> None:
        """What each cell reaches when so many generated tokens are fed back."""
        for variant in range(self.size[0]):
            touched = count_touched(session.lowered, variant, num_decoded)
            for name in COUNTS:
                self.touched[name][variant, sample] = getattr(touched, name)

    def dataset(self, attributes: Mapping[str, Any]) -> xr.Dataset:
        cells = self.planned.cells
        dims = (*cells.dims, "sample")
        variables: dict[str, Any] = {}
        axes = dimensions({m: self.clean[name].shape[1:] for name, m in self.metric.items()})
        for name, metric in self.metric.items():
            about = {"units": metric.unit, "averages": int(metric.averages)}
            about |= {k: str(v) for k, v in metric.attributes(self.planned.model).items()}
            values = self.values[name].reshape(*cells.shape, *self.values[name].shape[1:])
            variables[name] = ((*dims, *axes[metric]), values, about | {"cell": "edited"})  # no difference is clean
            variables[f"{name}_clean"] = (("sample", *axes[metric]), self.clean[name], about | {"cell": "clean"})
        for name in COUNTS:
            variables[name] = (dims, self.touched[name].reshape(*cells.shape, -1), {"units": "count", "averages": 0})
        coordinates: dict[str, Any] = {name: list(cells.coordinates[name]) for name in cells.dims}
        coordinates["sample"] = list(self.planned.prompts)
        coordinates |= token_counts(self.planned.prompts)
        coordinates[CELL] = (cells.dims, np.array([c.name for c in cells.cells], object).reshape(cells.shape))
        coordinates |= {note: (dim, list(values)) for note, (dim, values) in cells.notes.items()}
        return xr.Dataset(variables, coordinates, dict(attributes))
