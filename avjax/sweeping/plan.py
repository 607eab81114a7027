"""A sweep whose parts all fit together, before anything is compiled."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.compat import Compat, checked_compat, max_new_tokens_for
from avjax.engine.activations import CleanRuns
from avjax.engine.scoring import check_values, unembedded
from avjax.engine.session import Reads, Session, with_fed
from avjax.generation import generation_penalty, num_slots
from avjax.grids import Cells, Grid, as_cells
from avjax.interventions import Edit, for_sample
from avjax.metric_checks import as_metrics
from avjax.metrics import Caption, Metric
from avjax.model import Model
from avjax.prompt import Prompt, named_prompts
from avjax.slices import memory_of
from avjax.sweeping.names import refuse_collisions
from avjax.tokens import select


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Metrics that one pass over a prompt can serve."""

    continuation: tuple[int, ...]
    metrics: tuple[Metric, ...]

    def unembedded(self, model: Model) -> np.ndarray | None:
        """The token ids whose logits the pass computes; None is the whole vocabulary."""
        wanted = [metric.read_tokens(model) for metric in self.metrics]
        return unembedded(wanted, len(self.continuation), model.config.decoder.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep whose parts all fit together; nothing has been compiled yet."""

    model: Model
    prompts: dict[Any, Prompt]
    cells: Cells
    passes: tuple[Pass, ...]
    captions: tuple[Caption, ...]
    compat: Compat | None
    allow_noop: bool
    memory_bytes: int
    clean_runs: CleanRuns
    sessions: dict[tuple[Any, int], Session] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[Pass | Caption, ...]:
        """What each prompt is run for."""
        return (*self.passes, *self.captions)

    def variants(self, sample: Any) -> list[tuple[Edit, ...]]:
        """Each cell's edits on one sample."""
        return [for_sample(cell.edits, sample, self.allow_noop) for cell in self.cells.cells]

    def num_decoded(self) -> int:
        """The most generated tokens that any metric feeds back."""
        fed = [len(p.continuation) - 1 for p in self.passes] + [c.limit - 1 for c in self.captions]
        return max(0, *fed)

    def session(self, prompt: Prompt, one: Pass | Caption, variants: Sequence[Sequence[Edit]]) -> Session:
        """One prompt for one pass or caption.

        Raises:
          ValueError: an edit does not fit the prompt, or the memory does not suffice.
        """
        slots = num_slots(one.limit) if isinstance(one, Caption) else 0
        return Session(
            self.model,
            prompt,
            variants,
            reads=Reads() if isinstance(one, Caption) else _reads(prompt, one),
            num_decoded=self.num_decoded(),
            allow_noop=self.allow_noop,
            compat=self.compat,
            memory_bytes=self.memory_bytes,
            num_slots=slots,
            clean_runs=self.clean_runs,
        )


def prepare(
    model: Model,
    prompts: Prompt | Sequence[Prompt] | Mapping[Any, Prompt],
    grid: Grid | Edit | str | Sequence[Any],
    metrics: Metric | Sequence[Metric],
    *,
    memory_bytes: int | None = None,
    compat: Compat | None = None,
    allow_noop: bool = False,
    clean_runs: CleanRuns | None = None,
) -> Sweep:
    """Checks that everything fits together.

    Args:
      clean_runs: where sources find activations; by default, in clean passes.

    Raises:
      ValueError: it does not; the message says what was expected, what came, and what to do.
    """
    named = named_prompts(prompts)
    cells = as_cells(grid, model.config.decoder)
    several = as_metrics(metrics)
    names = [m.name for m in several]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"metrics: {twice[0]!r} occurs twice; give one of them another name=")
    compat = checked_compat(compat, named.values())
    captions = tuple(
        dataclasses.replace(m, max_new_tokens=max_new_tokens_for(compat, m.max_new_tokens))
        for m in several
        if isinstance(m, Caption)
    )
    read = [m for m in several if not isinstance(m, Caption)]
    planned = Sweep(
        model=model,
        prompts=named,
        cells=cells,
        passes=_passes(model, read),
        captions=captions,
        compat=compat,
        allow_noop=allow_noop,
        memory_bytes=memory_of(model, memory_bytes),
        clean_runs=clean_runs or CleanRuns(model, compat),
    )
    return dataclasses.replace(planned, sessions=_check(planned))


def _check(planned: Sweep) -> dict[tuple[Any, int], Session]:
    """Every session of the sweep, by sample and place among passes and captions; none has computed anything."""
    model, cfg = planned.model, planned.model.config.decoder
    if planned.compat is not None and any(p.continuation for p in planned.passes):
        raise ValueError(
            f"compat={planned.compat!r} with a teacher-forced continuation: a blocked query would read the "
            "continuation; use Caption, or a metric of the next token"
        )
    sessions: dict[tuple[Any, int], Session] = {}
    names: dict[str, Sequence[str]] = {c.name: (c.name, f"{c.name}_tokens") for c in planned.captions}
    shapes: dict[Metric, Sequence[int]] = {}
    for name, prompt in planned.prompts.items():
        model.check(prompt)
        for one in planned.passes:
            for metric in one.metrics:
                attention = None if metric.attention() is None else (cfg.num_layers, cfg.num_heads)
                read = metric.read_tokens(model)
                found = check_values(
                    metric,
                    metric.prepare(model, prompt),
                    num_tokens=cfg.vocab_size if read is None else len(read),
                    continuation=len(one.continuation),
                    attention=attention,
                )
                names[metric.name] = [f"{metric.name}_{suffix}" if suffix else metric.name for suffix in found]
                shapes[metric] = next(iter(found.values())).shape
        refuse_collisions(planned.cells, names, shapes)
        variants = planned.variants(name)
        for place, one in enumerate(planned.parts):
            made = variants if isinstance(one, Pass) else [(), *variants]
            sessions[name, place] = planned.session(prompt, one, made)
            if isinstance(one, Caption):
                generation_penalty(sessions[name, place])  # refuses what cannot be decoded
    return sessions


def _passes(model: Model, metrics: Sequence[Metric]) -> tuple[Pass, ...]:
    """Metrics by continuation; those of the next token alone join the first pass there is."""
    by_continuation: dict[tuple[int, ...], list[Metric]] = {}
    for metric in metrics:
        by_continuation.setdefault(metric.continuation(model), []).append(metric)
    plain = by_continuation.pop((), [])
    if plain and not by_continuation:
        return (Pass(continuation=(), metrics=tuple(plain)),)
    passes = [Pass(continuation=c, metrics=tuple(ms)) for c, ms in by_continuation.items()]
    if plain:
        passes[0] = dataclasses.replace(passes[0], metrics=(*plain, *passes[0].metrics))
    return tuple(passes)


def _reads(prompt: Prompt, one: Pass) -> Reads:
    queries, keys = [], []
    for metric in one.metrics:
        if (asked := metric.attention()) is not None:
            fed = max(0, len(one.continuation) - 1)
            query, key = (select(prompt, s) for s in asked)
            if not with_fed(query, fed).any():
                why = "and no continuation is fed whose tokens could ask" if query[-1] else "to ask for attention"
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[0]} tokens {why}")
            if not with_fed(key, fed).any():
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[1]} tokens (key)")
            if not (with_fed(query, fed) & (np.cumsum(with_fed(key, fed)) > 0)).any():
                raise ValueError(f"metric {metric.name!r}: no {asked[0]} token comes at or after a {asked[1]} token")
            queries.append(query)
            keys.append(key)
    return Reads(continuation=one.continuation, queries=tuple(queries), keys=tuple(keys))
