"""Every family, by its name and by the `model_type` of its checkpoints."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avjax.families import qwen2_5_omni, qwen2_5_vl
from avjax.families.family import Family
from avjax.families.inert_keys import writer
from avjax.models.config import ModelConfig
from avjax.models.network import Network

FAMILIES = {module.FAMILY.name: module.FAMILY for module in (qwen2_5_omni, qwen2_5_vl)}
BY_MODEL_TYPE = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}


def family_of(config: ModelConfig) -> Family:
    """The family of an architecture."""
    return FAMILIES[config.family]


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The architecture that a Hugging Face `config.json` describes.

    Every key is read, known to leave the forward pass alone, or refused together with the others that nobody
    understands.

    Args:
      raw: the parsed JSON of a Qwen2.5-Omni checkpoint (whole or thinker alone) or a Qwen2.5-VL checkpoint.

    Raises:
      ValueError: the family is unknown, a key is missing, or a key that no model reads has a non-default value;
        all such keys are named together.
    """
    family = BY_MODEL_TYPE.get(str(raw.get("model_type")))
    if family is None:
        *others, last = map(repr, BY_MODEL_TYPE)
        raise ValueError(
            f"config: expected model_type {', '.join(others)} or {last}, got {raw.get('model_type')!r}; "
            "other families can enter as embeddings through model.prompt_from_embeddings"
        )
    problems: list[str] = []
    config = family.read(raw, writer(raw), problems)
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(
            f"config: {len(problems)} key(s) would change the model in a way that is not implemented:\n  {listing}\n"
            "Remove the key if it has no effect on the forward pass, or open an issue naming the checkpoint."
        )
    return config


def abstract_network(config: ModelConfig, dtype: str = "float32") -> Network:
    """The network's tree with shapes in place of arrays; nothing is allocated."""
    network = jax.eval_shape(lambda: family_of(config).network(config))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), network)
