"""Edits, grids and corruptions as JSON, and back: plain values, with arrays as base64 of their bytes.

A prompt that a patch comes from is written with everything that decides what the decoder sees of it.
"""

import base64
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from avjax.nearest import did_you_mean

TYPE, ARRAY = "type", "array"


@functools.cache
def _types() -> dict[str, type]:
    from avjax.edits import edits, grids
    from avjax.media import corruption
    from avjax.models import config
    from avjax.prompts import prompt, selectors

    by_module = {
        edits: ("Knockout", "ScaleAttention", "Scale", "Patch", "Ablate", "Steer"),
        grids: ("Grid", "Values", "Windows", "Each"),
        selectors: ("BySample",),
        prompt: ("Prompt", "AudioFeatures", "VisionFeatures"),
        corruption: ("MuteAudio", "NoiseAudio", "ShiftAudio", "SwapAudio", "BlankVideo", "SwapVideo"),
        config: tuple(name for name, value in vars(config).items() if _is_dataclass(value)),
    }
    known = [getattr(module, name) for module, names in by_module.items() for name in names]
    return {cls.__name__: cls for cls in known}


def _is_dataclass(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)


def to_json(value: Any) -> Any:
    """Plain JSON values from an edit, a grid, a corruption, or a list of them.

    Raises:
      TypeError: something in it has no JSON form; a patch from a run takes the run's array instead.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, range | list | tuple):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and type(value).__name__ in _types():
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TYPE: type(value).__name__, **fields}
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.ascontiguousarray(value)
        if array.dtype.kind in "OUS":
            return {ARRAY: "str", "data": array.tolist()}
        data = base64.b64encode(array.tobytes()).decode()
        return {ARRAY: array.dtype.name, "shape": list(array.shape), "data": data}
    raise TypeError(
        f"expected an edit, a grid or plain values, got {type(value).__name__}; for a patch from a run, pass "
        "source=run.captures[site], or the prompt that was run"
    )


def from_json(value: Any) -> Any:
    """What `to_json` wrote. Lists come back as tuples.

    Raises:
      ValueError: a type or a field is unknown.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if ARRAY in value:
        return _array(value)
    name = value.get(TYPE)
    cls = _types().get(name) if isinstance(name, str) else None
    if cls is None:
        hint = did_you_mean(name, _types())
        raise ValueError(f"expected {TYPE!r} among {', '.join(sorted(_types()))}, got {name!r}{hint}")
    fields = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(value.keys() - fields - {TYPE})
    if unknown:
        raise ValueError(
            f"{name}: expected fields among {', '.join(sorted(fields))}, got "
            + ", ".join(f"{key}{did_you_mean(key, fields)}" for key in unknown)
        )
    try:
        return cls(**{key: from_json(item) for key, item in value.items() if key != TYPE})
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _array(value: Mapping[str, Any]) -> np.ndarray:
    if value[ARRAY] == "str":
        return np.array(value["data"])
    dtype = np.dtype(ml_dtypes.bfloat16) if value[ARRAY] == "bfloat16" else np.dtype(value[ARRAY])
    return np.frombuffer(base64.b64decode(value["data"]), dtype).reshape(value["shape"]).copy()
