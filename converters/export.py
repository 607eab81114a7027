"""avjax to Hugging Face: the tensors that a conversion read, bit for bit, under their own names."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from avjax.checkpoint.orbax import PARAMS, check_stored
from avjax.families.key_rules import Rule
from avjax.families.registry import abstract_network, family_of, read_config
from avjax.models.config import ModelConfig, read_json
from avjax.models.network import Network
from avjax.models.parameters import parameter_paths
from converters.convert import Provenance, atomic_directory, copy_side_files, refuse_existing

SHARD_BYTES = 4 * 10**9


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor to write, and the place in a parameter that it comes from."""

    name: str
    rule: Rule
    places: tuple[int, ...]
    nbytes: int


def export(source: str | Path, target: str | Path) -> int:
    """Writes safetensors shards, with an index when there are several. Returns the number of tensors.

    Raises:
      FileExistsError: the target exists.
      ValueError: the source is no converted checkpoint, or lacks a parameter.
    """
    from converters.streaming import open_parameters  # Orbax takes a second to import

    source, target = Path(source), Path(target)
    refuse_existing(target)
    provenance = Provenance.read(source)
    config = read_config(read_json(source / "config.json"))
    check_stored(source / PARAMS, config)
    parameters = open_parameters(source / PARAMS)
    tensors = list(_tensors(config, provenance, {path: p.dtype.numpy_dtype for path, p in parameters.items()}))
    shards = _shards(tensors)
    with atomic_directory(target, sum(t.nbytes for t in tensors)) as building:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            arrays = {t.name: _read(parameters[t.rule.target], t) for t in shard}
            save_file(arrays, building / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(arrays, name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
            (building / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        copy_side_files(source, building)
    return len(tensors)


def write_weights(network: Network, config: ModelConfig, directory: Path, dtype: str) -> None:
    """Writes a network in memory as `model.safetensors` under the published names, cast to `dtype`."""
    table, arrays = family_of(config).key_table(config), dict[str, Any](parameter_paths(network))
    tensors = {}
    for rule in table.rules:
        array = np.asarray(arrays[rule.target].astype(dtype))
        for places, name in rule.entries(len(array)):
            tensors[name] = np.ascontiguousarray(rule.to_source(array[places]))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _tensors(config: ModelConfig, provenance: Provenance, dtypes: dict[str, np.dtype]) -> Iterator[_Tensor]:
    table = family_of(config).key_table(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in parameter_paths(abstract_network(config)).items()}
    for rule in table.rules:
        shape = shapes[rule.target]
        for places, name in rule.entries(shape[0]):
            size = int(np.prod(shape[len(places) :])) * dtypes[rule.target].itemsize
            yield _Tensor(provenance.naming.spelled(name), rule, places, size)
            for alias in provenance.aliases:
                if table.aliases[alias] == name:
                    yield _Tensor(provenance.naming.spelled(alias), rule, places, size)


def _shards(tensors: list[_Tensor]) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _read(parameter, tensor: _Tensor) -> np.ndarray:
    array = parameter[tensor.places].read().result() if tensor.places else parameter.read().result()
    return np.ascontiguousarray(tensor.rule.to_source(array))
