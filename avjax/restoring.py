"""How Orbax reads parameters: few chunks at a time, since memory holds each beside the array that it goes into."""

from collections.abc import Sequence
from typing import Any

import jax
import tensorstore as ts
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

CHUNKS = 8  # Orbax's own limit is 128, half a GB of chunks


class _FewChunks(ArrayHandler):
    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Any:
        context = ts.Context({"file_io_concurrency": {"limit": CHUNKS}})
        for info in infos:
            info.ts_context = context
        return await super().deserialize(infos, args)


def few_chunks_at_a_time() -> Any:
    """A registry of type handlers for `PyTreeCheckpointHandler`."""
    return create_type_handler_registry((jax.Array, _FewChunks()))
