"""Values of a sweep as they come in, and the dataset that they make up."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.edits.grids import CLEAN
from avjax.engine.session import Session
from avjax.metrics import Caption, Metric
from avjax.prompts.prompt import token_counts
from avjax.sweeping.floor import HOW, Noise, floor, noise_of
from avjax.sweeping.names import CELL, COUNTS, dimensions
from avjax.sweeping.prepare import Pass, Sweep

UNREACHED = "where every edit of a cell comes after all that the metric reads, so that none can reach it"
COUNTED = {"units": "count", "averages": 0}


class Columns:
    """Values as they come in, and the dataset that they make up."""

    def __init__(self, planned: Sweep, size: tuple[int, int] | None = None):
        """`size`: cells and samples, where they are not all of the sweep's."""
        self.planned = planned
        self.size = (len(planned.cells.cells), len(planned.prompts)) if size is None else size
        self.values: dict[str, np.ndarray] = {}
        self.clean: dict[str, np.ndarray] = {}
        self.metric: dict[str, Metric] = {}
        self.noise: dict[str, list[Noise]] = collections.defaultdict(list)
        self.how = ""  # the noise was measured
        self.touched: dict[str, dict[str, np.ndarray]] = collections.defaultdict(
            lambda: {name: np.zeros(self.size, np.int64) for name in COUNTS}
        )

    def add(self, sample: int, one: Pass, variants: Sequence[int], values: Sequence[Any]) -> None:
        """Values of each metric; variant `CLEAN` is the unedited run."""
        for metric, column in zip(one.metrics, values, strict=True):
            by_suffix = column if isinstance(column, Mapping) else {"": column}
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
            if variant == CLEAN:
                self.clean[name][sample] = value
            elif variant == self.size[0]:  # the clean cell once more
                noise = np.abs(np.asarray(value, np.float64) - self.clean[name][sample])
                self.add_noise(name, metric, np.maximum(noise, self._least(name, metric, sample))[None], "clean")
            else:
                self.values[name][variant, sample] = value

    def add_noise(self, name: str, metric: Metric, noise: np.ndarray, how: str) -> None:
        """Draws [n, ...] of a variable's noise."""
        if metric.averages and noise.dtype.kind == "f":
            self.noise[name].append(Noise.of(noise))
            self.how = how

    def _least(self, name: str, metric: Metric, sample: int) -> np.ndarray:
        """What a variable's noise is at least: equal bits are no proof that a number is exact."""
        clean = np.abs(self.clean[name][sample])
        # The clean run's distance from itself is 0, and all that it is beyond is rounding.
        return np.asarray(clean if metric.distance else np.spacing(clean.astype(np.float32)))

    def add_float32(self, sample: int, cells: np.ndarray, of: "Columns") -> None:
        """What the effects of some cells of a sample differ by from those with float32 activations."""
        for name, metric in of.metric.items():
            if self.values[name].dtype.kind == "f":
                exact = of.values[name][:, 0].astype(np.float64) - of.clean[name][0]
                effects = self.values[name][cells, sample].astype(np.float64) - self.clean[name][sample]
                noise = np.abs(noise_of(effects, exact))
                if metric.distance:
                    noise = np.maximum(noise, self._least(name, metric, sample))
                self.add_noise(name, metric, noise, "float32")

    def add_captions(self, sample: int, caption: Caption, generations: Sequence[Any]) -> None:
        """Continuations of the clean run and of every cell."""
        texts = [g.text if g.text is not None else " ".join(map(str, g.tokens)) for g in generations]
        columns = {"": np.array(texts, object), "tokens": np.array([len(g.tokens) for g in generations])}
        for suffix, column in columns.items():
            name = f"{caption.name}_{suffix}" if suffix else caption.name
            self._put(name, caption, sample, range(-1, len(generations) - 1), column)
        for name in COUNTS:
            self.touched[caption.name][name][:, sample] = [getattr(g.touched, name) for g in generations[1:]]

    def add_touched(self, sample: int, session: Session, part: Pass) -> None:
        """What each cell reaches of what each metric is fed."""
        for place, metric in enumerate(part.metrics):
            for variant in range(self.size[0]):
                touched = session.touched.count(variant, part.num_fed(place))
                for name in COUNTS:
                    self.touched[metric.name][name][variant, sample] = getattr(touched, name)

    @property
    def _unreached(self) -> set[str]:
        """Metrics that some cell's edits cannot reach."""
        return {metric for (_, metric), missing in self.planned.missing.items() if missing.any()}

    def _without_missing(self, metric: Metric, values: np.ndarray) -> np.ndarray:
        """Values [cells, samples, ...] with those taken out whose edits come after all that the metric reads."""
        if metric.name not in self._unreached:
            return values
        missing = np.stack([self.planned.missing[sample, metric.name] for sample in self.planned.prompts], axis=1)
        if values.dtype.kind in "iu":  # -1 is missing, as for what a store does not hold yet
            values = values.astype(np.int64)
        values = values.copy()
        values[missing] = {"O": "", "f": np.nan}.get(values.dtype.kind, -1)
        return values

    def dataset(self, attributes: Mapping[str, Any]) -> xr.Dataset:
        cells = self.planned.cells
        dims = (*cells.dims, "sample")
        variables: dict[str, Any] = {}
        axes = dimensions({m: self.clean[name].shape[1:] for name, m in self.metric.items()})
        for name, metric in self.metric.items():
            metric_attributes = {"units": metric.unit, "averages": int(metric.averages)}
            metric_attributes |= {"distance": 1} if metric.distance else {}
            metric_attributes |= {k: str(v) for k, v in metric.attributes(self.planned.model).items()}
            values = self._without_missing(metric, self.values[name])
            reason = {"missing": UNREACHED} if metric.name in self._unreached else {}
            edited = (
                metric_attributes | reason | {"cell": "edited"}
            )  # a difference from the clean run then says neither
            values = values.reshape(*cells.shape, *values.shape[1:])
            variables[name] = ((*dims, *axes[metric]), values, edited)
            variables[f"{name}_clean"] = (
                ("sample", *axes[metric]),
                self.clean[name],
                metric_attributes | {"cell": "clean"},
            )
            if name in self.noise:
                variables[f"{name}_floor"] = floor(self.noise[name], metric.unit, HOW[self.how])
        for name in COUNTS:
            by_metric = {metric: counts[name] for metric, counts in self.touched.items()}
            most = np.max([*by_metric.values()], axis=0)
            variables[name] = (dims, most.reshape(*cells.shape, -1), COUNTED)
            if self.planned.counts_apart:
                for metric, counts in by_metric.items():
                    metric_attributes = COUNTED | {"counts_of": metric}
                    variables[f"{metric}_{name}"] = (dims, counts.reshape(*cells.shape, -1), metric_attributes)
        coordinates: dict[str, Any] = {name: list(cells.coordinates[name]) for name in cells.dims}
        coordinates["sample"] = list(self.planned.prompts)
        coordinates |= token_counts(self.planned.prompts)
        coordinates[CELL] = (cells.dims, np.array([c.name for c in cells.cells], object).reshape(cells.shape))
        coordinates |= {note: (dim, list(values)) for note, (dim, values) in cells.notes.items()}
        return xr.Dataset(variables, coordinates, dict(attributes))
