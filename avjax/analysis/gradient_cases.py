"""What analyses by gradient read: a differentiable metric of each sample's answer, and its exact value under edits."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avjax.edits.edits import Edit
from avjax.engine.reads import Reads, with_fed
from avjax.engine.scoring import check_values
from avjax.metrics import Caption, Metric, View
from avjax.model import Model
from avjax.prompts.prompt import Prompt, named_prompts, per_sample
from avjax.prompts.selectors import Selector, select
from avjax.runs.sweep import sweep
from avjax.sweeping.metric_checks import refuse_no_metric

Metrics = Metric | Mapping[Any, Metric]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One sample: its prompt, and the metric of what comes next.

    Attributes:
      whole: the prompt and what is fed after it of the metric's own continuations: every position of one pass.
      reads: those continuations.
    """

    sample: Any
    prompt: Prompt
    whole: Prompt
    metric: Metric
    reads: Reads

    @property
    def first_read(self) -> int:
        """The position that the metric's first token is predicted from."""
        return len(self.prompt) - 1

    def select(self, selector: Selector) -> np.ndarray:
        """bool [T] over `whole`; what follows the prompt is generated."""
        return with_fed(select(self.prompt, selector), len(self.whole) - len(self.prompt))

    def edges(self, query: Selector, key: Selector) -> int:
        """Visible pairs of a query and a key in one head and layer."""
        if self.reads.branches is None:
            return int(np.cumsum(self.select(key))[self.select(query)].sum())
        return int(self.reads.visible(len(self.prompt))[np.ix_(self.select(query), self.select(key))].sum())


def cases(model: Model, prompts: Any, metric: Metrics, *, at_clean: bool = True) -> dict[Any, Case]:
    """Every sample with its metric, checked; nothing is compiled.

    Args:
      metric: one for all, or by sample.
      at_clean: the metric must have a slope where the run is the clean one; a distance from that has none.

    Raises:
      ValueError, TypeError: a metric is no number with a gradient or is missing, or a prompt's features are not finite.
    """
    named = named_prompts(prompts)
    metrics, by_name, checked = per_sample(named, metric, "metric"), {}, set()
    for name, prompt in named.items():
        model.check(prompt)
        refuse_not_finite(name, prompt)
        one = metrics[name]
        _refuse_no_metric(one)
        ready, reads = one.prepare(model, prompt), Reads(continuations=one.continuations(model))
        continued = len(reads.continued)
        shapes = tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in jax.tree.leaves(ready))
        if (key := (one.compiled_form(), shapes, continued)) not in checked:
            _refuse_no_slope(model, one, ready, continued, at_clean)
            checked.add(key)
        whole = prompt.continued(reads.fed)
        by_name[name] = Case(sample=name, prompt=prompt, whole=whole, metric=one, reads=reads)
    return by_name


def refuse_not_finite(name: Any, prompt: Prompt) -> None:
    """Raises ValueError when a prompt's features hold a NaN or an infinity."""
    features = [clip.mel for clip in prompt.audio] + [clip.patches for clip in (*prompt.images, *prompt.videos)]
    features += [] if prompt.embeddings is None else [prompt.embeddings]
    if not all(np.isfinite(array).all() for array in features):
        raise ValueError(
            f"prompts: expected finite features, got a NaN or infinity in sample {name!r}; look at its clip"
        )


def _refuse_no_metric(metric: Any) -> None:
    if not isinstance(metric, Metric):
        refuse_no_metric(metric, "metric")
    if isinstance(metric, Caption) or metric.dims or metric.attention() is not None:
        raise ValueError(
            f"metric {metric.name!r}: expected one number computed from the logits, with a gradient; use LogitDiff, "
            "LogProb, Prob or LogLikelihood"
        )


def _refuse_no_slope(model: Model, metric: Metric, prepared: Any, continued: int, at_clean: bool) -> None:
    """Raises ValueError when a metric does not move with the logits; tried on drawn ones, without a network."""
    read = metric.read_tokens(model)
    size = model.config.decoder.vocab_size if read is None else len(read)
    value_type = check_values(metric, prepared, num_tokens=size, continuation=continued, attention=None)
    if list(value_type) != [""]:
        raise ValueError(f"metric {metric.name!r}: expected one number, got {', '.join(map(repr, value_type))}")
    rng = np.random.default_rng(0)

    def drawn(scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
        logits, logprobs = scale * rng.normal(size=size), scale * -rng.exponential(size=continued)
        return jnp.asarray(logits, jnp.float32), jnp.asarray(logprobs, jnp.float32)

    at, other = drawn(), drawn()
    slope = jax.grad(lambda at: metric_value(metric, prepared, at, other))(at)
    steepness = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in slope)
    advice = "which carries no information; use LogitDiff, LogProb, Prob or LogLikelihood"
    if not 0 < steepness < np.inf:
        raise ValueError(
            f"metric {metric.name!r}: its gradient is {'zero' if steepness == 0 else 'not finite'}, {advice}"
        )

    def value(x: Any) -> float:
        return float(metric_value(metric, prepared, x, at))

    if at_clean and _is_extreme(value, at, [drawn(0.05) for _ in range(4)]):
        raise ValueError(f"metric {metric.name!r}: at the clean run its gradient is zero, {advice}")


def _is_extreme(value: Callable[[Any], float], at: Any, steps: Sequence[Any]) -> bool:
    """Whether a function turns at a point, so that opposite steps change it alike: its gradient there is rounding."""
    here, odd, even = value(at), 0.0, 0.0
    for step in steps:
        up, down = (value(jax.tree.map(lambda x, s, sign=sign: x + sign * s, at, step)) for sign in (1, -1))
        odd, even = odd + abs(up - down), even + abs(up + down - 2 * here)
    return odd < even


def metric_value(metric: Metric, prepared: Any, at: tuple[Any, Any], clean: tuple[Any, Any]) -> jax.Array:
    """A metric of logits and log-probabilities of the continuation."""
    value = metric(
        View(
            logits=at[0],
            clean_logits=clean[0],
            logprobs=at[1],
            clean_logprobs=clean[1],
            mass=None,
            clean_mass=None,
            key_share=None,
            prepared=prepared,
        )
    )
    return jnp.asarray(value[""] if isinstance(value, Mapping) else value, jnp.float32)


def exact(model: Model, case: Case, variants: Sequence[Sequence[Edit]]) -> tuple[np.ndarray, float]:
    """The metric under each variant, and of the clean run, from the engine's sweep."""
    settings: dict[str, Any] = {"allow_noop": True, "floor": False, "progress": False}
    swept = sweep(model, {case.sample: case.prompt}, list(variants), case.metric, **settings)
    values = swept[case.metric.name].to_numpy().astype(np.float64).reshape(len(variants))
    clean = float(swept[f"{case.metric.name}_clean"].item())
    if not np.isfinite([*values, clean]).all():
        raise ValueError(f"sample {case.sample!r}: expected a finite {case.metric.name}, got {values.tolist()}")
    return values, clean


def of_one_kind(given: Mapping[Any, Case]) -> tuple[str, str]:
    """The name and unit that all samples' metrics share.

    Raises:
      ValueError: they have several.
    """
    kinds = sorted({(case.metric.name, case.metric.unit) for case in given.values()})
    if len(kinds) > 1:
        raise ValueError(f"metric: expected one kind for all samples, got {', '.join(name for name, _ in kinds)}")
    return kinds[0]


def refuse_missing(given: Mapping[Any, Case], selectors: Sequence[Selector], what: str) -> None:
    """Raises ValueError when a selector names nothing in a sample."""
    for selector, case in itertools.product(selectors, given.values()):
        if not case.select(selector).any():
            raise ValueError(f"{what} {selector!r}: the prompt of sample {case.sample!r} has no such tokens")
