"""Checkpoints from disk: an Orbax directory that the converters wrote, or a Hugging Face one, converted in memory."""

from pathlib import Path

from jax.sharding import Mesh

from avjax.checkpoint.builtin import builtin_directory
from avjax.checkpoint.generation_defaults import read_generation_defaults
from avjax.checkpoint.huggingface import find_directory, open_source
from avjax.checkpoint.matching import to_network
from avjax.checkpoint.orbax import PARAMS
from avjax.devices.mesh import checked_mesh
from avjax.families.registry import read_config
from avjax.media.options import read_options
from avjax.model import Host, Model
from avjax.models.config import ModelConfig, read_json
from avjax.models.network import Network
from avjax.nearest import did_you_mean
from avjax.prompts.processor import Processor

DTYPES = ("float32", "bfloat16")


def load(path: str | Path, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """A model from a converted checkpoint, a Hugging Face directory, or a hub id where the network allows.

    Args:
      path: a directory, a hub id, or a built-in checkpoint, "tiny-av" or "tiny-vl".
      dtype: of parameters and computation, "float32" or "bfloat16".
      mesh: devices in up to three axes, "data" (samples of a sweep are dealt over it), "variant" (variants of a prompt
        are cut over it) and "model" (heads, features and the vocabulary are): each array is read straight onto its
        place. None is the default device. Numbers do not depend on it, beyond rounding. In several processes
        (`jax.distributed`) all of them call `run`, `generate`, `sweep` alike; other analyses want one process.

    Raises:
      ValueError: the checkpoint is not understood; everything wrong with it is named together.
      FileNotFoundError: there is no such directory and no such model on the hub.
    """
    if not isinstance(path, str | Path):
        raise TypeError(
            f"load: expected a directory, a hub id, or a built-in checkpoint such as 'tiny-av', got {path!r}"
        )
    if dtype not in DTYPES:
        hint = did_you_mean(dtype, DTYPES)
        raise ValueError(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}{hint}")
    mesh = None if mesh is None else checked_mesh(mesh)
    directory = builtin_directory(path) or Path(path)
    if (directory / PARAMS).is_dir():
        config = read_config(read_json(directory / "config.json"))
        from avjax.checkpoint.restoring import restore  # Orbax takes a second to import

        return assemble_model(restore(directory / PARAMS, config, dtype, mesh), config, directory)
    source = open_source(path)
    config = read_config(source.config)
    return assemble_model(to_network(source, config, dtype, mesh), config, source.directory)


def load_processor(path: str | Path) -> Processor:
    """A checkpoint's tokenizer and media options, without its weights."""
    directory = find_directory(path, weights=False)[0]
    config = read_config(read_json(directory / "config.json"))
    return Processor(directory, config, read_options(directory, config))


def assemble_model(network: Network, config: ModelConfig, directory: Path) -> Model:
    """A model from its parts; `directory` holds the tokenizer, preprocessor and generation files."""
    processor = Processor(directory, config, read_options(directory, config))
    host = Host(
        processor=processor,
        generation=read_generation_defaults(directory),
        source=str(directory),
    )
    return Model(network=network, config=config, host=host)
