"""What a conversion will do, decided and checked before anything is written."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from avjax.checkpoint.huggingface import CheckpointError, Source
from avjax.checkpoint.naming import Naming, read_naming
from avjax.devices.arrays import on_device
from avjax.devices.mesh import parameter_sharding
from avjax.families.key_rules import Rule
from avjax.families.registry import abstract_network, family_of
from avjax.models.config import ModelConfig
from avjax.models.parameters import fill, parameter_paths

ROW_BYTES = 16 * 2**20  # a parameter that does not stack is moved in rows of about this size


@dataclasses.dataclass(frozen=True)
class Part:
    """One source tensor's place in a parameter."""

    places: tuple[int, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter to assemble: its rule, and its tensors in order."""

    rule: Rule
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Part, ...]
    reader: Source

    @property
    def part_shape(self) -> tuple[int, ...]:
        return self.shape[len(self.parts[0].places) :]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def blocks(self) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
        """(index into the parameter, values), covering it once; only one block is in memory at a time."""
        left, right = (side.strip() for side in self.rule.axes.split("->"))
        for part in self.parts:
            if part.places or left != right:
                yield part.places, self.rule.to_target(self.reader.read(part.source), self.part_shape)
                continue
            rows = self.rows_per_block
            for start in range(0, self.shape[0], rows):
                stop = min(start + rows, self.shape[0])
                yield (slice(start, stop),), self.reader.read_rows(part.source, start, stop)

    @property
    def rows_per_block(self) -> int:
        return max(1, int(ROW_BYTES // max(1, self.nbytes // self.shape[0])))

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """How the parameter is cut on disk: one chunk per block."""
        places = len(self.parts[0].places)
        left, right = (side.strip() for side in self.rule.axes.split("->"))
        if places or left != right:
            return (*(1,) * places, *self.part_shape)
        return (min(self.rows_per_block, self.shape[0]), *self.shape[1:])

    def assemble(self) -> np.ndarray:
        """The whole parameter in memory."""
        array = np.empty(self.shape, self.dtype)
        for index, block in self.blocks():
            array[index] = block
        return array


@dataclasses.dataclass(frozen=True)
class Matching:
    """Every parameter of a network, and how the source was written."""

    parameters: Mapping[str, Parameter]
    naming: Naming
    aliases: tuple[str, ...]  # repeated tensors that the source spells out
    skipped: int

    @property
    def prefix(self) -> str:
        return self.naming.prefix

    @property
    def largest(self) -> int:
        """Bytes of the largest parameter."""
        return max(p.nbytes for p in self.parameters.values())

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parameters.values())


def match_parameters(source: Source, config: ModelConfig) -> Matching:
    """Matches every source tensor with its place.

    Raises:
      CheckpointError: tensors that no rule reads, parameters that nothing fills, and tensors of the wrong shape or
        dtype, all in one message.
    """
    table = family_of(config).key_table(config)
    unread = {name for name in source.tensors if not table.skips(name)}
    naming = read_naming(table, unread)
    skipped = len(source.tensors) - len(unread)
    problems: list[str] = []
    parameters: dict[str, Parameter] = {}
    targets = parameter_paths(abstract_network(config))
    for rule in table.rules:
        leaf = targets.pop(rule.target)
        parameter = _match(rule, tuple(leaf.shape), source, naming, unread, problems)
        if parameter is not None:
            parameters[rule.target] = parameter
    problems += [f"{target}: no rule fills this parameter" for target in targets]
    aliases = [alias for alias in table.aliases if naming.spelled(alias) in unread]
    for alias in aliases:
        unread.remove(naming.spelled(alias))
        problems += _alias_problems(source, naming.spelled(alias), naming.spelled(table.aliases[alias]))
    problems += [f"{name}: no rule reads this tensor" for name in sorted(unread)]
    if problems:
        shown = "\n  ".join(problems)
        raise CheckpointError(
            f"{source.directory}: the conversion would be incomplete:\n  {shown}\n"
            "Check that config.json and the weights are of the same checkpoint."
        )
    return Matching(parameters, naming, tuple(aliases), skipped)


def _match(
    rule: Rule, shape: tuple[int, ...], source: Source, naming: Naming, unread: set[str], problems: list[str]
) -> Parameter | None:
    num_layers = shape[0] if "{l}" in rule.source else 0
    parts = [Part(places, naming.spelled(name)) for places, name in rule.entries(num_layers)]
    expected = rule.source_shape(shape[len(parts[0].places) :])
    absent = [part.source for part in parts if part.source not in source.tensors]
    if absent:
        more = f" ({len(absent)} in all)" if len(absent) > 1 else ""
        problems.append(f"{rule.target}: source tensor {absent[0]!r} is absent{more}")
    present = [part for part in parts if part.source in source.tensors]
    unread.difference_update(part.source for part in present)
    for part in present:
        got = source.tensors[part.source].shape
        if got != expected:
            problems.append(f"{part.source}: expected shape {list(expected)}, got {list(got)}")
    dtypes = {source.tensors[part.source].dtype for part in present}
    if len(dtypes) > 1:
        problems.append(f"{rule.target}: its tensors have several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    if absent or not dtypes:
        return None
    return Parameter(rule, shape, dtypes.pop(), tuple(parts), source)


def _alias_problems(source: Source, alias: str, original: str) -> list[str]:
    if original not in source.tensors:
        return []
    a, b = source.tensors[alias], source.tensors[original]
    if a.shape == b.shape and a.dtype == b.dtype:
        rows = max(1, ROW_BYTES // max(1, b.dtype.itemsize * b.shape[-1]))
        spans = [(start, min(start + rows, b.shape[0])) for start in range(0, b.shape[0], rows)]
        # Compared as bits: NaN payloads and signed zeros count.
        if all(source.read_rows(alias, *s).tobytes() == source.read_rows(original, *s).tobytes() for s in spans):
            return []
    return [f"{alias}: the config ties it to {original}, but their values differ; set tie_word_embeddings to false"]


def to_network(source: Source, config: ModelConfig, dtype: str, mesh: Mesh | None = None) -> Any:
    """The network with the source's parameters, cast to `dtype`, on their places on the mesh or the default device."""
    plan = match_parameters(source, config)
    arrays = {path: _placed(path, p.assemble(), dtype, mesh) for path, p in plan.parameters.items()}
    source.close()
    return fill(abstract_network(config, dtype), arrays)


def _placed(path: str, values: np.ndarray, dtype: str, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return on_device(values, jnp.dtype(dtype))
    sharding = parameter_sharding(path, values.shape, mesh)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part].astype(jnp.dtype(dtype)))
