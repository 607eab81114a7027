"""Attention knockouts on a Hugging Face model, by hooks that edit the additive mask of each decoder layer.

Written from the published description alone, so that it can disagree with avjax: it works on explicit query x key masks
of absolute positions, takes token types from token ids, and leaves position ids, encoders and caching to transformers.

A position at or after the prompt's end is `generated`; in prefill there is none, so the first new token is never under
a `generated` rule. A blocked score is the dtype's minimum, so a query with every visible key blocked attends equally to
all keys that exist, later ones included. With `zero_rows` such a query reads zero instead, head by head.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from avjax.prompts.prompt import Prompt

TYPES = ("query_text", "audio", "video", "image", "generated", "last", "answer")


@dataclasses.dataclass(frozen=True)
class Rule:
    """No attention from `query` tokens to `key` tokens in these layers and heads (None: all)."""

    query: str
    key: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Continuation:
    tokens: np.ndarray  # int [n]
    logits: np.ndarray  # float [n, V]


class Oracle:
    """One prompt on one torch model, under any rules."""

    def __init__(self, torch_model: torch.nn.Module, prompt: Prompt):
        self.model = torch_model
        self.layers = torch_model.model.language_model.layers
        self.num_heads = torch_model.config.get_text_config().num_attention_heads
        self.batch = hf_batch(torch_model.config, prompt)
        self.prompt_length = self.batch["input_ids"].shape[1]
        config, ids = torch_model.config, self.batch["input_ids"][0]
        self.media = {
            name: ids == token
            for name in ("audio", "video", "image")
            if (token := getattr(config, f"{name}_token_id", None)) is not None
        }

    def prefill(self, rules: Sequence[Rule], *, zero_rows: bool = False) -> np.ndarray:
        """Logits [T, V] at every prompt position."""
        with self._hooked(rules, zero_rows):
            return self.model(**self.batch).logits[0].numpy()

    def generate(self, rules: Sequence[Rule], max_new_tokens: int, *, zero_rows: bool = False) -> Continuation:
        """The greedy continuation, and the logits that each of its tokens is the largest of."""
        with self._hooked(rules, zero_rows):
            out = self.model.generate(
                **self.batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return Continuation(tokens=out.sequences[0, self.prompt_length :].numpy(), logits=torch.cat(out.logits).numpy())

    def members(self, name: str, size: int) -> torch.Tensor:
        """Which of the positions 0..size-1 have this type: bool [size]."""
        at, mask = torch.arange(size), torch.zeros(size, dtype=torch.bool)
        if name in ("audio", "video", "image"):
            if name in self.media:
                mask[: self.prompt_length] = self.media[name]
            return mask
        if name == "query_text":
            mask[: self.prompt_length] = ~torch.stack(list(self.media.values())).any(0)
            return mask
        if name == "generated":
            return at >= self.prompt_length
        if name == "last":
            return at == self.prompt_length - 1
        if name == "answer":
            return at >= self.prompt_length - 1
        raise ValueError(f"no token type {name!r}")

    def blocked(self, rules: Sequence[Rule], layer: int, size: int) -> torch.Tensor:
        """What the rules forbid at a layer among `size` positions, visible or not: bool [heads, query, key]."""
        blocked = torch.zeros(self.num_heads, size, size, dtype=torch.bool)
        for rule in rules:
            if layer in rule.layers:
                edges = self.members(rule.query, size)[:, None] & self.members(rule.key, size)[None]
                for head in range(self.num_heads) if rule.heads is None else rule.heads:
                    blocked[head] |= edges
        return blocked

    def touched(self, rules: Sequence[Rule], size: int) -> tuple[int, int]:
        """Visible edges that the rules cut, and queries left without a key, over all layers and heads."""
        visible = torch.ones(size, size, dtype=torch.bool).tril()
        edges = dead = 0
        for layer in range(len(self.layers)):
            blocked = self.blocked(rules, layer, size) & visible
            edges += int(blocked.sum())
            dead += int((blocked == visible).all(-1).sum())
        return edges, dead

    @contextlib.contextmanager
    def _hooked(self, rules: Sequence[Rule], zero_rows: bool) -> Iterator[None]:
        handles, self.calls = [], 0
        for index, layer in enumerate(self.layers):
            edit = _LayerEdit(self, tuple(rules), index, zero_rows)
            handles.append(layer.self_attn.register_forward_pre_hook(edit.mask, with_kwargs=True))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(edit.output))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self.calls == 0 or self.calls % len(self.layers):
            raise AssertionError(f"the hooks ran {self.calls} times on {len(self.layers)} layers")


class _LayerEdit:
    """The two hooks of one layer: on the mask that enters attention, and on the head outputs that leave it."""

    def __init__(self, oracle: Oracle, rules: tuple[Rule, ...], index: int, zero_rows: bool):
        self.oracle, self.rules, self.index, self.zero_rows = oracle, rules, index, zero_rows
        self.dead = None

    def mask(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask, hidden = kwargs.get("attention_mask"), kwargs.get("hidden_states", args[0] if args else None)
        if mask is None or not torch.is_floating_point(mask):
            raise RuntimeError("no additive attention mask reached the layer; use attn_implementation='eager'")
        # transformers 5.24 calls it `cache`.
        cache, queries = kwargs.get("cache", kwargs.get("past_key_values")), hidden.shape[1]
        past = 0 if cache is None else cache.get_seq_length(self.index)
        size = past + queries
        if mask.shape != (1, 1, queries, size):
            raise RuntimeError(f"expected a mask [1, 1, {queries}, {size}], got {list(mask.shape)}")
        lowest = torch.finfo(mask.dtype).min
        blocked = self.oracle.blocked(self.rules, self.index, size)[None, :, past:]
        visible = mask == 0
        self.dead = ((blocked & visible) == visible).all(-1)  # [1, heads, query]
        self.oracle.calls += 1
        edited = mask.expand(-1, self.oracle.num_heads, -1, -1).masked_fill(blocked, lowest)
        return args, {**kwargs, "attention_mask": edited}

    def output(self, module: torch.nn.Module, args: tuple) -> tuple | None:
        if not self.zero_rows:
            return None
        (x,) = args
        per_head = x.view(*x.shape[:2], self.oracle.num_heads, -1)
        return (per_head.masked_fill(self.dead.transpose(1, 2)[..., None], 0.0).view(x.shape),)


def hf_batch(config: object, prompt: Prompt) -> dict[str, object]:
    """What a Hugging Face processor would have returned for this prompt: one conversation, nothing padded."""
    ids = torch.tensor(prompt.token_ids, dtype=torch.long)[None]
    batch: dict[str, object] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    omni = hasattr(config, "audio_token_id")
    if prompt.images:
        batch["pixel_values"] = torch.tensor(np.concatenate([clip.patches for clip in prompt.images]))
        batch["image_grid_thw"] = torch.tensor([clip.grid for clip in prompt.images])
    if prompt.videos:
        batch["pixel_values_videos"] = torch.tensor(np.concatenate([clip.patches for clip in prompt.videos]))
        batch["video_grid_thw"] = torch.tensor([clip.grid for clip in prompt.videos])
        seconds = torch.tensor([clip.seconds_per_grid for clip in prompt.videos])
        batch["video_second_per_grid" if omni else "second_per_grid_ts"] = seconds
    if prompt.audio:
        (clip,) = prompt.audio
        batch["input_features"] = torch.tensor(clip.mel.T.copy())[None]
        batch["feature_attention_mask"] = torch.ones(1, len(clip.mel), dtype=torch.long)
        batch["use_audio_in_video"] = bool(prompt.videos)
    if not omni:
        batch["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return batch
