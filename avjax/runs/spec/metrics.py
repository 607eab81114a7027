"""The metrics of a run's specification. Answers may hold {labels} of each clip."""

from typing import Annotated, Literal

from pydantic import Field

from avjax import metrics
from avjax.metrics import Metric
from avjax.runs.spec.edits import Strict, Text, Tokens, expecting

Answer = Annotated[Text | list[int], expecting("text, which may hold {labels} of a clip, or token ids")]
Name = Annotated[str | None, Field(description="Name of the variable; by default the metric's.")]


class _Metric(Strict):
    name: Name = None

    def build(self, labels: dict[str, str | int | float]) -> Metric:
        """The metric of one clip.

        Raises:
          ValueError: a label is unknown, or a value is not as the metric needs it.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "metric"}
        if self.name is None:
            del fields["name"]
        fields = {k: filled(v, labels, f"{type(self).__name__}.{k}") if k in ANSWERS else v for k, v in fields.items()}
        return getattr(metrics, type(self).__name__)(**fields)


ANSWERS = ("answer", "a", "b", "text")


class LogProb(_Metric):
    """Log-probability that the model goes on with the answer (nats)."""

    metric: Literal["log_prob"]
    answer: Answer


class Prob(_Metric):
    """Probability that the model goes on with the answer."""

    metric: Literal["prob"]
    answer: Answer


class Rank(_Metric):
    """Rank of the answer among all next tokens."""

    metric: Literal["rank"]
    answer: Answer


class LogitDiff(_Metric):
    """Logit of one answer minus that of another (nats)."""

    metric: Literal["logit_diff"]
    a: Answer
    b: Answer


class LogLikelihood(_Metric):
    """Log-likelihood of a text that follows, teacher-forced (nats)."""

    metric: Literal["log_likelihood"]
    text: Answer
    mean: bool = False


class KL(_Metric):
    """Divergence between the next-token distributions of the unedited run and of the cell (nats)."""

    metric: Literal["kl"]
    direction: Literal["forward", "reverse"] = "forward"


class TotalVariation(_Metric):
    """Half the summed difference between those distributions."""

    metric: Literal["total_variation"]


class TopK(_Metric):
    """The likeliest next tokens and their probabilities."""

    metric: Literal["top_k"]
    k: int = Field(5, ge=1)


class AttentionMass(_Metric):
    """Attention that the queries pay the keys, per layer and head."""

    metric: Literal["attention_mass"]
    key: Tokens
    query: Tokens = "last"
    text: Answer | None = None


class Caption(_Metric):
    """The greedy continuation as text."""

    metric: Literal["caption"]
    max_new_tokens: int | None = Field(None, ge=1, description="By default 50; with published-script 1,024.")


METRICS: tuple[type[Strict], ...] = (
    *(LogProb, Prob, Rank, LogitDiff, LogLikelihood, KL, TotalVariation, TopK, AttentionMass, Caption),
)
AnyMetric = Annotated[
    LogProb | Prob | Rank | LogitDiff | LogLikelihood | KL | TotalVariation | TopK | AttentionMass | Caption,
    Field(discriminator="metric"),
]


def filled(value: object, labels: dict[str, str | int | float], what: str) -> object:
    """Text with a clip's labels in place of their {names}; other values as they are.

    Raises:
      ValueError: the text names a label that the clip does not have.
    """
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(labels)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(map(repr, labels)) or "none"
        raise ValueError(
            f"{what}: expected {{labels}} that the clip has ({known}), and {{{{ or }}}} for a brace, got {value!r}"
        ) from error
