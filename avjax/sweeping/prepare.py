"""A sweep whose parts all fit together, before anything is compiled."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from avjax.devices.memory import agreed_memory_bytes
from avjax.edits.edits import Edit, for_sample
from avjax.edits.grids import Cells, Grid, as_cells
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.generate import generation_penalty
from avjax.engine.reads import AttentionRead, Reads, placed, with_fed
from avjax.engine.scoring import check_values, unembedded
from avjax.engine.session import Session
from avjax.metrics import Caption, Metric
from avjax.model import Model
from avjax.models.buckets import slot_bucket
from avjax.prompts.compat import Compat, checked_compat, max_new_tokens_for
from avjax.prompts.prompt import Prompt, named_prompts
from avjax.prompts.selectors import select
from avjax.sweeping.metric_checks import as_metrics
from avjax.sweeping.names import refuse_collisions
from avjax.sweeping.reach import unreached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """Metrics that one pass over a prompt can serve.

    Attributes:
      continuations: those that are fed, see `Reads`.
      own: for each metric its continuations: where each is among the pass's, and its length.
    """

    continuations: tuple[tuple[int, ...], ...]
    metrics: tuple[Metric, ...]
    own: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, model: Model, metrics: Sequence[Metric]) -> "Pass":
        wanted = [metric.continuations(model) for metric in metrics]
        together, places = placed([c for continuations in wanted for c in continuations])
        lengths = iter([(p, len(c)) for p, c in zip(places, itertools.chain.from_iterable(wanted), strict=True)])
        own = tuple(tuple(next(lengths) for _ in continuations) for continuations in wanted)
        return cls(continuations=together, metrics=tuple(metrics), own=own)

    @property
    def num_continued(self) -> int:
        """Tokens whose log-probabilities are read."""
        return sum(map(len, self.continuations))

    def num_fed(self, metric: int) -> int:
        """The tokens of a metric's own that are fed, of its longest continuation."""
        return max((length - 1 for _, length in self.own[metric]), default=0)

    def spans(self) -> list[np.ndarray]:
        """int32, for each metric: where its tokens are among the continuations'."""
        starts = np.cumsum([0, *map(len, self.continuations)])
        spans = [[np.arange(starts[place], starts[place] + length) for place, length in own] for own in self.own]
        return [np.concatenate([np.zeros(0), *parts]).astype(np.int32) for parts in spans]

    def unembedded(self, model: Model) -> np.ndarray | None:
        """The token ids whose logits the pass computes; None is the whole vocabulary."""
        wanted = [metric.read_tokens(model) for metric in self.metrics]
        return unembedded(wanted, self.num_continued, model.config.decoder.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep whose parts all fit together; nothing has been compiled yet.

    Attributes:
      sessions: by sample and place among `parts`.
      floor: whether the clean cell rides with the others, for the noise floor.
      missing: bool [cells] by sample and metric: cells whose edits cannot reach what the metric reads.
    """

    model: Model
    prompts: dict[Any, Prompt]
    cells: Cells
    passes: tuple[Pass, ...]
    captions: tuple[Caption, ...]
    compat: Compat | None
    allow_noop: bool
    memory_bytes: int
    clean_runs: CleanRuns
    floor: bool
    sessions: dict[tuple[Any, int], Session] = dataclasses.field(default_factory=dict)
    missing: dict[tuple[Any, str], np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[Pass | Caption, ...]:
        """What each prompt is run for."""
        return (*self.passes, *self.captions)

    def variants(self, sample: Any) -> list[tuple[Edit, ...]]:
        """Each cell's edits on one sample."""
        return [for_sample(cell.edits, sample, self.allow_noop) for cell in self.cells.cells]

    @property
    def rides_clean(self) -> bool:
        """Whether the clean cell goes through the replay's program too; narrower types are held against float32."""
        return self.floor and self.model.dtype == np.float32

    def of_sample(self, sample: Any) -> "Sweep":
        """This sweep over one sample, its cells as a list of variants; takes its sessions, which are used once."""
        variants = [list(edits) for edits in self.variants(sample)]
        return dataclasses.replace(
            self,
            prompts={sample: self.prompts[sample]},
            cells=as_cells(variants, self.model.config.decoder),
            sessions={key: self.sessions.pop(key) for key in [*self.sessions] if key[0] == sample},
            missing={key: late for key, late in self.missing.items() if key[0] == sample},
        )

    def num_decoded(self) -> int:
        """The most generated tokens that any metric feeds back."""
        return max(0, *self.num_fed().values(), *(caption.limit - 1 for caption in self.captions))

    @property
    def counts_apart(self) -> bool:
        """Whether edits may reach more of one metric's pass than of another's, whatever the edits and the prompt."""
        return len({*self.num_fed().values(), *(caption.name for caption in self.captions)}) > 1

    def num_fed(self) -> dict[str, int]:
        """The tokens of its own that each metric but captions feeds back, by name."""
        return {metric.name: part.num_fed(place) for part in self.passes for place, metric in enumerate(part.metrics)}

    def session(
        self,
        prompt: Prompt,
        one: Pass | Caption,
        variants: Sequence[Sequence[Edit]],
        *,
        with_clean: bool = False,
        dtype: DTypeLike | None = None,
        clean_runs: CleanRuns | None = None,
    ) -> Session:
        """One prompt for one pass or caption.

        Args:
          with_clean, dtype: see `Session`.
          clean_runs: of that dtype; None takes the sweep's.

        Raises:
          ValueError: an edit does not fit the prompt, or the memory does not suffice.
        """
        slots = slot_bucket(one.limit) if isinstance(one, Caption) else 0
        return Session(
            self.model,
            prompt,
            variants,
            reads=Reads() if isinstance(one, Caption) else _reads(prompt, one, self.compat is not None),
            num_decoded=self.num_decoded(),
            allow_noop=self.allow_noop,
            compat=self.compat,
            memory_bytes=self.memory_bytes,
            num_slots=slots,
            clean_runs=clean_runs or self.clean_runs,
            with_clean=with_clean,
            dtype=dtype,
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
    floor: bool = True,
) -> Sweep:
    """Checks that everything fits together.

    Args:
      clean_runs: where sources find activations; by default, in clean passes.
      floor: whether the noise floor is measured.

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
        memory_bytes=agreed_memory_bytes(model.mesh, memory_bytes),
        clean_runs=clean_runs or CleanRuns(model, compat),
        floor=floor,
    )
    return _checked(planned)


def _checked(planned: Sweep) -> Sweep:
    """The sweep with every session, none of which has computed anything, and what is missing of it."""
    model, cfg = planned.model, planned.model.config.decoder
    sessions: dict[tuple[Any, int], Session] = {}
    missing: dict[tuple[Any, str], np.ndarray] = {}
    names: dict[str, Sequence[str]] = {c.name: (c.name, f"{c.name}_tokens") for c in planned.captions}
    shapes: dict[Metric, Sequence[int]] = {}
    whole: dict[str, np.dtype] = {}  # of metrics whose values have no number for what is missing
    for name, prompt in planned.prompts.items():
        model.check(prompt)
        for one in planned.passes:
            for metric, span in zip(one.metrics, one.spans(), strict=True):
                attention = None if metric.attention() is None else (cfg.num_layers, cfg.num_heads)
                read = metric.read_tokens(model)
                value_type = check_values(
                    metric,
                    metric.prepare(model, prompt),
                    num_tokens=cfg.vocab_size if read is None else len(read),
                    continuation=len(span),
                    attention=attention,
                )
                names[metric.name] = [f"{metric.name}_{suffix}" if suffix else metric.name for suffix in value_type]
                shapes[metric] = next(iter(value_type.values())).shape
                never_missing = [v.dtype for v in value_type.values() if v.dtype.kind == "b" or metric.averages]
                for dtype in (dtype for dtype in never_missing if dtype.kind in "biu"):
                    whole[metric.name] = dtype
        refuse_collisions(planned.cells, names, shapes)
        variants = planned.variants(name)
        for place, one in enumerate(planned.parts):
            edits = [*variants, *[()] * planned.rides_clean] if isinstance(one, Pass) else [(), *variants]
            with_clean = isinstance(one, Pass) and planned.rides_clean
            sessions[name, place] = session = planned.session(prompt, one, edits, with_clean=with_clean)
            if isinstance(one, Caption):
                generation_penalty(session)  # refuses what cannot be decoded
            for metric, last_row in _last_rows(session, one).items():
                late = unreached(session, edits, last_row, metric, planned.allow_noop)
                missing[name, metric] = late[: len(variants)] if isinstance(one, Pass) else late[1:]
                if late.any() and metric in whole:
                    raise ValueError(
                        f"metric {metric!r}: expected floats, which can be missing where an edit cannot reach the "
                        f"metric, got {whole[metric]}; return jnp.float32(value)"
                    )
    return dataclasses.replace(planned, sessions=sessions, missing=missing)


def _last_rows(session: Session, one: Pass | Caption) -> dict[str, int]:
    """The last position of what each metric reads: of the prompt and what is fed after it of the metric's own."""
    last = len(session.prompt) - 1
    if isinstance(one, Caption):
        return {one.name: last + one.limit - 1}
    return {metric.name: last + one.num_fed(place) for place, metric in enumerate(one.metrics)}


MOST_FED = 64  # tokens that are fed in one pass, unless one metric alone needs more


def _passes(model: Model, metrics: Sequence[Metric]) -> tuple[Pass, ...]:
    """Metrics together in as few passes as hold what they feed."""
    passes: list[Pass] = []
    for metric in sorted(metrics, key=lambda metric: len(metric.continuations(model)) > 0):
        joined = Pass.of(model, [*(passes[-1].metrics if passes else ()), metric])
        if passes and len(Reads(continuations=joined.continuations).fed) > MOST_FED:
            passes.append(Pass.of(model, [metric]))
        else:
            passes[-1:] = [joined]
    return tuple(passes)


def _reads(prompt: Prompt, one: Pass, published: bool) -> Reads:
    attention: list[AttentionRead] = []
    for place, metric in enumerate(one.metrics):
        if (asked := metric.attention()) is not None:
            fed = one.num_fed(place)
            query, key = (select(prompt, s) for s in asked)
            if not with_fed(query, fed).any():
                why = "(query), and this metric feeds none; pass text=" if query[-1] else "(query)"
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[0]} tokens {why}")
            if not with_fed(key, fed).any():
                raise ValueError(f"metric {metric.name!r}: the prompt has no {asked[1]} tokens (key)")
            if not (with_fed(query, fed) & (np.cumsum(with_fed(key, fed)) > 0)).any():
                raise ValueError(f"metric {metric.name!r}: no {asked[0]} token comes at or after a {asked[1]} token")
            query = np.append(query[:-1], query[-1] and fed > 0)
            attention.append(AttentionRead(query=query, key=key, continuations=one.own[place]))
    return Reads(continuations=one.continuations, attention=tuple(attention), published=published)
