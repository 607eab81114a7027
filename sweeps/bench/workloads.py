"""What is measured, as one JSON document that every worker reads: a prompt, its token groups and the variants.

  a  every (layer, head) knockout last->video, read at the last token
  b  9 layer windows x 4 rules, 50 greedy tokens each
  c  residual patches from another prompt: every layer x 8 contiguous token groups
  d  scalings of the residual stream at audio and video positions: every layer x 2 factors
  e  logit lens: 96 audio positions x every layer x the whole vocabulary, the 5 likeliest
Unfavourable, since an edit near the beginning of the prompt changes nearly all of it:
  f  one head's output zeroed at all positions, 24 (layer, head) pairs
  g  knockouts video->audio in 12 layer windows
  h  scalings of the embeddings, audio or video x 4 factors
  i  a single variant of a

`answer` stands for the last prompt position and every generated token, `generated` for the latter alone, as published.
"""

import itertools
from typing import Any

import numpy as np

from sweeps.bench.checkpoint import Size

NUM_SYSTEM, NUM_QUESTION = 16, 24
CHUNK_VIDEO, CHUNK_AUDIO = 40, 10
LENS_POSITIONS = 96
MAX_NEW_TOKENS = 50
TOP = 5

TITLES = {
    "a": "each (layer, head) knockout, last->video",
    "b": "window knockouts, greedy decoding",
    "c": "residual patches, layer x token group",
    "d": "residual scaling, layer x modality x factor",
    "e": "logit lens at audio positions, top 5",
    "f": "head ablation at all positions",
    "g": "window knockouts, video->audio",
    "h": "embedding scaling",
    "i": "a single variant of a",
}


def document(size: Size, seed: int = 0) -> dict[str, Any]:
    """The prompt and the variants of every workload.

    Returns:
      `ids` and `corrupt_ids` [T], `kinds` [T], `answers` (the two token ids whose logits are compared),
      `max_new_tokens`, `top`, and `workloads`: a list of variants by letter.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, size.vocab_size - 100, (2, size.num_tokens))
    return {
        "ids": ids[0].tolist(),
        "corrupt_ids": ids[1].tolist(),
        "kinds": token_kinds(size),
        "answers": rng.choice(size.vocab_size - 100, 2, replace=False).tolist(),
        "max_new_tokens": MAX_NEW_TOKENS,
        "top": TOP,
        "workloads": _variants(size),
    }


def token_kinds(size: Size) -> list[str]:
    """System text, then chunks of video and audio in turn, then the question, in the published order.

    A quarter of the last, shorter chunk is audio: with 512 tokens, 96 positions are.
    """
    chunks, rest = divmod(size.num_tokens - NUM_SYSTEM - NUM_QUESTION, CHUNK_VIDEO + CHUNK_AUDIO)
    media = (["video"] * CHUNK_VIDEO + ["audio"] * CHUNK_AUDIO) * chunks
    last = (rest + 2) // 4
    media += ["video"] * (rest - last) + ["audio"] * last
    return ["text"] * NUM_SYSTEM + media + ["text"] * NUM_QUESTION


def _variants(size: Size) -> dict[str, list[dict[str, Any]]]:
    layers, heads = range(size.num_layers), range(size.num_heads)
    step = size.num_layers // 12
    windows = [list(range(i * step, i * step + size.num_layers // 3)) for i in range(9)]
    short = [list(range(i * step, min(size.num_layers, (i + 2) * step))) for i in range(12)]
    rules = [("answer", "video"), ("answer", "audio"), ("generated", "video"), ("generated", "audio")]
    edges = np.linspace(0, size.num_tokens, 9).astype(int).tolist()
    pairs = [(layer, head) for layer in layers for head in heads]
    audio = [i for i, kind in enumerate(token_kinds(size)) if kind == "audio"]
    return {
        "a": [knockout("last", "video", [layer], [head]) for layer, head in pairs],
        "b": [knockout(query, key, window, None) for window in windows for query, key in rules],
        "c": [
            {"op": "patch", "layer": layer, "start": start, "stop": stop}
            for layer in layers
            for start, stop in itertools.pairwise(edges)
        ],
        "d": [scale(kind, factor, layer) for layer in layers for kind in ("audio", "video") for factor in (0.5, 2.0)],
        "e": [{"op": "lens", "position": position} for position in audio[:LENS_POSITIONS]],
        "f": [{"op": "ablate", "layer": layer, "head": head} for layer, head in pairs[:: len(pairs) // 24]],
        "g": [knockout("video", "audio", window, None) for window in short],
        "h": [scale(kind, factor, None) for kind in ("audio", "video") for factor in (0.0, 0.5, 2.0, 4.0)],
        "i": [knockout("last", "video", [size.num_layers // 2], [1])],
    }


def knockout(query: str, key: str, layers: list[int], heads: list[int] | None) -> dict[str, Any]:
    return {"op": "knockout", "query": query, "key": key, "layers": layers, "heads": heads}


def scale(kind: str, factor: float, layer: int | None) -> dict[str, Any]:
    """Multiplies the residual stream before a layer; without a layer, the embeddings."""
    return {"op": "scale", "where": kind, "factor": factor, "layer": layer}
