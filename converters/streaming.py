"""An Orbax checkpoint written block by block, so that no parameter is ever whole in memory."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint.type_handlers import NumpyHandler, create_type_handler_registry

from avjax.checkpoint.matching import Parameter
from avjax.checkpoint.orbax import quiet_orbax
from avjax.models.parameters import nested


class _ParameterHandler(NumpyHandler):
    """Saves a `Parameter` as if it were the array that it stands for."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)
        self._turn = asyncio.Lock()

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        # One parameter at a time, one chunk at a time: each write is on disk before the next block is read.
        tspec["metadata"] = _with_chunks(tspec["metadata"], value.chunk_shape)
        async with self._turn:
            array = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
            for index, block in value.blocks():
                await array[index].write(block)
                del block  # before the next one is read
            value.reader.close()


def save_parameters(directory: Path, parameters: Mapping[str, Parameter]) -> None:
    """Writes the parameters as a nested tree under `directory`, which must not exist."""
    with quiet_orbax():
        registry = create_type_handler_registry((Parameter, _ParameterHandler()))
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_ocdbt=False)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(nested(parameters)))


def _with_chunks(metadata: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The array's metadata with one chunk per block, in zarr 2 or 3."""
    if "chunk_grid" in metadata:
        return metadata | {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}}}
    return metadata | {"chunks": list(shape)}


def open_parameters(directory: Path) -> dict[str, ts.TensorStore]:
    """Every saved parameter by its dotted path, unread."""
    parameters = {}
    for array in sorted(directory.glob("*/.zarray")):
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{array.parent.absolute()}/"}}
        parameters[array.parent.name] = ts.open(spec, open=True).result()
    return parameters
