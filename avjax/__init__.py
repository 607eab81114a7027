"""avjax: interventions on audio-visual language models in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avjax.api import Generation, Run, forward, generate, generate_variants, lower_edits, run
    from avjax.interventions import Intervention, Knockout, parse_rules
    from avjax.loading import load
    from avjax.media.decode import MediaError
    from avjax.model import Model
    from avjax.models.decoder import Site
    from avjax.prompt import Inputs, Prompt

# Names load when first used: `avjax --help` and `import avjax` stay instant.
_HOMES = {
    "avjax.api": ("Generation", "Run", "forward", "generate", "generate_variants", "lower_edits", "run"),
    "avjax.interventions": ("Intervention", "Knockout", "parse_rules"),
    "avjax.loading": ("load",),
    "avjax.media.decode": ("MediaError",),
    "avjax.model": ("Model",),
    "avjax.models.decoder": ("Site",),
    "avjax.prompt": ("Inputs", "Prompt"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Generation",
    "Inputs",
    "Intervention",
    "Knockout",
    "MediaError",
    "Model",
    "Prompt",
    "Run",
    "Site",
    "forward",
    "generate",
    "generate_variants",
    "load",
    "lower_edits",
    "parse_rules",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'avjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
