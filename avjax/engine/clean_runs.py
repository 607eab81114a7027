"""Activations of unedited prompts, computed when they are first needed."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from avjax.engine.overflow import refuse_overflow
from avjax.engine.reference import logits_at, pad_inputs
from avjax.model import Model
from avjax.models.buckets import bucket
from avjax.models.sites import Site
from avjax.prompts.compat import Compat, compatible_prompt
from avjax.prompts.prompt import Inputs, Prompt

KEPT = 2  # a source and the prompt itself; more would hold every sample of a sweep


class CleanRuns:
    """The sites of clean passes over prompts; those of the last few prompts that were asked for are kept."""

    def __init__(self, model: Model, compat: Compat | None = None, *, dtype: DTypeLike | None = None):
        """`dtype` is that of activations; None is the model's own."""
        self.model = model
        self.dtype = model.dtype if dtype is None else dtype
        self.compat: Compat | None = compat
        self.expected: dict[int, set[Site]] = {}
        # A value holds its prompt, so that an id stays that prompt's.
        self.held: collections.OrderedDict[int, tuple[Prompt, dict[Site, jax.Array]]] = collections.OrderedDict()

    def expect(self, needs: Iterable[tuple[Prompt, Site]]) -> None:
        """Announces sites that will be needed, so that one pass over a prompt computes them all."""
        for prompt, site in needs:
            self.expected.setdefault(id(prompt), set()).add(site)

    def __call__(self, prompt: Prompt, site: Site) -> jax.Array:
        """[L, T, ...], or [T, D] of the embedding, in the compute dtype."""
        _, activations = self.held.get(id(prompt), (prompt, {}))
        if site not in activations:
            sites = sorted(self.expected.get(id(prompt), set()) | {site})
            captures = clean_sites(self.model, compatible_prompt(prompt, self.compat), sites, self.dtype)
            self.held[id(prompt)] = (prompt, captures)
            if len(self.held) > KEPT:
                self.held.popitem(last=False)
        self.held.move_to_end(id(prompt))
        return self.held[id(prompt)][1][site]


def clean_sites(model: Model, prompt: Prompt, sites: Sequence[Site], dtype: DTypeLike) -> dict[Site, jax.Array]:
    """Sites in a clean pass over a prompt, with activations of a dtype.

    Raises:
      ActivationOverflow: they hold what no norm can square.
    """
    inputs = pad_inputs(as_dtype(model.encode(prompt), dtype), bucket(len(prompt)))
    capture = (*sites, Site.PEAK)
    _, captures = logits_at(model.network.decoder, inputs, None, jnp.zeros(1, jnp.int32), capture=capture)
    refuse_overflow(captures[Site.PEAK][:, : len(prompt)], "clean run of a source prompt")
    axes = {site: 0 if site is Site.EMBED else 1 for site in sites}
    return {site: jax.lax.slice_in_dim(captures[site], 0, len(prompt), axis=axes[site]) for site in sites}


def as_dtype(inputs: Inputs, dtype: DTypeLike) -> Inputs:
    """The same embeddings in another dtype, which all activations after them take; parameters stay as they are."""
    return dataclasses.replace(inputs, embeddings=inputs.embeddings.astype(dtype))
