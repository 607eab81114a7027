"""Trained probes: applied to other runs, as directions for steering, and on disk."""

import dataclasses
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from safetensors.numpy import load_file, save_file

FORMAT = 1
PARTS = ("weights", "results")


def stacked(features: xr.Dataset | xr.DataArray) -> tuple[np.ndarray, xr.DataArray]:
    """float32 [F, C, D] and the array itself, with sample and feature last.

    Raises:
      ValueError: a dimension is missing, or features are not finite; the samples are named.
    """
    array = features["features"] if isinstance(features, xr.Dataset) else features
    if not isinstance(array, xr.DataArray) or not {"sample", "feature"} <= set(array.dims):
        got = array.dims if isinstance(array, xr.DataArray) else type(array).__name__
        raise ValueError(
            f"probes: expected features with dimensions sample and feature, as from probe_features, got {got}"
        )
    if isinstance(features, xr.Dataset):
        array = array.assign_attrs(features.attrs)
    array = array.transpose(..., "sample", "feature")
    if "sample" not in array.coords:
        array = array.assign_coords(sample=np.arange(array.sizes["sample"]))
    if not array.size:
        raise ValueError(f"probes: expected features, got none: {dict(array.sizes)}")
    values = np.ascontiguousarray(array.values, np.float32).reshape(-1, *array.shape[-2:])
    good = np.isfinite(values).all((0, 2))
    if not good.all():
        names = array.sample.values[~good].tolist()
        raise ValueError(
            f"probes: expected finite features, got NaN or infinity in {len(names)} samples: "
            f"{', '.join(map(repr, names[:5]))}; leave them out, or look for an overflow"
        )
    return values, array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probes:
    """Trained probes over the dimensions of their features (such as site, pooling and layer), seed and strength.

    Attributes:
      weights: `kernel` and `bias` by class, over features standardised with `mean` and `scale`.
      results: what they reach; see `train_probes`.
    """

    weights: xr.Dataset
    results: xr.Dataset

    @property
    def classes(self) -> tuple[Any, ...]:
        return tuple(self.weights["class"].values.tolist())

    def at(self, **place: Any) -> "Probes":
        """Some of the probes, such as `at(layer=12, seed=0)`; a value keeps its dimension with size 1.

        Raises:
          ValueError: there are none there.
        """
        weights, results = self.weights, self.results
        for dim, value in place.items():
            if dim not in weights.dims or dim in ("class", "feature"):
                dims = ", ".join(str(d) for d in weights.kernel.dims if d not in ("class", "feature"))
                raise ValueError(f"probes: expected dimensions among {dims}, got {dim!r}")
            there, wanted = weights[dim].values.tolist(), value if isinstance(value, list | tuple) else [value]
            if unknown := [v for v in wanted if v not in there]:
                raise ValueError(f"probes: expected {dim} among {there}, got {unknown[0]!r}")
            weights, results = weights.sel({dim: list(wanted)}), results.sel({dim: list(wanted)})
        return Probes(weights=weights, results=results)

    def logits(self, features: xr.Dataset | xr.DataArray) -> xr.DataArray:
        """Logits (nats) of every class, over sample, the features' other dimensions, seed, strength and class.

        Args:
          features: with every layer, site and pooling that the probes have; others are left alone.

        Raises:
          ValueError: features are missing, of another size or not finite.
        """
        _, array = stacked(features)
        kernel = self.weights.kernel
        if array.sizes["feature"] != kernel.sizes["feature"]:
            raise ValueError(
                f"probes: expected {kernel.sizes['feature']} features, got {array.sizes['feature']}; use the same site "
                "as in training"
            )
        dims = [str(d) for d in kernel.dims if d not in ("seed", "strength", "class", "feature")]
        if set(array.dims) != {*dims, "sample", "feature"}:
            raise ValueError(
                f"probes: expected features with dimensions {(*dims, 'sample', 'feature')}, got {array.dims}"
            )
        for dim in dims:
            if missing := [v for v in kernel[dim].values.tolist() if v not in array[dim].values.tolist()]:
                has = array[dim].values.tolist()
                raise ValueError(f"probes: expected features for {dim} {missing[0]!r}, got only {has}")
            array = array.sel({dim: kernel[dim].values})
        array = array.drop_vars("feature", errors="ignore").astype(np.float32)
        of_seeds = []
        for seed in self.weights.seed:  # one at a time: standardised features of all seeds are many
            one = self.weights.drop_vars("feature", errors="ignore").sel(seed=seed)
            of_seeds.append(xr.dot((array - one["mean"]) / one["scale"], one.kernel, dim="feature") + one.bias)
        by_seed = xr.concat(of_seeds, "seed").transpose("sample", *dims, "seed", "strength", "class")
        return by_seed.assign_attrs(units="nat", long_name="probe logit").rename("logits")

    def predict(self, features: xr.Dataset | xr.DataArray) -> xr.DataArray:
        """The class of the highest logit."""
        logits = self.logits(features)
        best = logits.argmax("class")
        return best.copy(data=self.weights["class"].values[best.values]).assign_attrs(long_name="predicted class")

    def direction(self, name: Hashable, *, against: Hashable | None = None, **place: Any) -> np.ndarray:
        """What to add to an activation so that one probe's logit of a class gains 1 nat on the others'; float32 [D].

        The shortest such step in units of the features' deviations, expressed in activation units. Added at every
        pooled position, as `avjax.Steer(where, direction, scale=s, layers=[layer])` does, it gains s nats; at one of n
        positions of a mean, s / n.

        Args:
          against: the other class; None is the mean of all others.
          place: which probe, such as layer=12, site="resid_post", pooling="mean", seed=0, strength=0.1; dimensions of
            size 1 may be left out.

        Raises:
          ValueError: the class is unknown, or the choice leaves several probes.
        """
        for one in (name, against):
            if one is not None and one not in self.classes:
                raise ValueError(f"direction: expected a class among {self.classes}, got {one!r}")
        if name == against:
            raise ValueError(f"direction: expected against= another class than {name!r}, got the same")
        weights = self.at(**place).weights
        several = {str(d): n for d, n in weights.kernel.sizes.items() if d not in ("class", "feature") and n > 1}
        if several:
            raise ValueError(
                f"direction: expected one probe, got several ({several}); choose one by {', '.join(several)}"
            )
        kernel = weights.kernel.values.reshape(len(self.classes), -1).astype(np.float64)
        k = self.classes.index(name)
        others = np.delete(kernel, k, 0).mean(0) if against is None else kernel[self.classes.index(against)]
        gap = kernel[k] - others
        if not gap.any():
            raise ValueError("direction: this probe's kernel is zero, so it has no direction; choose another probe")
        return (weights["scale"].values.reshape(-1) * gap / (gap @ gap)).astype(np.float32)

    def save(self, directory: str | Path) -> None:
        """Writes `weights` and `results`, each as safetensors with a JSON file of its names."""
        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            dataset: xr.Dataset = getattr(self, part)
            arrays = {str(n): np.ascontiguousarray(v.values) for n, v in dataset.data_vars.items()}
            content = {
                "format": FORMAT,
                "variables": {str(n): [list(v.dims), _plain(v.attrs)] for n, v in dataset.data_vars.items()},
                "coords": {str(n): [list(c.dims), c.values.tolist()] for n, c in dataset.coords.items()},
                "attrs": _plain(dataset.attrs),
            }
            save_file(arrays, root / f"{part}.safetensors")
            (root / f"{part}.json").write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """What `save` wrote.

        Raises:
          ValueError: the directory holds no probes, or those of another version.
        """
        root, loaded = Path(directory), {}
        for part in PARTS:
            if not (root / f"{part}.json").is_file():
                raise ValueError(f"probes: expected a directory that Probes.save wrote, got {root} without {part}.json")
            content = json.loads((root / f"{part}.json").read_text())
            if content.get("format") != FORMAT:
                raise ValueError(f"probes: expected format {FORMAT}, got {content.get('format')!r}; train again")
            arrays = load_file(root / f"{part}.safetensors")
            variables = {n: (dims, arrays[n], attrs) for n, (dims, attrs) in content["variables"].items()}
            coords = {n: (dims, values) for n, (dims, values) in content["coords"].items()}
            loaded[part] = xr.Dataset(variables, coords, attrs=content["attrs"])
        return cls(**loaded)


def _plain(attrs: Any) -> dict[str, Any]:
    return {str(k): v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()}
