"""How far rounding alone moves a logit, and how large a difference must be before shares of it mean anything.

Axes: V vocab.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from avjax.edits.edits import Patch
from avjax.engine.reference import logits_at, pad_inputs
from avjax.metrics import Logits
from avjax.model import Model
from avjax.models.buckets import bucket
from avjax.prompts.compat import Compat, attention_compat, compatible_prompt
from avjax.prompts.prompt import Prompt
from avjax.runs.sweep import sweep

# A recovery r = (patched - corrupt) / (clean - corrupt) between 0 and 1 of values whose changes are off by at most F
# is off by at most (F + r F) / gap, and so by at most 2 F / gap: by 0.25 where the gap is 8 F.
GAP_FACTOR = 8.0
MIN_GAP = f"{GAP_FACTOR:g} x the noise floor of each sample: rounding moves a recovery by at most 0.25"


def noise_floor(model: Model, prompt: Prompt, *, compat: Compat | None = None, **options: Any) -> float:
    """How far apart a logit of one run lies when rounding alone differs, in nats: the largest over the vocabulary.

    The run is computed again by the replay's own program, as the clean cell patched with its own activations, and by
    a full pass in float32 over the same parameters, which is what a lower dtype rounds away. A difference of two logits
    in two runs moves by twice the deviation of one logit; the largest of a whole vocabulary's deviations is more.

    Args:
      compat, options: of `avjax.sweep`.
    """
    size = model.config.decoder.vocab_size
    itself = Patch("all", source=prompt, site="resid_pre", layers=[0])
    settings: dict[str, Any] = {**options, "compat": compat, "floor": False, "progress": False}
    swept = sweep(model, {"prompt": prompt}, [[itself]], Logits(range(size)), **settings)
    clean, replayed = (swept[name].to_numpy().astype(np.float64).reshape(size) for name in ("logits_clean", "logits"))
    exact = float32_logits(model, compatible_prompt(prompt, compat), compat)
    largest = max(_largest_deviation(other - clean) for other in (replayed, exact))
    return max(largest, float(np.spacing(np.float32(np.abs(clean).max()))))


def float32_logits(model: Model, prompt: Prompt, compat: Compat | None = None) -> np.ndarray:
    """float64 [V]: next-token logits of a full pass whose activations are float32, whatever the parameters' dtype."""
    inputs = pad_inputs(model.encode(prompt), bucket(len(prompt)))
    inputs = dataclasses.replace(inputs, embeddings=inputs.embeddings.astype(jnp.float32))
    last = jnp.asarray([len(prompt) - 1], jnp.int32)
    logits, _ = logits_at(model.network.decoder, inputs, None, last, compat=attention_compat(compat))
    return np.asarray(logits, np.float64)[0]


def _largest_deviation(change_V: np.ndarray) -> float:
    """A shift of all logits changes no probability."""
    return float(np.abs(change_V - np.median(change_V)).max())


def smallest_gap(floor: Any) -> Any:
    """The smallest difference of a clean and a corrupt run whose recovered share is worth a number.

    Args:
      floor: what rounding changes a run's value by at most.
    """
    return GAP_FACTOR * floor
