"""What is read of each cell, reduced on the device. Source of the definitions: the works named at each metric.

A metric of your own:

    @dataclasses.dataclass(frozen=True)
    class Entropy(avjax.metrics.Metric):
        name: str = "entropy"
        unit: ClassVar[str] = "nats"
        def __call__(self, view):
            return jax.scipy.special.entr(jax.nn.softmax(view.logits)).sum()

Axes: V vocab, P read-out position, L layer, N heads.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from avjax.compat import max_new_tokens_for
from avjax.model import Model
from avjax.prompt import Prompt
from avjax.tokens import Selector, as_indices
from avjax.topk import top_k

Answer = str | int | np.integer | Sequence[int]
Values = jax.Array | Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What a metric sees of one cell and of the clean run.

    Attributes:
      logits, clean_logits: float32 [V], next-token logits at the last prompt position; of the metric's `read_tokens`
        alone where it names some.
      logprobs, clean_logprobs: float32 [n], log-probability (nats) of each token of the metric's continuation, given
        the prompt and those before it; empty without one.
      mass, clean_mass: float32 [L, N], attention mass of the metric's keys from its queries; None without keys.
      key_share: float32 [], the keys' share of what the queries can see; None without keys.
      prepared: what `Metric.prepare` returned.
    """

    logits: jax.Array
    clean_logits: jax.Array
    logprobs: jax.Array
    clean_logprobs: jax.Array
    mass: jax.Array | None
    clean_mass: jax.Array | None
    key_share: jax.Array | None
    prepared: Any


class Metric:
    """A pure function of a cell, with a name and a unit.

    Attributes:
      name: of the dataset's variable, in snake case.
      unit: of its values.
      dims: names of the axes of one value; none for a number.
      averages: False when a mean over samples would mean nothing.
    """

    name: str = "metric"
    unit: ClassVar[str] = ""
    dims: ClassVar[tuple[str, ...]] = ()
    averages: ClassVar[bool] = True

    def prepare(self, model: Model, prompt: Prompt) -> Any:
        """Arrays that the function needs of the model and prompt, such as token ids; once per prompt."""
        return None

    def continuation(self, model: Model) -> tuple[int, ...]:
        """Tokens that are fed after the prompt, whose log-probabilities the metric reads."""
        return ()

    def read_tokens(self, model: Model) -> tuple[int, ...] | None:
        """The token ids whose logits are all that the metric reads, in the order in which the view has them.

        Where every metric of a sweep names its own, no others are computed. None is the whole vocabulary.
        """
        return None

    def attention(self) -> tuple[Selector, Selector] | None:
        """Query and key selectors whose attention mass the metric reads."""
        return None

    def computed(self) -> "Metric":
        """The metric as its function needs it: the same for all answers that `prepare` reads, which share a program."""
        return self

    def attributes(self, model: Model) -> dict[str, Any]:
        """What the dataset says about the variable beside its unit."""
        return {}

    def __call__(self, view: View) -> Values:
        raise NotImplementedError


def answer_tokens(model: Model, answer: Answer) -> tuple[int, ...]:
    """The first token of each surface form of an answer: the word, and the word after a space; or given ids.

    Raises:
      ValueError: the text has no tokens, or an id is outside the vocabulary.
    """
    if isinstance(answer, str):
        if not answer.strip():
            raise ValueError(f"answer {answer!r}: expected a word, got nothing")
        forms = (answer.strip(), f" {answer.strip()}")
        tokens = [model.encode_text(form)[0] for form in forms]
        return tuple(dict.fromkeys(tokens))
    return tuple(dict.fromkeys(in_vocabulary(model, answer, "answer")))


def in_vocabulary(model: Model, ids: Sequence[int] | np.ndarray | int | np.integer, what: str) -> tuple[int, ...]:
    """Token ids as integers.

    Raises:
      ValueError, TypeError: there are none, or one is outside the vocabulary or no integer.
    """
    found, vocab = as_indices(ids, what), model.config.decoder.vocab_size
    if not found or any(not 0 <= i < vocab for i in found):
        raise ValueError(f"{what}: expected token ids within 0:{vocab}, got {ids!r}")
    return found


def _ids(tokens: Sequence[int]) -> jax.Array:
    return jnp.asarray(tokens, jnp.int32)


@dataclasses.dataclass(frozen=True)
class _OfAnswer(Metric):
    answer: Answer

    def __post_init__(self):
        if not isinstance(self.answer, str):
            object.__setattr__(self, "answer", as_indices(self.answer, "answer"))

    def prepare(self, model: Model, prompt: Prompt) -> jax.Array:
        return _ids(answer_tokens(model, self.answer))

    def computed(self) -> Metric:
        return dataclasses.replace(self, answer=(0,))

    def attributes(self, model: Model) -> dict[str, Any]:
        tokens = answer_tokens(model, self.answer)
        return {"answer": str(self.answer), "answer_tokens": list(tokens), "scored": "first token of each surface form"}


@dataclasses.dataclass(frozen=True)
class LogProb(_OfAnswer):
    """Log-probability that the next token begins the answer, over its surface forms."""

    name: str = "log_prob"
    unit: ClassVar[str] = "nats"

    def __call__(self, view: View) -> Values:
        return jax.nn.logsumexp(jax.nn.log_softmax(view.logits)[view.prepared])


@dataclasses.dataclass(frozen=True)
class Prob(_OfAnswer):
    """Probability that the next token begins the answer, over its surface forms."""

    name: str = "prob"
    unit: ClassVar[str] = "probability"

    def __call__(self, view: View) -> Values:
        return jnp.sum(jax.nn.softmax(view.logits)[view.prepared])


@dataclasses.dataclass(frozen=True)
class Rank(_OfAnswer):
    """Rank of the answer's likeliest surface form among all next tokens; 1 is the model's own choice."""

    name: str = "rank"
    unit: ClassVar[str] = "rank"

    def __call__(self, view: View) -> Values:
        return 1 + jnp.sum(view.logits > jnp.max(view.logits[view.prepared])).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Logits(Metric):
    """Next-token logits of given tokens, along the dimension `token`."""

    tokens: Sequence[int]
    name: str = "logits"
    unit: ClassVar[str] = "nats, up to a constant"
    dims: ClassVar[tuple[str, ...]] = ("token",)

    def __post_init__(self):
        object.__setattr__(self, "tokens", as_indices(self.tokens, "tokens"))

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return in_vocabulary(model, self.tokens, "tokens")

    def attributes(self, model: Model) -> dict[str, Any]:
        return {"tokens": list(self.tokens)}

    def __call__(self, view: View) -> Values:
        return view.logits


@dataclasses.dataclass(frozen=True)
class LogitDiff(Metric):
    """Logit of one answer minus that of another, each its likeliest surface form's; for a conflict, audio minus video.

    Source: Wang et al. 2022.
    """

    a: Answer
    b: Answer
    name: str = "logit_diff"
    unit: ClassVar[str] = "nats"

    def __post_init__(self):
        for field in ("a", "b"):
            value = getattr(self, field)
            if not isinstance(value, str):
                object.__setattr__(self, field, as_indices(value, field))

    def prepare(self, model: Model, prompt: Prompt) -> jax.Array:
        """bool: which of the read tokens are those of `a`."""
        a, b = answer_tokens(model, self.a), answer_tokens(model, self.b)
        if set(a) & set(b):
            raise ValueError(
                f"logit_diff: {self.a!r} and {self.b!r} begin with one token ({sorted(set(a) & set(b))}) and cannot be "
                "told apart; choose other words or token ids"
            )
        return jnp.asarray([True] * len(a) + [False] * len(b))

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return answer_tokens(model, self.a) + answer_tokens(model, self.b)

    def computed(self) -> Metric:
        return dataclasses.replace(self, a=(0,), b=(1,))

    def attributes(self, model: Model) -> dict[str, Any]:
        return {"a": str(self.a), "b": str(self.b), "scored": "first token of each surface form"}

    def __call__(self, view: View) -> Values:
        of_a = view.prepared
        return _largest(view.logits, of_a) - _largest(view.logits, ~of_a)


def _largest(logits: jax.Array, among: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(among, logits, -jnp.inf))


@dataclasses.dataclass(frozen=True)
class LogLikelihood(Metric):
    """Log-likelihood of a continuation under teacher forcing: the sum over its tokens, or with `mean` per token."""

    text: str | Sequence[int]
    mean: bool = False
    name: str = "log_likelihood"

    def __post_init__(self):
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", as_indices(self.text, "text"))

    @property
    def unit(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "nats per token" if self.mean else "nats"

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return ()

    def continuation(self, model: Model) -> tuple[int, ...]:
        if isinstance(self.text, str):
            return model.encode_text(self.text)
        return in_vocabulary(model, self.text, "text")

    def computed(self) -> Metric:
        return dataclasses.replace(self, text=(0,))

    def attributes(self, model: Model) -> dict[str, Any]:
        return {"continuation": str(self.text), "tokens": list(self.continuation(model))}

    def __call__(self, view: View) -> Values:
        return jnp.mean(view.logprobs) if self.mean else jnp.sum(view.logprobs)


@dataclasses.dataclass(frozen=True)
class KL(Metric):
    """Divergence between the next-token distributions of the clean run and of the cell.

    Attributes:
      direction: "forward" is KL(clean || edited), "reverse" KL(edited || clean).
    """

    direction: Literal["forward", "reverse"] = "forward"
    name: str = ""
    unit: ClassVar[str] = "nats"

    def __post_init__(self):
        if self.direction not in ("forward", "reverse"):
            raise ValueError(f"KL: expected a direction of forward or reverse, got {self.direction!r}")
        if not self.name:
            object.__setattr__(self, "name", "kl" if self.direction == "forward" else "kl_reverse")

    def attributes(self, model: Model) -> dict[str, Any]:
        return {"direction": "KL(clean || edited)" if self.direction == "forward" else "KL(edited || clean)"}

    def __call__(self, view: View) -> Values:
        p, q = jax.nn.log_softmax(view.clean_logits), jax.nn.log_softmax(view.logits)
        p, q = (p, q) if self.direction == "forward" else (q, p)
        return jnp.maximum(jnp.sum(jnp.exp(p) * (p - q)), 0.0)  # rounding must not make it negative


@dataclasses.dataclass(frozen=True)
class TotalVariation(Metric):
    """Half the summed difference between the next-token distributions of the clean run and of the cell."""

    name: str = "total_variation"
    unit: ClassVar[str] = "probability"

    def __call__(self, view: View) -> Values:
        return 0.5 * jnp.sum(jnp.abs(jax.nn.softmax(view.logits) - jax.nn.softmax(view.clean_logits)))


@dataclasses.dataclass(frozen=True)
class TopK(Metric):
    """The likeliest next tokens, along the dimension `top`, and their probabilities as `NAME_prob`."""

    k: int = 5
    name: str = "top_k"
    unit: ClassVar[str] = "token id"
    dims: ClassVar[tuple[str, ...]] = ("top",)
    averages: ClassVar[bool] = False

    def __post_init__(self):
        if type(self.k) is not int or self.k < 1:
            raise ValueError(f"TopK: expected k of at least 1, got {self.k!r}")

    def __call__(self, view: View) -> Values:
        values, tokens = top_k(jax.nn.softmax(view.logits), self.k)
        return {"": tokens, "prob": values}


@dataclasses.dataclass(frozen=True)
class AttentionMass(Metric):
    """Attention that the queries pay the keys, per layer and head: summed over keys, mean over queries.

    `NAME_per_key` is the same over the keys' share of what the queries see: 1 is uniform attention.

    Attributes:
      key, query: token selectors.
    """

    key: Selector
    query: Selector = "last"
    name: str = "attention_mass"
    unit: ClassVar[str] = "share of attention"
    dims: ClassVar[tuple[str, ...]] = ("layer", "head")

    def __post_init__(self):
        for field in ("key", "query"):
            value = getattr(self, field)
            if not isinstance(value, str):
                object.__setattr__(self, field, as_indices(value, field))

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return ()

    def attention(self) -> tuple[Selector, Selector]:
        return self.query, self.key

    def attributes(self, model: Model) -> dict[str, Any]:
        return {"query": str(self.query), "key": str(self.key)}

    def __call__(self, view: View) -> Values:
        assert view.mass is not None and view.key_share is not None
        return {"": view.mass, "per_key": view.mass / view.key_share}


@dataclasses.dataclass(frozen=True)
class Caption(Metric):
    """The greedy continuation as text, and its number of tokens as `NAME_tokens`.

    Attributes:
      max_new_tokens: by default 50, and under compat="published-script" 1,024, see `avjax.generate`.
    """

    max_new_tokens: int | None = None
    name: str = "caption"
    unit: ClassVar[str] = "text"
    averages: ClassVar[bool] = False

    def __post_init__(self):
        if self.max_new_tokens is not None and (type(self.max_new_tokens) is not int or self.max_new_tokens < 1):
            raise ValueError(f"Caption: expected max_new_tokens of at least 1, got {self.max_new_tokens!r}")

    @property
    def limit(self) -> int:
        """The most tokens of a continuation; a sweep puts in what its `compat` asks for."""
        return max_new_tokens_for(None, self.max_new_tokens)
