"""Checkpoints from disk: an Orbax directory that the converters wrote, or a Hugging Face one, converted in memory."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from avjax.assets.builtin import builtin_directory
from avjax.config import ModelConfig, read_config, read_json
from avjax.devices.mesh import checked_mesh, parameter_sharding
from avjax.media.options import read_options
from avjax.model import GenerationDefaults, Host, Model
from avjax.nearest import did_you_mean
from avjax.parameters import PARAMS, Network, abstract_network, check_stored, fill, nested, parameter_paths, quiet_orbax
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
        return assemble_model(_restore(directory / PARAMS, config, dtype, mesh), config, directory)
    # Besides the command line, only this and `load_processor` call the converters.
    from converters.convert import to_network
    from converters.source import open_source

    source = open_source(path)
    config = read_config(source.config)
    return assemble_model(to_network(source, config, dtype, mesh), config, source.directory)


def load_processor(path: str | Path) -> Processor:
    """A checkpoint's tokenizer and media options, without its weights."""
    from converters.source import find_directory

    directory = find_directory(path, weights=False)[0]
    config = read_config(read_json(directory / "config.json"))
    return Processor(directory, config, read_options(directory, config))


def _restore(directory: Path, config: ModelConfig, dtype: str, mesh: Mesh | None) -> Network:
    import orbax.checkpoint as ocp

    from avjax.restoring import few_chunks_at_a_time

    network = abstract_network(config, dtype)
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parameter_sharding(path, leaf.shape, mesh))
        for path, leaf in parameter_paths(network).items()
    }
    tree = nested(wanted)
    check_stored(directory, config)
    try:
        handler = ocp.PyTreeCheckpointHandler(
            restore_concurrent_gb=_at_a_time(directory), type_handler_registry=few_chunks_at_a_time()
        )
        with quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
            restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
            args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args)  # pyright: ignore[reportCallIssue]
            found = checkpointer.restore(directory.absolute(), args=args)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            advice = "there is too little memory; load it in bfloat16, or onto a mesh of more devices"
        else:
            advice = "convert the checkpoint again"
        raise ValueError(f"{directory}: a parameter cannot be read ({error}); {advice}") from error
    return fill(network, parameter_paths(found))


def _at_a_time(directory: Path) -> int:
    """GB that are read at a time: what the largest array needs, and no more, since it is held twice meanwhile."""
    stored = [read_json(path) for path in directory.glob("*/.zarray")]
    return max(math.prod(array["shape"]) * jnp.dtype(array["dtype"]).itemsize for array in stored) // 10**9 + 1


def assemble_model(network: Network, config: ModelConfig, directory: Path) -> Model:
    """A model from its parts; `directory` holds the tokenizer, preprocessor and generation files."""
    processor = Processor(directory, config, read_options(directory, config))
    host = Host(
        processor=processor,
        generation=_generation(directory),
        source=str(directory),
    )
    return Model(network=network, config=config, host=host)


# Settings that change HF's greedy decoding, with the value that leaves it alone.
GREEDY = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": {},
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
}


def _generation(directory: Path) -> GenerationDefaults:
    """What HF's greedy decoding takes from a checkpoint's files.

    In a whole Omni model the thinker generates, and HF makes its settings from `thinker_config` alone: neither the
    directory's generation config nor the outer config reaches it. Where it names no stop token, HF goes on to the
    limit; here those of the generation config end a caption.
    """
    config = read_json(directory / "config.json")
    path = directory / "generation_config.json"
    own: dict[str, Any] = read_json(path) if path.is_file() else {}
    if thinker := config.get("thinker_config"):
        return _defaults([*_with_text(thinker), own, *_with_text(config)], _with_text(thinker))
    # Without a generation config, HF takes these settings from the model's config, outermost first.
    return _defaults([own, *_with_text(config)], [own]) if own else _defaults(_with_text(config), _with_text(config))


def _with_text(section: dict[str, Any]) -> list[dict[str, Any]]:
    return [section, section.get("text_config") or {}]


def _defaults(sections: list[dict[str, Any]], settings: list[dict[str, Any]]) -> GenerationDefaults:
    """Stop tokens from the first of `sections` that has them, all else from `settings`."""

    def find(key: str, places: list[dict[str, Any]]) -> Any:
        return next((place[key] for place in places if place.get(key) is not None), None)

    stop = find("eos_token_id", sections)
    penalty = find("repetition_penalty", settings)
    return GenerationDefaults(
        stop_tokens=() if stop is None else (stop,) if isinstance(stop, int) else tuple(stop),
        repetition_penalty=1.0 if penalty is None else float(penalty),
        unsupported=tuple(
            f"{key}={value!r}"
            for key, leaves_alone in GREEDY.items()
            if (value := find(key, settings)) not in (None, leaves_alone)
        ),
    )
