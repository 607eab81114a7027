"""A network's parameters as a tree: by dotted path in memory, as nested dicts on disk."""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from avjax.config import ModelConfig, read_json
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


def check_stored(directory: Path, config: ModelConfig) -> None:
    """Compares what is on disk with what the config describes, before anything is read.

    Orbax reads a chunk that is missing as zeros, and stops at the first parameter that is.

    Raises:
      ValueError: parameters are missing, unknown, misshapen or lack chunks; all of them are named.
    """
    wanted = parameter_paths(abstract_network(config))
    found = {path.parent.name: read_json(path) for path in sorted(directory.glob("*/.zarray"))}
    problems = [f"{name}: absent" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name}: no parameter of this architecture" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        shape, chunks = tuple(found[name]["shape"]), found[name]["chunks"]
        if shape != wanted[name].shape:
            problems.append(f"{name}: expected shape {list(wanted[name].shape)}, got {list(shape)}")
        counts = (range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True))
        keys = [".".join(map(str, index)) for index in itertools.product(*counts)]
        lost = [key for key in keys if not (directory / name / key).is_file()]
        if lost:
            problems.append(f"{name}: {len(lost)} of {len(keys)} chunks are missing, the first is {lost[0]}")
    if problems:
        raise ValueError(
            f"{directory}: the converted checkpoint is damaged or of another config:\n  "
            + "\n  ".join(problems)
            + "\nConvert it again."
        )


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax's log out of the user's terminal; what fails is raised all the same.

    It remarks on formats that we chose on purpose, and prints a traceback for every parallel write beside a failed one.
    """
    loggers = {logging.getLogger("absl"): logging.CRITICAL, logging.getLogger("asyncio"): logging.CRITICAL}
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
