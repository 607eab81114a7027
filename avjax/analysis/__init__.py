"""Experiments on a model, one technique per file, each a call that returns an `xarray.Dataset`."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax.analysis.attention import attention_mass
    from avjax.analysis.attribution import attribute
    from avjax.analysis.by_sample import sweep_samples
    from avjax.analysis.captions import Captioned, captioned
    from avjax.analysis.comparison import compare_with_base, shift_shares
    from avjax.analysis.gates import gate_edits, learn_gates
    from avjax.analysis.knockout import edge_sufficiency, knockout_heads, knockout_windows
    from avjax.analysis.latent_audio import latent_audio_understanding
    from avjax.analysis.lens import logit_lens
    from avjax.analysis.probes.features import probe_features
    from avjax.analysis.probes.train import train_probes
    from avjax.analysis.probes.trained import Probes
    from avjax.analysis.random_tokens import select_random
    from avjax.analysis.scaling import scale_modalities
    from avjax.analysis.sinks import find_sinks, select_sinks
    from avjax.analysis.tracing import deciding_modality, trace
    from avjax.analysis.tuned_lens import TunedLens, train_tuned_lens

# Names load when first used, as those of avjax do.
_HOMES: dict[str, tuple[str, ...]] = {
    "attention": ("attention_mass",),
    "attribution": ("attribute",),
    "captions": (
        "Captioned",
        "captioned",
    ),
    "comparison": (
        "compare_with_base",
        "shift_shares",
    ),
    "gates": (
        "gate_edits",
        "learn_gates",
    ),
    "knockout": (
        "edge_sufficiency",
        "knockout_heads",
        "knockout_windows",
    ),
    "latent_audio": ("latent_audio_understanding",),
    "lens": ("logit_lens",),
    "probes.features": ("probe_features",),
    "probes.trained": ("Probes",),
    "probes.train": ("train_probes",),
    "random_tokens": ("select_random",),
    "by_sample": ("sweep_samples",),
    "scaling": ("scale_modalities",),
    "sinks": (
        "find_sinks",
        "select_sinks",
    ),
    "tracing": (
        "deciding_modality",
        "trace",
    ),
    "tuned_lens": (
        "TunedLens",
        "train_tuned_lens",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Captioned",
    "Probes",
    "TunedLens",
    "attention_mass",
    "attribute",
    "captioned",
    "compare_with_base",
    "deciding_modality",
    "edge_sufficiency",
    "find_sinks",
    "gate_edits",
    "knockout_heads",
    "knockout_windows",
    "latent_audio_understanding",
    "learn_gates",
    "logit_lens",
    "probe_features",
    "scale_modalities",
    "select_random",
    "select_sinks",
    "shift_shares",
    "sweep_samples",
    "trace",
    "train_probes",
    "train_tuned_lens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avjax.analysis' has no attribute {name!r}")
    return getattr(importlib.import_module(f"avjax.analysis.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
