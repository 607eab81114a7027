"""safetensors files read and written as bytes, so that a comparison sees bits and not some library's idea of them."""

import dataclasses
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

INDEX = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1}


@dataclasses.dataclass(frozen=True)
class RawTensor:
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_raw(directory: Path) -> dict[str, RawTensor]:
    """Every tensor in a directory's shards; a name may occur once."""
    found: dict[str, RawTensor] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        content = shard.read_bytes()
        (header_size,) = struct.unpack("<Q", content[:8])
        body = content[8 + header_size :]
        for name, entry in json.loads(content[8 : 8 + header_size]).items():
            if name != "__metadata__":
                assert name not in found
                start, stop = entry["data_offsets"]
                found[name] = RawTensor(entry["dtype"], tuple(entry["shape"]), body[start:stop])
    return found


def write_header(file: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """What comes before the tensors' bytes, from each one's dtype and shape."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)


def write_raw(path: Path, tensors: Mapping[str, RawTensor]) -> None:
    with path.open("wb") as file:
        write_header(file, {name: (t.dtype, t.shape) for name, t in tensors.items()})
        for tensor in tensors.values():
            file.write(tensor.data)


def write_weights(directory: Path, tensors: Mapping[str, RawTensor], num_shards: int = 1) -> None:
    """Writes one file, or several with an index; tensors are dealt out in turn, so that stacks span shards."""
    if num_shards == 1:
        write_raw(directory / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(num_shards):
        shard = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        mine = names[i::num_shards]
        write_raw(directory / shard, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def copy_without_weights(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target / path.name)
    return target


def rewritten(
    source: Path,
    target: Path,
    change: Callable[[dict[str, RawTensor]], dict[str, RawTensor]],
    num_shards: int = 1,
) -> Path:
    """A copy of a checkpoint whose tensors went through `change`."""
    copy_without_weights(source, target)
    write_weights(target, change(read_raw(source)), num_shards)
    return target


def edit_config(directory: Path, change: Callable[[dict], dict]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def file_names(directory: Path, without: Iterable[str] = (".safetensors",)) -> set[str]:
    """Names of the files that are not weights."""
    return {p.name for p in directory.iterdir() if p.is_file() and p.suffix not in without and p.name != INDEX}
