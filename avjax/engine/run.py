"""`run` and `forward`: one prompt under edits, in one full pass."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from avjax.edits.edits import Edit, for_sample, name_of
from avjax.edits.identities import refuse_identities
from avjax.edits.rules import as_edits
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.overflow import refuse_overflow
from avjax.engine.reference import largest_read, logits_at, pad_inputs, prefill
from avjax.engine.touched import Touched, count_touched
from avjax.model import Model, refuse_no_model
from avjax.models.buckets import bucket
from avjax.models.intervention import Intervention
from avjax.models.sites import Site, parse_site
from avjax.nearest import did_you_mean
from avjax.prompts.compat import Compat, attention_compat, checked_compat, compatible_prompt
from avjax.prompts.prompt import Inputs, Prompt
from avjax.prompts.selectors import Selector, select

POSITIONS_AXIS = {  # others: 1
    Site.EMBED: (0,),
    Site.PATTERN: (2, 3),
    Site.MASS: (2,),
    Site.VALUE_MASS: (2,),
    Site.RECEIVED: (3,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One prompt under one set of edits.

    Attributes:
      logits: float32 [P, V]; next-token logits at the selected positions.
      at: int [P]; those positions.
      captures: by the name that was asked for. [L, T, ...] in the compute dtype; `embed` [T, D]; `pattern`
        [L, N, T, T], `mass` and `value_mass` [L, N, T, M] and `received` [L, N, M, T] in float32. A name with a layer,
        such as "blocks.3.hook_resid_post", gives that layer alone.
      members: bool [M] for each selector of `groups`, the token groups that it is made of: summing `mass` over them
        gives the selector's mass.
      touched: what the edits reached.
      prompt: what was run; a patch from this run aligns by it.
    """

    logits: jax.Array
    at: np.ndarray
    captures: dict[str, jax.Array]
    members: dict[str, np.ndarray]
    touched: Touched
    prompt: Prompt

    @property
    def masses(self) -> dict[str, np.ndarray]:
        """The former name of `members`."""
        return self.members


def run(
    model: Model,
    prompt: Prompt,
    *interventions: Edit | str,
    at: Selector = "last",
    capture: Sequence[str] = (),
    groups: Sequence[Selector] = (),
    compat: Compat | None = None,
    allow_noop: bool = False,
) -> Run:
    """Next-token logits of a prompt under edits that apply together.

    Args:
      interventions: edits or rule strings; none is the clean model.
      at: the positions whose logits are wanted; rows come in prompt order, each position once.
      capture: sites (`avjax.Site`) or TransformerLens names to return; the others cost nothing. "mass" is the attention
        pattern summed over token groups, without a T x T array; "value_mass" weighs it by the norm of each key's value
        (per head, before the output projection); "received" is what each position is paid by the later queries of each
        token group, summed over them; "pattern" is the array itself. "peak" is the largest size of what the norms
        before attention, before the MLP and after the layer are fed.
      groups: selectors whose attention mass is wanted, with capture="mass", "value_mass" or "received".
      compat: "published" treats a query whose every visible key is blocked as the published code does: it attends to
        all keys equally. By default it reads zero. "published-script" is that, and the positions that the published
        script has as it is shipped: a video with its sound is numbered 0, 1, 2 ... on all three axes.
      allow_noop: let an edit touch nothing.

    Raises:
      ValueError: an edit, site or selector does not fit the model or the prompt.
      OverflowError: activations that the logits, or with captures any position, depend on grew beyond float32.
    """
    refuse_no_model(model)
    edits = as_edits(interventions)
    refuse_identities([edits], allow_noop)
    settings = {"groups": [groups] if isinstance(groups, str) else groups, "compat": compat, "allow_noop": allow_noop}
    return run_cell(model, prompt, edits, at=at, capture=capture, **settings)


def run_cell(
    model: Model,
    prompt: Prompt,
    edits: Sequence[Edit],
    *,
    at: Selector = "last",
    capture: Sequence[str] = (),
    groups: Sequence[Selector] = (),
    compat: Compat | None = None,
    allow_noop: bool = False,
) -> Run:
    """`run` of a grid's cell, whose edits may be the neutral point of an axis."""
    model.check(prompt)
    compat = checked_compat(compat, [prompt])
    prompt = compatible_prompt(prompt, compat)
    sites = _sites(capture, model.config.decoder.num_layers)
    masks = {str(g): select(prompt, g) for g in groups}
    lowered = lower(
        prompt,
        model.config.decoder,
        [for_sample(edits)],
        num_decoded=0,
        allow_noop=allow_noop,
        clean=CleanRuns(model, compat),
        selectors=list(masks.values()),
    )
    positions = np.flatnonzero(select(prompt, at)[:-1])
    if not len(positions):
        raise ValueError(f"at={at!r}: the prompt has no such position")
    size = bucket(len(prompt))
    inputs = pad_inputs(model.encode(prompt, lowered.groups), size)
    intervention = lowered.intervention(0, size) if edits else None
    padded = np.resize(positions, 1 << (len(positions) - 1).bit_length())
    wanted = tuple(dict.fromkeys(site for site, _ in sites.values()))
    logits, captures = logits_at(
        model.network.decoder,
        inputs,
        intervention,
        jnp.asarray(padded),
        capture=tuple(dict.fromkeys((*wanted, Site.PEAK))),
        compat=attention_compat(compat),
    )
    largest = _largest_read(captures[Site.PEAK], inputs, None if wanted else jnp.asarray(padded))
    refuse_overflow(largest, name_of(edits))
    captures = {site: _unpadded(site, values, len(prompt)) for site, values in captures.items()}
    return Run(
        logits=logits[: len(positions)],
        at=positions,
        captures={
            name: captures[site] if layer is None else captures[site][layer] for name, (site, layer) in sites.items()
        },
        members={name: lowered.members[mask.tobytes()] for name, mask in masks.items()},
        touched=count_touched(lowered, 0, 0),
        prompt=prompt,
    )


def forward(
    model: Model, inputs: Inputs, intervention: Intervention | None = None, capture: tuple[Site, ...] = ()
) -> tuple[jax.Array, dict[Site, jax.Array]]:
    """Next-token logits [T, V] at every position, and captured sites [L, T, ...].

    Pure: `jit` with `static_argnames="capture"`; `vmap` over stacked interventions with `in_axes=avjax.VARIANTS` for
    `intervention`, which leaves their shared sources alone; `grad` with respect to its factors and scales.

    Nothing pure can refuse its own results, so the check for overflow that `run`, `generate` and `sweep` make is left
    to the caller: where an activation passes 1e17, a norm gives zeros or NaN, and logits follow that mean nothing even
    where they are finite. Capture "peak" and hand it over, outside of `jit` (inside, keep its maximum):

        logits, seen = avjax.forward(model, inputs, intervention, capture=("peak",))
        avjax.refuse_overflow(seen["peak"])

    Args:
      inputs: what `lower_edits` or `model.encode` returns.
      intervention: over the token groups of `inputs`; None reproduces the checkpoint.
      capture: sites; "peak" float32 [L, T, 3] is the largest size of what each norm is fed.
    """
    x, _, captures = prefill(model.network.decoder, inputs, intervention, capture=[Site(site) for site in capture])
    return model.network.decoder.logits(x), captures


def lower_edits(model: Model, prompt: Prompt, *interventions: Edit | str) -> tuple[Inputs, Intervention]:
    """Decoder inputs and the edits over their token groups, for `forward`."""
    refuse_identities([as_edits(interventions)], allow_noop=False)
    lowered = lower(
        prompt,
        model.config.decoder,
        [for_sample(as_edits(interventions))],
        num_decoded=0,
        clean=CleanRuns(model),
    )
    return model.encode(prompt, lowered.groups), lowered.intervention(0, len(prompt))


_largest_read = jax.jit(largest_read)


def _unpadded(site: Site, values: jax.Array, size: int) -> jax.Array:
    for axis in POSITIONS_AXIS.get(site, (1,)):
        values = jax.lax.slice_in_dim(values, 0, size, axis=axis)
    return values


def _sites(capture: Sequence[str], num_layers: int) -> Mapping[str, tuple[Site, int | None]]:
    if not hasattr(capture, "__iter__") or isinstance(capture, type):
        raise TypeError(f"capture: expected sites, such as ['resid_post'], got {capture!r}")
    names = [capture] if isinstance(capture, str) else list(capture)
    unknown, reasons, sites = [], [], {}
    for name in names:
        try:
            sites[name] = parse_site(name)
        except ValueError as error:
            unknown.append(name)
            reasons.append(str(error))
    if len(unknown) == 1:
        raise ValueError(f"capture: {reasons[0]}")
    if unknown:
        raise ValueError(
            f"capture: expected sites among {', '.join(Site)}; got "
            + ", ".join(f"{name!r}{did_you_mean(name, Site)}" for name in unknown)
        )
    for name, (_, layer) in sites.items():
        if layer is not None and layer >= num_layers:
            raise ValueError(f"capture {name!r}: expected a layer within 0:{num_layers}, got {layer}")
    return sites
