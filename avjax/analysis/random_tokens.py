"""Random tokens, as many as a group has: what a group is compared with, so that its size alone explains nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import BySample, Selector, select


def select_random(
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    like: Selector | BySample,
    *,
    among: Selector = "video | audio",
    seed: int = 0,
) -> BySample:
    """Random tokens as the selector of an edit: of each sample as many as `like` names, and none of those.

        sinks = select_sinks(found, "video")
        trace(model, clean, corrupt, heard, said, groups=["all", sinks, select_random(clean, sinks)])

    Args:
      like: a selector, or each sample's own positions, such as `select_sinks` returns.
      among: tokens that are drawn from.
      seed: of the draw; a sample's draw depends on its place among the samples, too.

    Raises:
      ValueError: a sample has fewer other tokens than `like` names.
    """
    positions = {}
    for place, (name, prompt) in enumerate(named_prompts(prompts).items()):
        given = select(prompt, like.at(name) if isinstance(like, BySample) else like)[:-1]
        others = np.flatnonzero(select(prompt, among)[:-1] & ~given)
        if len(others) < given.sum():
            raise ValueError(
                f"random tokens: expected at least {given.sum()} {among!r} tokens other than {like} in sample "
                f"{name!r}, got {len(others)}; widen among="
            )
        drawn = np.random.default_rng([seed, place]).choice(others, size=given.sum(), replace=False)
        positions[name] = np.sort(drawn).tolist()
    return BySample.of(positions, f"random like {like}")
