"""`generate`: greedy continuations of a prompt under edits."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from avjax.devices.memory import agreed_memory_bytes
from avjax.edits.edits import Edit, for_sample
from avjax.edits.identities import refuse_identities
from avjax.edits.rules import as_edits
from avjax.engine.batches import Batch
from avjax.engine.clean_pass import SharedPrompt
from avjax.engine.decoding import decode
from avjax.engine.reference import OwnPrompt, reference_prompt
from avjax.engine.session import Session
from avjax.engine.touched import Touched
from avjax.model import Model, refuse_no_model
from avjax.models.buckets import slot_bucket
from avjax.models.intervention import Intervention
from avjax.nearest import did_you_mean
from avjax.prompts.compat import Compat, checked_compat, max_new_tokens_for
from avjax.prompts.prompt import Prompt

Executor = Literal["replay", "reference"]


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


def generate(
    model: Model,
    prompt: Prompt,
    *interventions: Edit | str,
    max_new_tokens: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    repetition_penalty: float | None = None,
    executor: Executor = "replay",
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
        executor=executor,
    )[0]


def generate_variants(
    model: Model,
    prompt: Prompt,
    variants: Sequence[Sequence[Edit | str] | Edit | str],
    *,
    max_new_tokens: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    repetition_penalty: float | None = None,
    keep_logits: bool = True,
    executor: Executor = "replay",
    memory_bytes: int | None = None,
) -> list[Generation]:
    """Greedy continuations of one prompt under each variant's edits, decoded together.

    Args:
      variants: the edits of each variant: one edit, or several that apply together, or an empty list (clean).
      max_new_tokens: the most tokens of a continuation, its stop token included; by default 50, and 1,024 with
        compat="published-script", whose own limit of 50 Hugging Face does not read.
      compat: see `run`.
      allow_noop: let an edit touch nothing.
      repetition_penalty: None takes the checkpoint's own, as HF's `generate` does; 1.0 is none.
      executor: "replay" computes the prompt once and each variant's region of effect; "reference" the whole prompt of
        each variant. Both give the same.
      memory_bytes: what the call may use beside the parameters; by default half of what the device has free.
      keep_logits: False saves max_new_tokens x vocabulary floats per variant.

    Raises:
      ValueError: an edit does not fit the model or the prompt, or `max_new_tokens` is below 1.
      OverflowError: activations grew beyond float32; the variant is named.
    """
    refuse_no_model(model)
    model.check(prompt)
    checked_executor(executor)
    compat = checked_compat(compat, [prompt])
    max_new_tokens = max_new_tokens_for(compat, max_new_tokens)
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens!r}")
    if isinstance(variants, str | Edit):
        raise TypeError(f"variants: expected a list of variants, got {variants!r}; put it in a list")
    edits = [as_edits([v] if isinstance(v, Edit | str) else v) for v in variants]
    if not edits:
        raise ValueError("variants: expected at least one, got none; pass [[]] for the clean model")
    refuse_identities(edits, allow_noop)
    session = Session(
        model,
        prompt,
        [for_sample(e) for e in edits],
        num_decoded=max_new_tokens - 1,
        allow_noop=allow_noop,
        compat=compat,
        memory_bytes=agreed_memory_bytes(model.mesh, memory_bytes),
        num_slots=slot_bucket(max_new_tokens),
        kept_logits=slot_bucket(max_new_tokens) if keep_logits else 0,
    )
    return decoded(session, max_new_tokens, generation_penalty(session, repetition_penalty), executor)


def checked_executor(executor: str) -> Executor:
    if executor not in ("replay", "reference"):
        hint = did_you_mean(executor, ("replay", "reference"))
        raise ValueError(f"executor: expected 'replay' or 'reference', got {executor!r}{hint}")
    return executor  # pyright: ignore[reportReturnType]


def decoded(session: Session, max_new_tokens: int, penalty: float, executor: Executor) -> list[Generation]:
    """Continuations of a session's variants, in their order."""
    model, prompt = session.model, session.prompt
    results: dict[int, Generation] = {}
    for batch in session.planned:
        shared, own, variants = _prompts(session, batch, executor)
        tokens, lengths, logits, largest = decode(
            model.network.decoder,
            shared,
            own,
            variants,
            jnp.asarray(_prompt_tokens(model, prompt)),
            jnp.int32(prompt.next_position()),
            jnp.int32(max_new_tokens),
            jnp.asarray(model.generation.stop_tokens or (-1,), jnp.int32),
            jnp.float32(penalty),
            num_slots=slot_bucket(max_new_tokens),
            keep_logits=session.budget.kept_logits > 0,
            compat=session.compat,
        )
        session.refuse_overflow(batch.variants, np.asarray(largest)[: len(batch.variants)])
        results |= _generations(session, batch.variants, np.asarray(tokens), np.asarray(lengths), logits)
        del own, logits  # the next batch has the device to itself
    return [results[i] for i in range(len(session.lowered))]


def _prompts(session: Session, batch: Batch, executor: Executor) -> tuple[SharedPrompt, OwnPrompt, Intervention]:
    """The prompt that a batch's variants share, what each has of its own, and their edits."""
    if executor == "replay":
        replayed = session.replay_batch(batch, keep_cache=True)
        # A variant's prompt is the clean run's before its own rows.
        largest = jnp.maximum(replayed.largest, session.shared.clean.largest)
        own = OwnPrompt(keys=replayed.keys, values=replayed.values, last=replayed.residual[:, 0], largest=largest)
        return session.shared, own, session.stacked(batch.padded())
    variants = session.unfolded(batch.padded())
    decoder = session.model.network.decoder
    own = reference_prompt(decoder, session.inputs, variants, num_variants=batch.size, compat=session.compat)
    return session.without_shared_keys(), own, variants


def _generations(
    session: Session, variants: Sequence[int], tokens: np.ndarray, lengths: np.ndarray, logits: jax.Array | None
) -> dict[int, Generation]:
    rows = None if logits is None else np.asarray(logits)  # slicing on the device would compile once per length
    return {
        variant: Generation(
            text=session.model.decode_text(tokens[i, :n]),
            tokens=tokens[i, :n],
            logits=None if rows is None else rows[i, :n],
            touched=session.touched.count(variant, int(n) - 1),
        )
        for i, (variant, n) in enumerate(zip(variants, lengths.tolist(), strict=False))
    }


def generation_penalty(session: Session, asked: float | None = None) -> float:
    """The repetition penalty of a session's continuations: as asked for, else the checkpoint's own.

    Raises:
      ValueError: the checkpoint's settings are not implemented, or the penalty cannot be.
    """
    prompt, defaults = session.prompt, session.model.generation
    unsupported = defaults.unsupported
    if unsupported:
        raise ValueError(
            f"{session.model.host.source}: its generation config sets {', '.join(unsupported)}, which is not "
            "implemented; remove it from generation_config.json to decode without it"
        )
    penalty = defaults.repetition_penalty if asked is None else asked
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
