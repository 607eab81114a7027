"""Qwen2's decoder on HF's weights, a layer at a time, for the strong worker.

Axes: A row (variant), R query, T prompt, D width, N heads, K kv heads, G = N/K, H head width.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch_model import DEVICE

MAX_POSITIONS = 8192


@dataclasses.dataclass
class Prefill:
    """What is kept of a prompt: the residual stream before every layer and after the last, and keys and values."""

    residuals: list[torch.Tensor]  # L + 1 of [T, D]
    cache: list[tuple[torch.Tensor, torch.Tensor]]  # L of keys and values [K, T, H]


class Decoder:
    """The layers; norms, projections and MLPs are HF's own modules."""

    def __init__(self, model: Any):
        config = model.config
        self.model, self.layers = model.model, model.model.layers
        self.head, self.norm, self.embed = model.lm_head, model.model.norm, model.model.embed_tokens
        self.num_layers, self.num_heads = config.num_hidden_layers, config.num_attention_heads
        self.num_kv, self.width = config.num_key_value_heads, config.hidden_size
        self.size = self.width // self.num_heads
        self.groups = self.num_heads // self.num_kv
        places = torch.arange(MAX_POSITIONS, device=DEVICE)[None]
        self.cos, self.sin = (a[0] for a in self.model.rotary_emb(self.head.weight, places))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))

    def empty_cache(self, rows: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shape = (rows, self.num_kv, length, self.size)
        return [(torch.zeros(shape, device=DEVICE), torch.zeros(shape, device=DEVICE)) for _ in range(self.num_layers)]

    def prefill(self, ids: torch.Tensor) -> Prefill:
        x = self.embed(ids)
        residuals, cache = [x[0]], []
        for layer in range(self.num_layers):
            q, k, v = self._heads(layer, x, slice(0, x.shape[1]), x)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = self._finish(layer, x, z)
            residuals.append(x[0])
            cache.append((k[0], v[0]))
        return Prefill(residuals, cache)

    def row_layer(
        self,
        layer: int,
        x: torch.Tensor,
        position: int,
        shared: tuple[torch.Tensor, torch.Tensor],
        length: int,
        bias: torch.Tensor | None,
        own: tuple[tuple[torch.Tensor, torch.Tensor], int] | None,
    ) -> torch.Tensor:
        """One position of every row [A, D] against shared keys, which are read once for all rows, and its own.

        Args:
          shared: the prompt's keys and values [K, T, H], of which `length` count.
          bias: additive on the shared keys [A, N or 1, length].
          own: keys and values [A, K, n, H] since the prompt's end, to write to, and the step; None: this position only.
        """
        rows = len(x)
        q, k, v = self._heads(layer, x[:, None], slice(position, position + 1), x[:, None])
        if own is not None:
            (keys, values), step = own
            keys[:, :, step], values[:, :, step] = k[:, :, 0], v[:, :, 0]
            k, v = keys[:, :, : step + 1], values[:, :, : step + 1]
        q = q.view(rows, self.num_kv, self.groups, self.size) * self.size**-0.5
        folded = q.transpose(0, 1).reshape(self.num_kv, rows * self.groups, self.size)
        scores = (folded @ shared[0][:, :length].transpose(1, 2)).view(self.num_kv, rows, self.groups, length)
        if bias is not None:
            heads = self.num_kv if bias.shape[1] > 1 else 1
            scores = scores + bias.view(rows, heads, -1, length).transpose(0, 1)
        scores = torch.cat([scores, (q @ k.transpose(2, 3)).transpose(0, 1)], -1)
        weights = scores.softmax(-1)
        past = weights[..., :length].reshape(self.num_kv, rows * self.groups, length) @ shared[1][:, :length]
        z = past.view(self.num_kv, rows, self.groups, self.size).transpose(0, 1)
        z = z + weights[..., length:].transpose(0, 1) @ v
        return self._finish(layer, x[:, None], z.reshape(rows, self.num_heads, 1, self.size))[:, 0]

    def suffix_layer(
        self,
        layer: int,
        x: torch.Tensor,
        start: int,
        clean: tuple[torch.Tensor, torch.Tensor],
        blocked: torch.Tensor | None,
        ablated: dict[int, int],
    ) -> torch.Tensor:
        """The positions from `start` on of every row [A, R, D]; of the last layer only the last position [A, 1, D].

        Args:
          clean: the prompt's keys and values [K, T, H].
          blocked: forbidden edges [A, R, T], or None.
          ablated: the head whose output is zeroed, by row.
        """
        rows, count = x.shape[:2]
        queries = x[:, -1:] if layer == self.num_layers - 1 else x
        q, k, v = self._heads(layer, queries, slice(start, start + count), x)
        if start:
            k, v = (
                torch.cat([old[None, :, :start].expand(rows, -1, -1, -1), new], 2)
                for old, new in zip(clean, (k, v), strict=True)
            )
        mask = None
        if blocked is not None or (start and queries.shape[1] > 1):
            total = start + count
            mask = torch.ones(count, total, dtype=torch.bool, device=DEVICE).tril(start)[None]
            mask = (mask if blocked is None else mask & ~blocked)[:, None, -queries.shape[1] :]
        causal = mask is None and queries.shape[1] > 1
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        for row, head in ablated.items():
            z[row, head] = 0
        return self._finish(layer, queries, z)

    def _heads(self, layer: int, queries: torch.Tensor, places: slice, x: torch.Tensor) -> Any:
        """Rotated queries [A, N, R, H], and keys and values [A, K, S, H] of x; queries are the last positions of x."""
        attention, norm = self.layers[layer].self_attn, self.layers[layer].input_layernorm
        x = norm(x)
        queries = x[:, -queries.shape[1] :]
        q = attention.q_proj(queries).view(*queries.shape[:2], self.num_heads, self.size).transpose(1, 2)
        k = attention.k_proj(x).view(*x.shape[:2], self.num_kv, self.size).transpose(1, 2)
        v = attention.v_proj(x).view(*x.shape[:2], self.num_kv, self.size).transpose(1, 2)
        cos, sin = self.cos[places], self.sin[places]
        return _rotated(q, cos[-q.shape[2] :], sin[-q.shape[2] :]), _rotated(k, cos, sin), v

    def _finish(self, layer: int, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The output projection and the MLP, on heads' outputs [A, N, R, H]."""
        block = self.layers[layer]
        x = x + block.self_attn.o_proj(z.transpose(1, 2).reshape(x.shape))
        return x + block.mlp(block.post_attention_layernorm(x))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin
