"""A network's parameters as a tree: by dotted path in memory, as nested dicts on disk."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from avjax.config import ModelConfig
from avjax.models.qwen2_5_omni import Qwen2_5Omni
from avjax.models.qwen2_5_vl import Qwen2_5VL

Tree = TypeVar("Tree")
Network = Qwen2_5Omni | Qwen2_5VL
FAMILIES = {"qwen2_5_omni": Qwen2_5Omni, "qwen2_5_vl": Qwen2_5VL}
PARAMS = "params"  # the Orbax part of a converted checkpoint


def abstract_network(config: ModelConfig, dtype: str = "float32") -> Network:
    """The network's tree with shapes in place of arrays; nothing is allocated."""
    network = jax.eval_shape(lambda: FAMILIES[config.family](config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), network)


def parameter_paths(network: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter by its dotted path, such as `decoder.layers.attn.q.kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(network)
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple[Any, ...]) -> str:
    """`decoder.embed.embedding` from a key path, without the box that NNX puts round a parameter."""
    names = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
    return ".".join(name for name in names if name != "value")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts from dotted paths; how parameters are laid out on disk."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def fill(network: Tree, arrays: Mapping[str, Any]) -> Tree:
    """The network, or a part of it, with each parameter in place of its shape."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_name(path)], network)


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's log out of the user's terminal; what fails is raised all the same.

    It remarks on formats that we chose on purpose, and prints a traceback for every parallel write beside a failed one.
    """
    loggers = {logging.getLogger("absl"): logging.ERROR, logging.getLogger("asyncio"): logging.CRITICAL}
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
