"""A network's parameters as a tree: by dotted path in memory, as nested dicts on disk."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def parameter_paths(network: Any) -> dict[str, Any]:
    """Every parameter, or its shape, by its dotted path, such as `decoder.layers.attn.q.kernel`."""
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
