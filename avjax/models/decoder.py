"""The language model of the Qwen2.5 family: pre-norm blocks, grouped-query attention, multimodal rotary positions.

Axes: T query, S key, N heads, K kv heads, H head dim, D embed, F mlp, L layer, V vocab, M token group.

Layers are one block whose parameters lead with L; `jax.lax.scan` walks them together with an edit that leads with L.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from avjax.models.config import DecoderConfig
from avjax.models.layers import Embedding, GatedMLP, Linear, RMSNorm, add, inverse_frequencies, rotate
from avjax.models.sites import Site

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
At = Callable[[Site, Array], Array]
Rotary = tuple[Array, Array]


class Attention(nnx.Module):
    def __init__(self, cfg: DecoderConfig, *, stack: tuple[int, ...]):
        heads, kv = [cfg.num_heads, cfg.head_dim], [cfg.num_kv_heads, cfg.head_dim]
        self.q = Linear([cfg.embed_dim], heads, stack=stack, bias=True)
        self.k = Linear([cfg.embed_dim], kv, stack=stack, bias=True)
        self.v = Linear([cfg.embed_dim], kv, stack=stack, bias=True)
        self.o = Linear(heads, [cfg.embed_dim], stack=stack)

    def queries(self, x: Float[Array, "... D"], rotary: Rotary) -> Array:
        """Rotated."""
        return rotate(self.q(x), *rotary)

    def keys_values(self, x: Float[Array, "... D"], rotary: Rotary) -> tuple[Array, Array]:
        """Rotated keys, and values."""
        return rotate(self.k(x), *rotary), self.v(x)


class Block(nnx.Module):
    def __init__(self, cfg: DecoderConfig, *, stack: tuple[int, ...]):
        self.attn_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.attn = Attention(cfg, stack=stack)
        self.mlp_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.mlp = GatedMLP(cfg.embed_dim, cfg.mlp_dim, stack=stack)

    def __call__(
        self,
        x: Float[Array, "... D"],
        rotary: Rotary,
        attend: Attend,
        at: At,
        keep: Callable[[Array, int], Array] | None = None,
    ) -> tuple[Array, Any]:
        """One layer over any rows.

        Args:
          attend: takes rotated queries [..., N, H], keys and values [..., K, H]; returns z [..., N, H] and whatever the
            caller wants to keep.
          at: called with each site and its activations; what it returns flows on.
          keep: takes an array and the axis of its rows; returns the rows whose residual is wanted, when the others give
            their keys and values only. `at` then meets those rows from `z` on.

        Returns:
          The residual after the layer, and what `attend` kept.
        """
        x = at(Site.RESID_PRE, x)
        h = at(Site.ATTN_IN, self.attn_norm(x))
        k, v = self.attn.keys_values(h, rotary)
        if keep is not None:
            x, h, rotary = keep(x, -2), keep(h, -2), (keep(rotary[0], -2), keep(rotary[1], -2))
        z, kept = attend(self.attn.queries(h, rotary), k, at(Site.VALUE, v))
        attn_out = at(Site.ATTN_OUT, self.attn.o(at(Site.Z, z)))
        x = at(Site.RESID_MID, add(x, attn_out))
        mlp_out = at(Site.MLP_OUT, self.mlp(at(Site.MLP_IN, self.mlp_norm(x))))
        return at(Site.RESID_POST, add(x, mlp_out)), kept


class Decoder(nnx.Module):
    """Embedding table, stacked blocks, final norm and unembedding."""

    def __init__(self, cfg: DecoderConfig):
        self.cfg = cfg
        self.embed = Embedding(cfg.vocab_size, cfg.embed_dim)
        self.layers = Block(cfg, stack=(cfg.num_layers,))
        self.final_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
        self.unembed = None if cfg.tied_embeddings else Embedding(cfg.vocab_size, cfg.embed_dim)

    def rotary(self, positions_3T: Int[Array, "3 *T"], dtype: DTypeLike) -> tuple[Array, Array]:
        """cos and sin [*T, H]; frequencies follow t, h and w in blocks of `mrope_section`, once per half of H."""
        frequencies = inverse_frequencies(self.cfg.head_dim, self.cfg.rope_theta)
        axis = np.repeat(np.arange(3), self.cfg.mrope_section)
        angles = jnp.moveaxis(positions_3T[axis], 0, -1).astype(jnp.float32) * frequencies
        angles = jnp.concatenate([angles, angles], axis=-1)
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)

    def logits(self, x: Float[Array, "... D"], tokens: Int[Array, "V"] | None = None) -> Float[Array, "... V"]:
        """Unnormalised log-probabilities (nats, up to a constant) of the final residual, in float32.

        Args:
          tokens: the ids that are wanted; None is the whole vocabulary.
        """
        table = self.embed if self.unembed is None else self.unembed
        return table.logits(self.final_norm(x), tokens)
