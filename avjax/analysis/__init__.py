"""Experiments on a model, one technique per file, each a call that returns an `xarray.Dataset`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax.analysis.captions import Captioned, captioned
    from avjax.analysis.probe_pooling import probe_features
    from avjax.analysis.probe_store import Probes
    from avjax.analysis.probes import train_probes

# Names load when first used, as those of avjax do.
_HOMES: dict[str, tuple[str, ...]] = {
    "captions": ("Captioned", "captioned"),
    "probe_pooling": ("probe_features",),
    "probe_store": ("Probes",),
    "probes": ("train_probes",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["Captioned", "Probes", "captioned", "probe_features", "train_probes"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avjax.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avjax.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
