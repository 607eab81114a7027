"""A Hugging Face checkpoint on disk: its config, and its tensors by name across shards, read one at a time."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from avjax.checkpoint.builtin import BUILT_IN, builtin_directory
from avjax.checkpoint.refused_formats import CheckpointError, refuse_gguf, refuse_other_formats, refuse_quantized
from avjax.families.registry import FAMILIES
from avjax.models.config import read_json
from avjax.nearest import did_you_mean

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
UNREAD = re.compile(
    "|".join(dict.fromkeys(p for family in FAMILIES.values() for p in family.unread))
)  # tensors that no table reads, whatever their dtype
WEIGHTS = "*.safetensors"
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "LICENSE*", "NOTICE*", "README.md")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    shard: Path
    shape: tuple[int, ...]
    dtype: np.dtype  # bytes where nothing reads the tensor


class Source:
    """Tensors are read through one open shard at a time, so that at most one shard occupies the page cache."""

    def __init__(self, directory: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], revision: str | None):
        self.directory, self.config, self.tensors, self.revision = directory, config, tensors, revision
        self._open: tuple[Path, Any] | None = None

    def read(self, name: str) -> np.ndarray:
        """The tensor as a fresh array in its own dtype."""
        return self._slice(name)[...]

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of the first axis."""
        return self._slice(name)[start:stop]

    def close(self) -> None:
        self._open = None

    def _slice(self, name: str) -> Any:
        shard = self.tensors[name].shard
        if self._open is None or self._open[0] != shard:
            self._open = None  # unmaps the last shard before the next one is mapped
            self._open = (shard, safe_open(shard, framework="numpy"))
        return self._open[1].get_slice(name)


def open_source(path: str | Path) -> Source:
    """A checkpoint from a directory, a built-in name, or the hub when the path looks like `org/name` instead.

    Raises:
      FileNotFoundError: neither exists, or the hub cannot be reached.
      CheckpointError: the config, an index or a shard is missing or damaged; all of them are named.
    """
    directory, revision = find_directory(path)
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{directory}: expected config.json, found none; is this a checkpoint's directory?")
    config = _read_object(config_path)
    return Source(directory, config, _tensors(directory, config), revision or config.get("_commit_hash"))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _read_index(path: Path) -> dict[str, str]:
    """Tensor names to shards; empty where there is no index."""
    if not path.is_file():
        return {}
    weight_map = _read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expected tensors and their shards in weight_map, got none; copy it again")
    return weight_map


def find_directory(path: str | Path, *, weights: bool = True) -> tuple[Path, str | None]:
    """A checkpoint's directory, and its revision when it came from the hub; there without `weights` if asked.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it holds something else, such as an adapter.
    """
    directory = builtin_directory(path) or Path(path)
    if directory.suffix == ".gguf" and directory.is_file():
        refuse_gguf(directory, directory.name)
    directory, revision = (directory, None) if directory.is_dir() else _download(str(path), weights)
    refuse_other_formats(directory)
    return directory, revision


def _download(name: str, weights: bool) -> tuple[Path, str | None]:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(
            f"{name}: no such directory; expected a checkpoint's directory, a hub id such as org/name, or a built-in "
            f"checkpoint, {' or '.join(BUILT_IN)}{did_you_mean(name, BUILT_IN)}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        directory = Path(snapshot_download(name, allow_patterns=[*SIDE_FILES, *([WEIGHTS] if weights else [])]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise FileNotFoundError(
            f"{name}: no such directory, and no such model on the hub, or no access to it ({type(error).__name__}); "
            "check the name, or download the checkpoint elsewhere and pass its directory"
        ) from error
    return directory, directory.name  # the hub's cache names a snapshot by its commit


def _tensors(directory: Path, config: dict[str, Any]) -> dict[str, TensorInfo]:
    index = _read_index(directory / "model.safetensors.index.json")
    shards = sorted({directory / name for name in index.values()} or directory.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"{directory}: expected *.safetensors, found none; convert .bin or .pt weights first")
    problems: list[str] = []
    headers = {shard: header for shard in shards if (header := _read_header(shard, problems)) is not None}
    dtypes = {name: dtype for header in headers.values() for name, (_, dtype) in header.items()}
    refuse_quantized(directory, config, {name: dtype for name, dtype in dtypes.items() if not UNREAD.fullmatch(name)})
    tensors: dict[str, TensorInfo] = {}
    for shard, header in headers.items():
        for name, (shape, dtype) in header.items():
            if name in tensors:
                problems.append(f"{name}: stored twice, in {tensors[name].shard.name} and {shard.name}")
            if dtype not in DTYPES and not UNREAD.fullmatch(name):
                problems.append(f"{name}: expected a float tensor, got {dtype}")
            tensors[name] = TensorInfo(shard, shape, DTYPES.get(dtype, np.dtype(np.void)))
    problems += [
        f"{name}: the index puts it in {shard}, but it is not there"
        for name, shard in index.items()
        if name not in tensors and directory / shard in headers
    ]
    if problems:
        raise CheckpointError(f"{directory}: the checkpoint is damaged:\n  " + "\n  ".join(problems))
    return tensors


def _read_header(shard: Path, problems: list[str]) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """The shape and the dtype of each tensor in a shard; None where it cannot be read, which becomes a problem."""
    if not shard.is_file():
        problems.append(f"{shard.name}: the index names this shard, but it is missing")
        return None
    header: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        with safe_open(shard, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                header[name] = tuple(part.get_shape()), part.get_dtype()
    except (SafetensorError, OSError) as error:
        problems.append(f"{shard.name}: truncated or damaged ({error}); copy it again")
        return None
    return header
