"""The noise floor of a sweep: how large a change of a metric may be though nothing but rounding made it.

In float32 the clean cell goes once more through the replay's own program, over the largest region of effect of the
sweep: what it differs by from the clean pass is rounding, and exact zeros are few. Narrower types round at every step,
and each edit flips other bits; there some drawn cells of some samples are computed again with float32 activations, and
what their effects differ by is noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from avjax.model import Model

DRAWN_SAMPLES = (3, 8)  # whose cells are computed again in float32: the more, the fewer cells there are
DRAWN_CELLS = 16  # of each
FEWEST_DRAWS = 3
LEVEL = 0.99  # of draws of noise, how many lie within the floor
HOW = {
    "clean": "the clean cell recomputed by the replay's own program, compared with the clean pass",
    "float32": "effects of randomly drawn cells, compared with the same cells in float32 activations",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """Draws of one metric's noise: their root mean square, and how many they are."""

    rms: float
    draws: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Noise":
        """The noise of draws [n, ...] of a metric; of one with dimensions, where it is largest."""
        squares = np.square(np.asarray(values, np.float64).reshape(len(values), -1))
        squares = squares[np.isfinite(squares).all(axis=1)]
        if not len(squares):
            return cls(rms=float("nan"), draws=0)
        return cls(rms=float(np.sqrt(squares.mean(axis=0).max())), draws=len(squares))

    @classmethod
    def pooled(cls, parts: Sequence["Noise"]) -> "Noise":
        drawn = [part for part in parts if part.draws]
        total = sum(part.draws for part in drawn)
        square = sum(part.draws * part.rms**2 for part in drawn) / total if total else float("nan")
        return cls(rms=float(np.sqrt(square)), draws=total)


def bound(noise: Noise) -> float:
    """What a further draw of noise stays within, `LEVEL` of the time, if noise is normal; NaN without a draw.

    Fewer than 3 draws are taken for 3: by the letter one alone bounds nothing within a factor of 64.

    Source: Student 1908; the prediction interval of a normal sample whose mean is known to be 0.
    """
    from scipy.special import stdtrit  # its statistics take a second to import

    factor = stdtrit(max(noise.draws, FEWEST_DRAWS), (1 + LEVEL) / 2)
    return float(factor * noise.rms) if noise.draws else float("nan")


def floor(noise: Sequence[Noise], unit: str, how: str) -> tuple[tuple[()], float, dict[str, Any]]:
    """The variable `NAME_floor`."""
    pooled = Noise.pooled(noise)
    attributes = {"units": unit, "averages": 0, "how": how, "level": LEVEL, "draws": pooled.draws, "rms": pooled.rms}
    return (), bound(pooled), attributes


def drawn_samples(samples: Sequence[Any], num_cells: int) -> set[Any]:
    """Those whose cells are computed again, spread over all; always the same."""
    fewest, most = DRAWN_SAMPLES
    count = int(np.clip(-(-DRAWN_CELLS // max(1, num_cells)), fewest, most))
    places = np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))
    return {samples[place] for place in places}


def measured_samples(model: Model, samples: Sequence[Any], num_cells: int) -> set[Any]:
    """Those whose noise is measured where each sample is a sweep of its own; in float32 all, which costs no pass."""
    return set(samples) if model.dtype == np.float32 else drawn_samples(samples, num_cells)


def drawn_cells(count: int) -> np.ndarray:
    """Places of the cells of a sample that are computed again; always the same."""
    return np.sort(np.random.default_rng(0).permutation(count)[:DRAWN_CELLS])


def noise_of(effects: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Draws of noise [m, ...] from the effects of drawn cells.

    Those whose effect is exactly 0 flipped no bit and say nothing of the others, unless all are such. Of the rest the
    half with the smaller effects counts, since rounding grows with an effect and the floor is about none.

    Args:
      effects: [n, ...] in the model's dtype.
      exact: the same with float32 activations; one with dimensions is as large as its root mean square.
    """
    flat = effects.reshape(len(effects), -1)
    changed = np.flatnonzero((flat != 0).any(axis=1))
    among = changed if len(changed) else np.arange(len(effects))
    size = np.sqrt(np.square(exact.reshape(len(exact), -1)[among]).mean(axis=1))
    smaller = among[np.argsort(size, kind="stable")[: -(-len(among) // 2)]]
    return effects[smaller] - exact[smaller]


def without_floors(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.drop_vars(_floors(dataset))


def pooled_floors(parts: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The floors of a sweep whose samples are in several datasets, from the noise of all of them."""
    floors: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in _floors(part)):
        attributes = [part[name].attrs for part in parts if name in part]
        noise = [Noise(rms=attrs["rms"], draws=attrs["draws"]) for attrs in attributes]
        floors[name] = floor(noise, attributes[0]["units"], attributes[0]["how"])
    return floors


def _floors(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name, variable in dataset.data_vars.items() if "draws" in variable.attrs]
