"""The record of a family: all that the rest of avjax asks of one."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from avjax.families.inert_keys import Version
from avjax.families.key_rules import Table
from avjax.families.token_runs import MediaShapes, PositionRule, TokenRun
from avjax.models.config import ModelConfig
from avjax.models.network import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints.

    Attributes:
      name: as `ModelConfig.family` has it.
      model_types: of the `config.json` that it reads.
      network: the class of its network.
      read: the architecture from the parsed `config.json`, the version of transformers that wrote it, and a list to
        which everything that is not implemented is added.
      token_runs: the tokens of a prompt, run by run, from their ids and the sizes of the media.
      position_rules: the rules of positions that versions of transformers follow for it.
      key_table: which tensors of a checkpoint fill which parameters.
      sampled_frame_times: frames are placed by the rate that they were really sampled at, not by the one asked for.
      requires_step_seconds: Hugging Face cannot run a video without the seconds of its grid steps.
      continues_from_last: a continuation's positions go on from the last token's, not from the largest.
      unread: patterns of tensors that its key table never reads, whatever their dtype.
    """

    name: str
    model_types: tuple[str, ...]
    network: Callable[[ModelConfig], Network]
    read: Callable[[Mapping[str, Any], Version | None, list[str]], ModelConfig]
    token_runs: Callable[[np.ndarray, MediaShapes, ModelConfig, PositionRule], Iterable[TokenRun]]
    position_rules: tuple[PositionRule, ...]
    key_table: Callable[[ModelConfig], Table]
    unread: tuple[str, ...]
    sampled_frame_times: bool = False
    requires_step_seconds: bool = False
    continues_from_last: bool = False
