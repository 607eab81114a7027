"""Experiments on a model, one technique per file, each a call that returns an `xarray.Dataset`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax.analysis.captions import Captioned, captioned
    from avjax.analysis.latent_audio import latent_audio_understanding
    from avjax.analysis.lens import logit_lens
    from avjax.analysis.tuned_lens import TunedLens, train_tuned_lens

# Names load when first used, as those of avjax do.
_HOMES: dict[str, tuple[str, ...]] = {
    "captions": ("Captioned", "captioned"),
    "latent_audio": ("latent_audio_understanding",),
    "lens": ("logit_lens",),
    "tuned_lens": ("TunedLens", "train_tuned_lens"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Captioned",
    "TunedLens",
    "captioned",
    "latent_audio_understanding",
    "logit_lens",
    "train_tuned_lens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avjax.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avjax.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
