"""Activations of unedited prompts, found when they are needed and not before."""

import collections

import jax
import jax.numpy as jnp

from avjax.engine.reference import bucket, logits_at, pad_inputs
from avjax.model import Model
from avjax.models.sites import Site
from avjax.prompt import Prompt

KEPT = 2  # a source and the prompt itself; more would hold every sample of a sweep


class CleanRuns:
    """The sites of clean passes over prompts; the last few that were asked for are kept."""

    def __init__(self, model: Model):
        self.model = model
        # A value holds its prompt, so that an id stays that prompt's.
        self.held: collections.OrderedDict[tuple[int, Site], tuple[Prompt, jax.Array]] = collections.OrderedDict()

    def __call__(self, prompt: Prompt, site: Site) -> jax.Array:
        """[L, T, ...], or [T, D] of the embedding, in the compute dtype."""
        key = (id(prompt), site)
        if key not in self.held:
            self.held[key] = (prompt, clean_site(self.model, prompt, site))
            if len(self.held) > KEPT:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        return self.held[key][1]


def clean_site(model: Model, prompt: Prompt, site: Site) -> jax.Array:
    """One site in a clean pass over a prompt."""
    inputs = pad_inputs(model.encode(prompt), bucket(len(prompt)))
    _, seen = logits_at(model.network.decoder, inputs, None, jnp.zeros(1, jnp.int32), capture=(site,))
    axis = 0 if site is Site.EMBED else 1
    return jax.lax.slice_in_dim(seen[site], 0, len(prompt), axis=axis)
