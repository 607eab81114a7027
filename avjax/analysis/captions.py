"""Captions along which analyses look: given texts under teacher forcing, or what the model itself says."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avjax.engine.generate import generate_variants
from avjax.engine.reads import with_fed
from avjax.metrics import in_vocabulary
from avjax.model import Model
from avjax.prompts.prompt import Prompt, per_sample
from avjax.prompts.selectors import Selector, select

Caption = str | Sequence[int] | np.ndarray
Captions = Caption | Mapping[Any, Caption] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned:
    """A prompt and its caption.

    Attributes:
      prompt: as it was given.
      tokens: int32 [n], the caption's.
      fed: the prompt with all of the caption's tokens but the last, which no token is predicted from.
    """

    prompt: Prompt
    tokens: np.ndarray
    fed: Prompt

    def select(self, selector: Selector) -> np.ndarray:
        """bool [T + n - 1], positions of `fed`; the caption's tokens there are the generated ones."""
        return with_fed(select(self.prompt, selector), len(self.tokens) - 1)

    @property
    def predicting(self) -> np.ndarray:
        """int [n], the positions of `fed` that the caption's tokens are predicted from."""
        return len(self.prompt) - 1 + np.arange(len(self.tokens))


def captioned(
    model: Model, prompts: Mapping[Any, Prompt], captions: Captions = None, max_new_tokens: int = 50
) -> dict[Any, Captioned]:
    """Each prompt with its caption.

    Args:
      captions: one for all, by sample, or None for the model's own greedy caption; texts or token ids.

    Raises:
      ValueError: a caption is empty or missing.
    """
    by_sample, queries = per_sample(prompts, captions, "captions"), {}
    for name, prompt in prompts.items():
        model.check(prompt)
        given = by_sample[name]
        if given is None:
            [generation] = generate_variants(model, prompt, [()], max_new_tokens=max_new_tokens, keep_logits=False)
            tokens = generation.tokens
        elif isinstance(given, str):
            if not given.strip():
                raise ValueError(f"captions: the caption of sample {name!r} is empty; give it words, or leave it out")
            tokens = np.asarray(model.encode_text(given), np.int32)
        else:
            tokens = np.asarray(in_vocabulary(model, given, f"captions: sample {name!r}"), np.int32)
        if not len(tokens):
            raise ValueError(f"captions: the caption of sample {name!r} has no tokens")
        queries[name] = Captioned(prompt=prompt, tokens=tokens, fed=prompt.continued(tokens[:-1]))
    return queries
