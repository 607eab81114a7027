"""What decides the numbers of a run, as plain values and as digests of them."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.checkpoint.files import checkpoint_files
from avjax.devices.mesh import whole
from avjax.edits.edits import Edit
from avjax.edits.json_forms import to_json
from avjax.metrics import Metric
from avjax.model import Model
from avjax.models import numerics
from avjax.models.config import read_json
from avjax.prompts.prompt import Prompt

SEEDS = (0x9E3779B9, 0x7F4A7C15)
SMALL = 2**26  # bytes of a parameter whose checksum the host computes


def digest(*values: Any) -> str:
    """32 hexadecimal digits of plain values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def checkpoint_digest(directory: Path) -> str:
    """The digest of all that a model reads of its directory, names and bytes; a second per GB.

    Raises:
      ValueError: there is nothing to read.
    """
    files = checkpoint_files(directory)
    if not files:
        raise ValueError(f"{directory}: expected a checkpoint, got a directory without files")
    names = sorted(p.relative_to(directory).as_posix() for p in files)
    return digest([[name, file_digest(directory / name)] for name in names])


def metric_json(metric: Metric) -> dict[str, Any]:
    """A metric as plain values; one of the user's own with a digest of its source and its base classes'.

    What it calls elsewhere is not part of it: give the metric another name when that changes.

    Raises:
      TypeError: it is no dataclass, or a field has no JSON form.
    """
    kind = type(metric)
    if not dataclasses.is_dataclass(metric):
        raise TypeError(f"metrics: expected a dataclass, whose results can be stored, got {kind.__name__}; make it one")
    form = {"metric": f"{kind.__module__}.{kind.__qualname__}"}
    form |= {field.name: to_json(getattr(metric, field.name)) for field in dataclasses.fields(metric)}
    if not kind.__module__.startswith("avjax."):
        try:
            classes = [c for c in kind.__mro__ if c is not object and not c.__module__.startswith("avjax.")]
            source = [inspect.getsource(c) for c in classes]
        except (OSError, TypeError) as error:
            raise TypeError(
                f"metrics: the source of {kind.__name__} cannot be read, so a change to it would go unnoticed; "
                "define it in a module to store its results"
            ) from error
        form["source"] = digest(source)
    return form


def model_identity(model: Model) -> dict[str, Any]:
    """What identifies a loaded model: its parameters and settings as they are now, and how it computes."""
    directory, host = Path(model.host.source), model.host
    leaves = jax.tree.leaves(model.network)
    return {
        "checkpoint": checkpoint_digest(directory),
        "parameters": digest([[str(x.dtype), *x.shape, *_checksum(x)] for x in leaves]),
        "settings": digest(repr(model.config), repr(host.generation)),
        "family": read_json(directory / "config.json").get("model_type", model.config.family),
        "dtype": str(model.dtype),
        "numerics": numerics.VERSION,
    }


def _checksum(leaf: jax.Array) -> list[int]:
    """Two numbers of 32 bits, of every value and its place; integers are summed, so that no order matters."""
    if leaf.is_fully_addressable and leaf.nbytes <= SMALL:  # not worth a program for each shape
        return _checksum_on_host(np.asarray(leaf))
    return np.asarray(_checksum_on_devices(leaf)).tolist()


@jax.jit
def _checksum_on_devices(leaf: jax.Array) -> jax.Array:
    place = jnp.uint32(0)
    for dim, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, dim)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    mixed = [_mixed(bits + _mixed(place + jnp.uint32(seed))) for seed in SEEDS]
    return whole(jnp.stack([jnp.sum(values, dtype=jnp.uint32) for values in mixed]))


def _checksum_on_host(leaf: np.ndarray) -> list[int]:
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[leaf.dtype.itemsize]
    bits = np.ascontiguousarray(leaf).reshape(-1).view(unsigned).astype(np.uint32)
    place = np.arange(len(bits), dtype=np.uint32)
    mixed = [_mixed(bits + _mixed(place + np.uint32(seed))) for seed in SEEDS]
    return [int(values.sum(dtype=np.uint32)) for values in mixed]


def _mixed(x: Any) -> Any:
    """Each bit of the result depends on every bit; the last steps of MurmurHash3 (Appleby 2011), which lose nothing."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def edits_digest(edits: Sequence[Edit]) -> str:
    """The digest of a cell's edits on one sample.

    Raises:
      TypeError: one has no form that can be compared, such as a patch from a run.
    """
    return digest([[type(e).__name__, *[_plain(getattr(e, f.name)) for f in dataclasses.fields(e)]] for e in edits])  # pyright: ignore[reportArgumentType]


def prompt_digest(prompt: Prompt) -> str:
    """The digest of what the decoder sees of a prompt, and of all that a selector reads of it."""
    layout = (prompt.kinds, prompt.roles, prompt.special, prompt.seconds, prompt.frames)
    return digest(prompt.fingerprint.hex(), [_array(np.asarray(values)) for values in layout])


def _plain(value: Any) -> Any:
    if isinstance(value, Prompt):
        return {"prompt": prompt_digest(value)}
    return {"array": _array(value)} if hasattr(value, "shape") and getattr(value, "ndim", 0) else to_json(value)


def _array(value: Any) -> list[Any]:
    array = np.ascontiguousarray(value)
    return [str(array.dtype), *array.shape, hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()]


def block_digest(run: str, sample: str, place: int, cells: Sequence[str], clean: bool) -> str:
    """The name of a block: of all that decides the values of its cells, and of its place in the grid."""
    return digest(run, sample, place, list(cells), clean)[:16]


def owner(about: Mapping[str, Any], sample: Any) -> str:
    """Of a run, by its `run.json`, and one of its samples: what its parts say that they are of."""
    return digest(about.get("identity"), str(sample), about.get("samples", {}).get(str(sample)))


def cell_key(run: str, sample: str, cell: str) -> str:
    """The key of a cell: of all that decides its values.

    Args:
      run, sample, cell: digests of what all cells share, of the sample, and of the edits; "clean" for none.
    """
    return hashlib.blake2b(f"{run}|{sample}|{cell}".encode(), digest_size=16).hexdigest()
