"""Encoder outputs kept on disk, so that a clip is encoded once for all processes and runs.

A file is named by what decides its values: the clip's features, the tower's parameters and configuration, the dtype and
how avjax computes. Its bytes begin with their own digest; a file that is damaged is as good as absent, and is written
again.
"""

import hashlib
import json
import logging
import os
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.devices.disk import ENCODING_BYTES, trim
from avjax.models import numerics

log = logging.getLogger(__name__)
DIGEST = 16  # bytes
ENDING = ".encoded"  # nothing else in the directory is ever removed

_directory: Path | None = None
_max_bytes = ENCODING_BYTES
# By host and tower: its parameters and their digest.
_towers: "weakref.WeakKeyDictionary[Any, dict[str, tuple[list[jax.Array], str]]]" = weakref.WeakKeyDictionary()


def cache_encodings(directory: str | Path | None, max_bytes: int = ENCODING_BYTES) -> None:
    """Keeps encoder outputs in `directory` and takes them from there, in this process from now on.

    Args:
      directory: made when it is not there; None keeps nothing on disk.
      max_bytes: of encoder outputs; beyond, those that were not read for longest are removed. Other files stay.
    """
    global _directory, _max_bytes
    path = None if directory is None else Path(directory).expanduser()
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
    _directory, _max_bytes = path, max_bytes


def same_buffers(a: jax.Array, b: jax.Array) -> bool:
    """Whether two arrays are one in memory, such as an array's part on a slice of its mesh and the same made again."""
    if a.is_deleted() or b.is_deleted():  # donated to another program
        return False
    if a is b:
        return True
    places = [[(s.device, s.data.unsafe_buffer_pointer()) for s in array.addressable_shards] for array in (a, b)]
    return a.shape == b.shape and places[0] == places[1]


def cached_encoding(
    host: Any, tower: str, parameters: Any, dtype: jnp.dtype, clip: bytes, encode: Callable[[], jax.Array]
) -> jax.Array:
    """An encoder output, from disk when it was computed before, else from `encode`.

    Args:
      host: of the model.
      tower: its name, "vision" or "audio".
      parameters: the tower, with its configuration; None when the model has none, which `encode` refuses.
      dtype: that it computes in.
      clip: a digest of the features.
    """
    leaves = jax.tree.leaves(parameters)
    if _directory is None or parameters is None or not all(leaf.is_fully_addressable for leaf in leaves):
        return encode()

    known = _towers.setdefault(host, {})
    # A model that is made from another one has its host, but may have other parameters.
    if tower not in known or not all(map(same_buffers, known[tower][0], leaves)):
        known[tower] = (leaves, _of_parameters(leaves))
    state = hashlib.blake2b(clip, digest_size=DIGEST)
    device = f"{jax.__version__} {leaves[0].devices().pop().device_kind}"
    state.update(f"{numerics.VERSION} {device} {tower} {parameters.cfg} {dtype} {known[tower][1]}".encode())
    path = _directory / f"{state.hexdigest()}{ENDING}"
    if (cached := _read(path)) is not None:
        return cached
    encoding = encode()
    try:
        _write(path, encoding)
        trim(_directory, f"*{ENDING}", _max_bytes)
    except OSError as error:  # a full disk costs time, not results
        log.warning("%s: cannot cache encoder outputs (%s)", _directory, error)
    return encoding


def _of_parameters(leaves: list[jax.Array]) -> str:
    """Of all values; a second per GB, once per model."""
    state = hashlib.blake2b(digest_size=DIGEST)
    for leaf in leaves:
        state.update(f"{leaf.dtype} {leaf.shape}".encode())
        state.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return state.hexdigest()


def _read(path: Path) -> jax.Array | None:
    try:
        data = path.read_bytes()
        os.utime(path)  # it was read now
    except OSError:
        return None
    if hashlib.blake2b(data[DIGEST:], digest_size=DIGEST).digest() != data[:DIGEST]:
        log.warning("%s: damaged cache file; ignored and rewritten", path)
        return None
    header, _, values = data[DIGEST:].partition(b"\n")
    described = json.loads(header)
    return jnp.asarray(np.frombuffer(values, jnp.dtype(described["dtype"])).reshape(described["shape"]))


def _write(path: Path, tokens: jax.Array) -> None:
    values = np.ascontiguousarray(tokens)
    header = json.dumps({"dtype": str(values.dtype), "shape": values.shape}).encode()
    data = header + b"\n" + values.tobytes()
    partial = path.with_name(f".{uuid.uuid4().hex}{ENDING}")  # what a killed process leaves is trimmed too
    try:
        partial.write_bytes(hashlib.blake2b(data, digest_size=DIGEST).digest() + data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
