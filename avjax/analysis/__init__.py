"""Experiments on a model, one technique per file, each a call that returns an `xarray.Dataset`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax.analysis.attribution import attribute
    from avjax.analysis.captions import Captioned, captioned
    from avjax.analysis.gates import gate_edits, learn_gates

# Names load when first used, as those of avjax do.
_HOMES: dict[str, tuple[str, ...]] = {
    "attribution": ("attribute",),
    "captions": ("Captioned", "captioned"),
    "gates": ("gate_edits", "learn_gates"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["Captioned", "attribute", "captioned", "gate_edits", "learn_gates"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avjax.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avjax.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
