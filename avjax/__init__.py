"""avjax: interventions on audio-visual language models in JAX."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax import analysis, metrics, statistics
    from avjax.caching import cache
    from avjax.checkpoint.loading import load
    from avjax.devices.compilation import cache_compilations
    from avjax.edits.edits import Ablate, Knockout, Patch, Scale, ScaleAttention, Steer
    from avjax.edits.grids import Grid, axis, each_group, each_head, each_layer, grid, windows
    from avjax.edits.json_forms import from_json, to_json
    from avjax.edits.rules import parse_rules
    from avjax.engine.generate import Generation, generate, generate_variants
    from avjax.engine.overflow import ActivationOverflow, refuse_overflow
    from avjax.engine.run import Run, forward, lower_edits, run
    from avjax.media.corruption import BlankVideo, MuteAudio, NoiseAudio, ShiftAudio, SwapAudio, SwapVideo
    from avjax.media.errors import MediaError
    from avjax.model import Model
    from avjax.models.encoder_cache import cache_encodings
    from avjax.models.intervention import VARIANTS, Intervention
    from avjax.models.sites import Site
    from avjax.prompts.prompt import Inputs, Prompt
    from avjax.runs.sweep import sweep
    from avjax.statistics import bootstrap
    from avjax.sweeping.cost import Plan, plan

    __version__: str

# Names load when first used: `avjax --help` and `import avjax` stay instant.
_HOMES = {
    "avjax.engine.run": ("Run", "forward", "lower_edits", "run"),
    "avjax.caching": ("cache",),
    "avjax.devices.compilation": ("cache_compilations",),
    "avjax.models.encoder_cache": ("cache_encodings",),
    "avjax.engine.overflow": ("ActivationOverflow", "refuse_overflow"),
    "avjax.engine.generate": ("Generation", "generate", "generate_variants"),
    "avjax.edits.grids": ("Grid", "axis", "each_group", "each_head", "each_layer", "grid", "windows"),
    "avjax.edits.edits": ("Ablate", "Knockout", "Patch", "Scale", "ScaleAttention", "Steer"),
    "avjax.edits.rules": ("parse_rules",),
    "avjax.checkpoint.loading": ("load",),
    "avjax.media.corruption": ("BlankVideo", "MuteAudio", "NoiseAudio", "ShiftAudio", "SwapAudio", "SwapVideo"),
    "avjax.media.errors": ("MediaError",),
    "avjax.model": ("Model",),
    "avjax.models.intervention": ("VARIANTS", "Intervention"),
    "avjax.models.sites": ("Site",),
    "avjax.sweeping.cost": ("Plan", "plan"),
    "avjax.prompts.prompt": ("Inputs", "Prompt"),
    "avjax.edits.json_forms": ("from_json", "to_json"),
    "avjax.statistics": ("bootstrap",),
    "avjax.runs.sweep": ("sweep",),
}
_MODULES = ("analysis", "metrics", "statistics")
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "VARIANTS",
    "Ablate",
    "ActivationOverflow",
    "BlankVideo",
    "Generation",
    "Grid",
    "Inputs",
    "Intervention",
    "Knockout",
    "MediaError",
    "Model",
    "MuteAudio",
    "NoiseAudio",
    "Patch",
    "Plan",
    "Prompt",
    "Run",
    "Scale",
    "ScaleAttention",
    "ShiftAudio",
    "Site",
    "Steer",
    "SwapAudio",
    "SwapVideo",
    "__version__",
    "analysis",
    "axis",
    "bootstrap",
    "cache",
    "cache_compilations",
    "cache_encodings",
    "each_group",
    "each_head",
    "each_layer",
    "forward",
    "from_json",
    "generate",
    "generate_variants",
    "grid",
    "load",
    "lower_edits",
    "metrics",
    "parse_rules",
    "plan",
    "refuse_overflow",
    "run",
    "statistics",
    "sweep",
    "to_json",
    "windows",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("avjax")
    if name in _MODULES:
        return importlib.import_module(f"avjax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'avjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
