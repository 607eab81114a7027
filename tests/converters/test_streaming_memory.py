"""Peak memory of a conversion, an export and a load, measured on a checkpoint of more than 4 GB.

Needs 14 GB of disk and 9 GB of memory under pytest's base directory (`--basetemp`) and some minutes:
`pytest -m large -n 0`.
"""

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from avjax.checkpoint.huggingface import open_source
from avjax.checkpoint.matching import match_parameters
from avjax.families.registry import abstract_network, read_config
from avjax.models.parameters import parameter_paths
from sweeps.train_tiny.files import write_preprocessor, write_tokenizer
from tests.converters import published
from tests.converters.raw import INDEX, write_header
from tests.tiny_hf import CLASSES, hf_config

SHARD_BYTES = 512 * 10**6
# Seven matrices of equal size per layer, so that the largest stack is about an eighth of the whole.
TEXT = {
    "vocab_size": 100_000,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 60,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}

pytestmark = pytest.mark.large


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of random bfloat16 bits in several shards, written a tensor at a time."""
    directory = tmp_path_factory.mktemp("large")
    source = directory / "source"
    source.mkdir()
    write_preprocessor(source)
    raw = hf_config(write_tokenizer(source))
    raw["text_config"] = TEXT
    raw["vision_config"]["out_hidden_size"] = raw["audio_config"]["output_dim"] = TEXT["hidden_size"]
    (source / "config.json").write_text(json.dumps(raw))
    write_random(
        source, published.shapes(CLASSES["qwen2_5_omni"][0](**{k: v for k, v in raw.items() if k != "model_type"}))
    )
    yield source
    shutil.rmtree(directory)


def write_random(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(2 * math.prod(s) for s in shards[-1].values()) + 2 * math.prod(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    rng, weight_map = np.random.default_rng(0), {}
    for i, shard in enumerate(shards):
        file_name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        with (directory / file_name).open("wb") as file:
            write_header(file, {name: ("BF16", shape) for name, shape in shard.items()})
            for shape in shard.values():
                file.write(rng.bytes(2 * math.prod(shape)))
        weight_map |= dict.fromkeys(shard, file_name)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def digests(directory: Path) -> dict[str, str]:
    """A hash of every tensor's bytes, read one at a time."""
    found = {}
    for shard in directory.glob("*.safetensors"):
        with shard.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            for name, entry in json.loads(file.read(size)).items():
                if name != "__metadata__":
                    start, stop = entry["data_offsets"]
                    file.seek(8 + size + start)
                    found[name] = hashlib.blake2b(file.read(stop - start)).hexdigest()
    return found


def measure(*arguments: str | Path) -> dict[str, int]:
    """The figures of one call in a process of its own."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.converters.measured", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments[0]}: " + ", ".join(f"{name} {value / 1e6:,.0f} MB" for name, value in figures.items()))
    return figures


def test_memory_stays_within_one_stack_and_one_shard(large: Path):
    source = open_source(large)
    plan = match_parameters(source, read_config(source.config))
    shard = max(path.stat().st_size for path in large.glob("*.safetensors"))
    bound = plan.largest + shard
    print(
        f"\nparameters {plan.nbytes / 1e6:,.0f} MB, largest {plan.largest / 1e6:,.0f} MB, shard {shard / 1e6:,.0f} MB"
    )
    assert plan.nbytes >= 4 * 10**9
    assert bound < plan.nbytes / 3, "the bound must tell streaming from loading everything"

    converted, back = large.parent / "converted", large.parent / "back"
    forth = measure("convert", large, converted)
    assert forth["peak"] <= bound
    assert forth["file_mapped"] <= shard, "one shard is mapped at a time"

    loaded = measure("load", converted)
    cut = measure("load_mesh", converted)
    assert plan.nbytes <= cut["peak"] <= 1.25 * plan.nbytes, "each array goes straight onto its place on the mesh"
    measure("load", large)
    measure("export", converted, back)
    assert digests(back) == digests(large)
    assert loaded["peak"] >= plan.nbytes, "a loaded model is whole in memory, or this measures nothing"


def test_the_shape_of_the_large_checkpoint(large: Path):
    """Its towers are small, so nearly all of it is the decoder's stacks and the two embeddings."""
    config = read_config(json.loads((large / "config.json").read_text()))
    sizes = {path: math.prod(leaf.shape) for path, leaf in parameter_paths(abstract_network(config)).items()}
    decoder = sum(size for path, size in sizes.items() if path.startswith("decoder."))
    assert decoder > 0.99 * sum(sizes.values())
