"""`run` and `generate`: one prompt under edits."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from avjax.engine.decoding import decode
from avjax.engine.lowering import Lowered, Touched, lower
from avjax.engine.reference import bucket, logits_at, pad_inputs, prefill
from avjax.interventions import Edit, Intervention, as_edits
from avjax.model import Model
from avjax.models.attention import Compat
from avjax.models.decoder import Site
from avjax.prompt import Inputs, Prompt
from avjax.tokens import Selector, select

CACHE_BYTES = 2 * 2**30  # keys and values of the variants that decode together, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One prompt under one set of edits.

    Attributes:
      logits: float32 [P, V]; next-token logits at the selected positions.
      at: int [P]; those positions.
      captures: for each captured site, [L, T, ...] in the compute dtype.
      touched: what the edits reached.
    """

    logits: jax.Array
    at: np.ndarray
    captures: dict[Site, jax.Array]
    touched: Touched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """One greedy continuation under one set of edits.

    Attributes:
      text: the tokens without control tokens; None when the checkpoint has no tokenizer.
      tokens: int32 [n]; ends with a stop token unless the limit came first.
      logits: float32 [n, V]; what each token was chosen from. None when they were not asked for.
      touched: what the edits reached, counting every generated token that was fed back as a query.
    """

    text: str | None
    tokens: np.ndarray
    logits: np.ndarray | None
    touched: Touched


def run(
    model: Model,
    prompt: Prompt,
    *interventions: Edit | str,
    at: Selector = "last",
    capture: Sequence[str] = (),
    compat: Compat | None = None,
    allow_noop: bool = False,
) -> Run:
    """Next-token logits of a prompt under edits that apply together.

    Args:
      interventions: edits or rule strings; none is the clean model.
      at: the positions whose logits are wanted; rows come in prompt order, each position once.
      capture: sites (`avjax.Site`) to return; the others cost nothing.
      compat: "published" treats a query whose every visible key is blocked as the published code does: it attends to
        all keys equally. By default it reads zero.
      allow_noop: let an edit touch nothing.

    Raises:
      ValueError: an edit, site or selector does not fit the model or the prompt.
    """
    sites = _sites(capture)
    lowered = lower(prompt, model.config.decoder, [as_edits(interventions)], num_decoded=0, allow_noop=allow_noop)
    positions = np.flatnonzero(select(prompt, at)[:-1])
    if not len(positions):
        raise ValueError(f"at={at!r}: the prompt has no such position")
    inputs = pad_inputs(model.encode(prompt, lowered.groups), bucket(len(prompt)))
    intervention = jax.tree.map(lambda leaf: leaf[0], lowered.interventions) if interventions else None
    padded = np.resize(positions, 1 << (len(positions) - 1).bit_length())
    logits, captures = logits_at(
        model.network.decoder, inputs, intervention, jnp.asarray(padded), capture=sites, compat=_compat(compat)
    )
    return Run(
        logits=logits[: len(positions)],
        at=positions,
        captures={site: seen[:, : len(prompt)] for site, seen in captures.items()},
        touched=lowered.touched(0, 0),
    )


def generate(
    model: Model,
    prompt: Prompt,
    *interventions: Edit | str,
    max_new_tokens: int = 50,
    compat: Compat | None = None,
    allow_noop: bool = False,
    repetition_penalty: float | None = None,
) -> Generation:
    """The greedy continuation of a prompt under edits that apply together; see `generate_variants`."""
    return generate_variants(
        model,
        prompt,
        [interventions],
        max_new_tokens=max_new_tokens,
        compat=compat,
        allow_noop=allow_noop,
        repetition_penalty=repetition_penalty,
    )[0]


def generate_variants(
    model: Model,
    prompt: Prompt,
    variants: Sequence[Sequence[Edit | str] | Edit | str],
    *,
    max_new_tokens: int = 50,
    compat: Compat | None = None,
    allow_noop: bool = False,
    repetition_penalty: float | None = None,
    keep_logits: bool = True,
) -> list[Generation]:
    """Greedy continuations of one prompt under each variant's edits, decoded together.

    Args:
      variants: the edits of each variant: one edit, or several that apply together, or an empty list (clean).
      max_new_tokens: the most tokens of a continuation, its stop token included.
      compat: see `run`.
      allow_noop: let an edit touch nothing.
      repetition_penalty: None takes the checkpoint's own, as HF's `generate` does; 1.0 is none.
      keep_logits: False saves max_new_tokens x vocabulary floats per variant.

    Raises:
      ValueError: an edit does not fit the model or the prompt, or `max_new_tokens` is below 1.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    if isinstance(variants, str | Edit):
        raise TypeError(f"variants: expected a list of variants, got {variants!r}; put it in a list")
    edits = [as_edits([v] if isinstance(v, Edit | str) else v) for v in variants]
    if not edits:
        raise ValueError("variants: expected at least one, got none; pass [[]] for the clean model")
    lowered = lower(prompt, model.config.decoder, edits, num_decoded=max_new_tokens - 1, allow_noop=allow_noop)
    penalty = _penalty(model, prompt, repetition_penalty)
    inputs = pad_inputs(model.encode(prompt, lowered.groups), bucket(len(prompt)))
    results: list[Generation] = []
    size = _variants_per_batch(model, inputs, len(edits))
    for start in range(0, len(edits), size):
        index = np.minimum(np.arange(start, start + size), len(edits) - 1)  # the last batch repeats its last variant
        batch = jax.tree.map(lambda leaf, index=index: leaf[index], lowered.interventions)
        tokens, lengths, logits = decode(
            model.network.decoder,
            inputs,
            batch,
            jnp.asarray(_prompt_tokens(model, prompt)),
            jnp.int32(prompt.next_position()),
            jnp.int32(max_new_tokens),
            jnp.asarray(model.generation.stop_tokens or (-1,), jnp.int32),
            jnp.float32(penalty),
            num_slots=-(-max_new_tokens // 16) * 16,
            keep_logits=keep_logits,
            compat=_compat(compat),
        )
        results += _generations(model, lowered, start, np.asarray(tokens), np.asarray(lengths), logits)
    return results[: len(edits)]


def forward(
    model: Model, inputs: Inputs, intervention: Intervention | None = None, capture: tuple[Site, ...] = ()
) -> tuple[jax.Array, dict[Site, jax.Array]]:
    """Next-token logits [T, V] at every position, and captured sites [L, T, ...].

    Pure: `jit` with `static_argnames="capture"`, `vmap` over `intervention`.

    Args:
      inputs: what `lower_edits` or `model.encode` returns.
      intervention: over the token groups of `inputs`; None reproduces the checkpoint.
    """
    x, _, seen = prefill(model.network.decoder, inputs, intervention, capture=capture)
    return model.network.decoder.logits(x), seen


def lower_edits(model: Model, prompt: Prompt, *interventions: Edit | str) -> tuple[Inputs, Intervention]:
    """Decoder inputs and the edits over their token groups, for `forward`."""
    lowered = lower(prompt, model.config.decoder, [as_edits(interventions)], num_decoded=0)
    return model.encode(prompt, lowered.groups), jax.tree.map(lambda leaf: leaf[0], lowered.interventions)


def _generations(
    model: Model, lowered: Lowered, start: int, tokens: np.ndarray, lengths: np.ndarray, logits: jax.Array | None
) -> list[Generation]:
    rows = None if logits is None else np.asarray(logits)  # slicing on the device would compile once per length
    return [
        Generation(
            text=model.decode_text(tokens[i, :n]),
            tokens=tokens[i, :n],
            logits=None if rows is None else rows[i, :n],
            touched=lowered.touched(start + i, int(n) - 1),
        )
        for i, n in enumerate(lengths)
        if start + i < len(lowered.factors)
    ]


def _penalty(model: Model, prompt: Prompt, asked: float | None) -> float:
    unsupported = model.generation.unsupported
    if unsupported:
        raise ValueError(
            f"{model.host.source}: its generation config sets {', '.join(unsupported)}, which is not implemented; "
            "remove it from generation_config.json to decode without"
        )
    penalty = model.generation.repetition_penalty if asked is None else asked
    if not 0 < penalty < float("inf"):
        raise ValueError(f"repetition_penalty: expected a finite number above 0, got {penalty}")
    if penalty != 1 and prompt.embeddings is not None:
        raise ValueError(
            f"repetition_penalty={penalty}: a prompt made from embeddings has no tokens to penalise; pass 1.0"
        )
    return penalty


def _prompt_tokens(model: Model, prompt: Prompt) -> np.ndarray:
    present = np.zeros(model.config.decoder.vocab_size, bool)
    present[prompt.token_ids[prompt.token_ids >= 0]] = True
    return present


def _variants_per_batch(model: Model, inputs: Inputs, count: int) -> int:
    """A power of two, so that few executables serve any number of variants."""
    cfg = model.config.decoder
    per_variant = 2 * cfg.num_layers * len(inputs.groups) * cfg.num_kv_heads * cfg.head_dim * model.dtype.itemsize
    most = max(1, CACHE_BYTES // per_variant)
    return min(1 << (count - 1).bit_length(), 1 << (most.bit_length() - 1))


def _sites(capture: Sequence[str]) -> tuple[Site, ...]:
    names = [capture] if isinstance(capture, str) else list(capture)
    unknown = [name for name in names if name not in list(Site)]
    if unknown:
        raise ValueError(f"capture: expected sites among {', '.join(Site)}; got {', '.join(map(repr, unknown))}")
    return tuple(Site(name) for name in names)


def _compat(compat: str | None) -> Compat | None:
    if compat not in (None, "published"):
        raise ValueError(f"compat: expected None or 'published', got {compat!r}")
    return compat  # pyright: ignore[reportReturnType]
