"""What decided the numbers of a dataset: versions, device, checkpoint."""

import functools
import importlib.metadata
from typing import Any

import jax

from avjax.model import Model

PACKAGES = ("avjax", "jax", "jaxlib", "flax", "transformers", "numpy")


def provenance(model: Model, **settings: Any) -> dict[str, Any]:
    """Plain attributes for a dataset; `settings` that are None are left out."""
    device = jax.local_devices()[0]
    return {
        "checkpoint": model.host.source,
        "family": model.config.family,
        "dtype": str(model.dtype),
        "device": f"{device.platform} {device.device_kind}",
        **_versions(),
        **{name: value for name, value in settings.items() if value is not None},
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {f"version_{name}": importlib.metadata.version(name) for name in PACKAGES}
