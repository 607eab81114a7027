"""Values of the host on a device, without a program: each conversion by jax is one more to compile."""

from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike


def on_device(values: Any, dtype: DTypeLike | None = None) -> jax.Array:
    """`jnp.asarray`, with the conversion done on the host. Wide numbers become jax's 32 bits."""
    array = np.asarray(values, dtype)
    return jax.device_put(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False))
