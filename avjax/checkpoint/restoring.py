"""Parameters from Orbax: few chunks at a time, since memory holds each beside the array that it goes into."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Mesh
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from avjax.checkpoint.orbax import check_stored, quiet_orbax
from avjax.devices.mesh import parameter_sharding
from avjax.families.registry import abstract_network
from avjax.models.config import ModelConfig, read_json
from avjax.models.network import Network
from avjax.models.parameters import fill, nested, parameter_paths

CHUNKS = 8  # Orbax's own limit is 128, half a GB of chunks


class _FewChunks(ArrayHandler):
    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Any:
        context = ts.Context({"file_io_concurrency": {"limit": CHUNKS}})
        for info in infos:
            info.ts_context = context
        return await super().deserialize(infos, args)


def restore(directory: Path, config: ModelConfig, dtype: str, mesh: Mesh | None) -> Network:
    """The network of a converted checkpoint, each parameter read onto its place.

    Raises:
      ValueError: parameters are missing or damaged.
    """
    network = abstract_network(config, dtype)
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parameter_sharding(path, leaf.shape, mesh))
        for path, leaf in parameter_paths(network).items()
    }
    tree = nested(wanted)
    check_stored(directory, config)
    try:
        handler = ocp.PyTreeCheckpointHandler(
            restore_concurrent_gb=_at_a_time(directory),
            type_handler_registry=create_type_handler_registry((jax.Array, _FewChunks())),
        )
        with quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
            args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args)  # pyright: ignore[reportCallIssue]
            restored = checkpointer.restore(directory.absolute(), args=args)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            advice = "there is too little memory; load it in bfloat16, or onto a mesh of more devices"
        else:
            advice = "convert the checkpoint again"
        raise ValueError(f"{directory}: a parameter cannot be read ({error}); {advice}") from error
    return fill(network, parameter_paths(restored))


def _at_a_time(directory: Path) -> int:
    """GB that are read at a time: what the largest array needs, and no more, since it is held twice meanwhile."""
    stored = [read_json(path) for path in directory.glob("*/.zarray")]
    return max(math.prod(array["shape"]) * jnp.dtype(array["dtype"]).itemsize for array in stored) // 10**9 + 1
