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
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from avjax.devices.arrays import on_device
from avjax.model import Model
from avjax.models.top_k import top_k
from avjax.prompts.compat import max_new_tokens_for
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import Selector, as_indices

Answer = str | int | np.integer | Sequence[int]
Values = jax.Array | Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What a metric sees of one cell and of the clean run.

    Attributes:
      logits, clean_logits: float32 [V], next-token logits at the last prompt position; of the metric's `read_tokens`
        alone where it names some.
      logprobs, clean_logprobs: float32 [n], log-probability (nats) of each token of the metric's continuations, one
        continuation after the other, given the prompt and the tokens before it; empty without one.
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
      distance: whether it measures how far a cell is from the clean run, which is never below 0: that a mean differs
        from 0 then says nothing.
    """

    name: str = "metric"
    unit: ClassVar[str] = ""
    dims: ClassVar[tuple[str, ...]] = ()
    averages: ClassVar[bool] = True
    distance: ClassVar[bool] = False

    def prepare(self, model: Model, prompt: Prompt) -> Any:
        """Arrays that the function needs of the model and prompt, such as token ids; once per prompt."""
        return None

    def continuation(self, model: Model) -> tuple[int, ...]:
        """Tokens that are fed after the prompt, whose log-probabilities the metric reads."""
        return ()

    def continuations(self, model: Model) -> tuple[tuple[int, ...], ...]:
        """All continuations that the metric reads, each fed on its own: `continuation`, unless there are several."""
        continuation = self.continuation(model)
        return (continuation,) if continuation else ()

    def read_tokens(self, model: Model) -> tuple[int, ...] | None:
        """The token ids whose logits are all that the metric reads, in the order in which the view has them.

        Where every metric of a sweep names its own, no others are computed. None is the whole vocabulary.
        """
        return None

    def attention(self) -> tuple[Selector, Selector] | None:
        """Query and key selectors whose attention mass the metric reads."""
        return None

    def compiled_form(self) -> "Metric":
        """The metric with its answers replaced by placeholders: metrics that differ in answers alone share a program.

        What `prepare` returns holds the answers themselves.
        """
        return self

    def attributes(self, model: Model) -> dict[str, Any]:
        """What the dataset says about the variable beside its unit."""
        return {}

    def __call__(self, view: View) -> Values:
        raise NotImplementedError


def _with_placeholders(metric: Metric, **answers: Any) -> Metric:
    """A metric without its answers; a subclass of the user's as it is, whose function may read them itself."""
    return dataclasses.replace(metric, **answers) if type(metric).__module__ == __name__ else metric  # pyright: ignore


def answer_forms(model: Model, answer: Answer) -> tuple[tuple[int, ...], ...]:
    """The tokens of each surface form of an answer: the word, and the word after a space; or given ids, one each.

    A form that goes on from another is left out: what begins with it begins with the other too.

    Raises:
      ValueError: the text has no tokens, or an id is outside the vocabulary.
    """
    if not isinstance(answer, str):
        return tuple((token,) for token in dict.fromkeys(in_vocabulary(model, answer, "answer")))
    if not answer.strip():
        raise ValueError(f"answer {answer!r}: expected a word, got nothing")
    forms = dict.fromkeys(tuple(model.encode_text(form)) for form in (answer.strip(), f" {answer.strip()}"))
    return tuple(form for form in forms if not any(_goes_on(form, other) for other in forms if other != form))


def answer_tokens(model: Model, answer: Answer) -> tuple[int, ...]:
    """The surface forms of an answer that are one token, for what is read at one position.

    Raises:
      ValueError: as `answer_forms`; or no form is one token.
    """
    forms = answer_forms(model, answer)
    tokens = tuple(form[0] for form in forms if len(form) == 1)
    if not tokens:
        written = " and ".join(str([model.decode_text([token]) for token in form]) for form in forms)
        raise ValueError(
            f"answer {answer!r}: expected a word of one token, got {written}, whose first token also begins other "
            "words; choose a word of one token, pass token ids, or use LogProb, Prob, LogitDiff or LogLikelihood, "
            "which read all tokens of a word"
        )
    return tokens


def _goes_on(form: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a form begins with all of another."""
    return tuple(form[: len(other)]) == tuple(other)


def _in_parts(forms: Sequence[Sequence[int]], first: int) -> np.ndarray:
    """bool [form, n]: which of the continuations' log-probabilities are each form's, from its token `first` on."""
    lengths = [len(form) if len(form) > 1 else 0 for form in forms]
    parts = np.zeros((len(forms), sum(lengths)), bool)
    stop = 0
    for row, length in enumerate(lengths):
        parts[row, stop + first : stop + length] = True
        stop += length
    return parts


def _summed(logprobs: jax.Array, parts: jax.Array) -> jax.Array:
    """Log-probabilities [n] summed over each form's part [form, n]."""
    return jnp.sum(jnp.where(parts, logprobs, 0.0), axis=-1)


def _several(forms: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Forms of several tokens, which are teacher-forced."""
    return tuple(form for form in forms if len(form) > 1)


def _about_forms(forms: Sequence[Sequence[int]]) -> str:
    return "all tokens of each surface form, teacher-forced" if _several(list(map(tuple, forms))) else "the next token"


def in_vocabulary(model: Model, ids: Sequence[int] | np.ndarray | int | np.integer, what: str) -> tuple[int, ...]:
    """Token ids as integers.

    Raises:
      ValueError, TypeError: there are none, or one is outside the vocabulary or no integer.
    """
    indices, vocab = as_indices(ids, what), model.config.decoder.vocab_size
    if not indices or any(not 0 <= i < vocab for i in indices):
        raise ValueError(f"{what}: expected token ids within 0:{vocab}, got {ids!r}")
    return indices


def _text_tokens(model: Model, text: str | Sequence[int]) -> tuple[int, ...]:
    return model.encode_text(text) if isinstance(text, str) else in_vocabulary(model, text, "text")


def _ids(tokens: Sequence[int]) -> jax.Array:
    return jnp.asarray(tokens, jnp.int32)


@dataclasses.dataclass(frozen=True)
class _OfAnswer(Metric):
    answer: Answer

    def __post_init__(self):
        if not isinstance(self.answer, str):
            object.__setattr__(self, "answer", as_indices(self.answer, "answer"))

    def prepare(self, model: Model, prompt: Prompt) -> Any:
        """Forms of one token, int32 [f]; and which log-probabilities are of each other form, bool [g, n]."""
        forms = answer_forms(model, self.answer)
        several = _several(forms)
        return _ids([form[0] for form in forms if len(form) == 1]), jnp.asarray(_in_parts(several, 0))

    def continuations(self, model: Model) -> tuple[tuple[int, ...], ...]:
        return _several(answer_forms(model, self.answer))

    def compiled_form(self) -> Metric:
        return _with_placeholders(self, answer=(0,))

    def attributes(self, model: Model) -> dict[str, Any]:
        forms = answer_forms(model, self.answer)
        tokens = [list(form) for form in forms]
        return {"answer": str(self.answer), "answer_tokens": tokens, "scored": _about_forms(forms)}

    def log_probs(self, view: View) -> jax.Array:
        """Of each surface form, all its tokens together."""
        single, parts = view.prepared
        return jnp.concatenate([jax.nn.log_softmax(view.logits)[single], _summed(view.logprobs, parts)])


@dataclasses.dataclass(frozen=True)
class LogProb(_OfAnswer):
    """Log-probability (nats) that the model goes on with the answer: all tokens of a surface form, over the forms."""

    name: str = "log_prob"
    unit: ClassVar[str] = "nats"

    def __call__(self, view: View) -> Values:
        return jax.nn.logsumexp(self.log_probs(view))


@dataclasses.dataclass(frozen=True)
class Prob(_OfAnswer):
    """Probability that the model goes on with the answer: all tokens of a surface form, summed over the forms."""

    name: str = "prob"
    unit: ClassVar[str] = "probability"

    def __call__(self, view: View) -> Values:
        return jnp.sum(jnp.exp(self.log_probs(view)))


@dataclasses.dataclass(frozen=True)
class Rank(_OfAnswer):
    """Rank of the answer's likeliest surface form among all next tokens; 1 is the model's own choice.

    Forms of several tokens have no rank among tokens and are left out; a word that has no other is refused.
    """

    name: str = "rank"
    unit: ClassVar[str] = "rank"

    def prepare(self, model: Model, prompt: Prompt) -> jax.Array:
        return _ids(answer_tokens(model, self.answer))

    def continuations(self, model: Model) -> tuple[tuple[int, ...], ...]:
        return ()

    def attributes(self, model: Model) -> dict[str, Any]:
        tokens = [[token] for token in answer_tokens(model, self.answer)]
        return {"answer": str(self.answer), "answer_tokens": tokens, "scored": "surface forms of one token"}

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

    A form of several tokens counts its first token's logit and the log-probabilities of those after it, so that the
    difference is one of log-probabilities of whole words.

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

    def prepare(self, model: Model, prompt: Prompt) -> tuple[jax.Array, jax.Array]:
        """bool [f]: which forms are those of `a`; bool [f, n]: which log-probabilities each form's logit gains."""
        a, b = answer_forms(model, self.a), answer_forms(model, self.b)
        for one, other in itertools.product(a, b):
            if _goes_on(one, other) or _goes_on(other, one):
                same = [model.decode_text([token]) for token in min(one, other, key=len)]
                raise ValueError(
                    f"logit_diff: {self.a!r} and {self.b!r} share a form, or one begins with the other ({same}), so "
                    "they cannot be told apart; choose other words or token ids"
                )
        return on_device([True] * len(a) + [False] * len(b)), on_device(_in_parts(a + b, 1))

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return tuple(form[0] for form in self._forms(model))

    def continuations(self, model: Model) -> tuple[tuple[int, ...], ...]:
        return _several(self._forms(model))

    def _forms(self, model: Model) -> tuple[tuple[int, ...], ...]:
        return answer_forms(model, self.a) + answer_forms(model, self.b)

    def compiled_form(self) -> Metric:
        return _with_placeholders(self, a=(0,), b=(1,))

    def attributes(self, model: Model) -> dict[str, Any]:
        tokens = {f"{name}_tokens": [*map(list, answer_forms(model, getattr(self, name)))] for name in ("a", "b")}
        return {"a": str(self.a), "b": str(self.b), **tokens, "scored": _about_forms(self._forms(model))}

    def __call__(self, view: View) -> Values:
        of_a, later = view.prepared
        scores = view.logits + _summed(view.logprobs, later)
        return _largest(scores, of_a) - _largest(scores, ~of_a)


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
        return _text_tokens(model, self.text)

    def compiled_form(self) -> Metric:
        return _with_placeholders(self, text=(0,))

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
    distance: ClassVar[bool] = True

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
    distance: ClassVar[bool] = True

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
      text: words that are fed as generated tokens, so that `generated` and `answer` queries are there to ask; what
        other metrics feed changes nothing. The last of its tokens is not fed, as in `LogLikelihood`.
    """

    key: Selector
    query: Selector = "last"
    name: str = "attention_mass"
    text: str | Sequence[int] | None = None
    unit: ClassVar[str] = "share of attention"
    dims: ClassVar[tuple[str, ...]] = ("layer", "head")

    def __post_init__(self):
        for field in ("key", "query"):
            value = getattr(self, field)
            if not isinstance(value, str):
                object.__setattr__(self, field, as_indices(value, field))
        if self.text is not None and not isinstance(self.text, str):
            object.__setattr__(self, "text", as_indices(self.text, "text"))

    def read_tokens(self, model: Model) -> tuple[int, ...]:
        return ()

    def continuation(self, model: Model) -> tuple[int, ...]:
        return () if self.text is None else _text_tokens(model, self.text)

    def attention(self) -> tuple[Selector, Selector]:
        return self.query, self.key

    def attributes(self, model: Model) -> dict[str, Any]:
        attributes = {"query": str(self.query), "key": str(self.key)}
        return attributes if self.text is None else attributes | {"continuation": str(self.text)}

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
