"""The language model of the Qwen2.5 family: pre-norm blocks, grouped-query attention, multimodal rotary positions.

Axes: T query, S key, N heads, K kv heads, H head dim, D embed, F mlp, L layer, V vocab, M token group.

Layers are one block whose parameters lead with L; `jax.lax.scan` walks them together with an edit that leads with L.
"""

import dataclasses
from collections.abc import Iterable
from enum import StrEnum

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from avjax.config import DecoderConfig
from avjax.models.attention import Edges, Segment, attend_prompt, attend_token
from avjax.models.layers import Embedding, GatedMLP, Linear, RMSNorm, add, inverse_frequencies, rotate


class Site(StrEnum):
    """Where a decoder layer can be read; the comments give the shape of one position."""

    RESID_PRE = "resid_pre"  # D
    RESID_MID = "resid_mid"  # D, after attention
    RESID_POST = "resid_post"  # D
    ATTN_OUT = "attn_out"  # D
    MLP_OUT = "mlp_out"  # D
    Z = "z"  # N H, per-head output before the output projection
    VALUE = "value"  # K H


class Attention(nnx.Module):
    def __init__(self, cfg: DecoderConfig, *, stack: tuple[int, ...]):
        heads, kv = [cfg.num_heads, cfg.head_dim], [cfg.num_kv_heads, cfg.head_dim]
        self.q = Linear([cfg.embed_dim], heads, stack=stack, bias=True)
        self.k = Linear([cfg.embed_dim], kv, stack=stack, bias=True)
        self.v = Linear([cfg.embed_dim], kv, stack=stack, bias=True)
        self.o = Linear(heads, [cfg.embed_dim], stack=stack)

    def project(self, x: Float[Array, "... D"], cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        """Rotated queries and keys, and values."""
        return rotate(self.q(x), cos, sin), rotate(self.k(x), cos, sin), self.v(x)


class Block(nnx.Module):
    def __init__(self, cfg: DecoderConfig, *, stack: tuple[int, ...]):
        self.attn_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.attn = Attention(cfg, stack=stack)
        self.mlp_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.mlp = GatedMLP(cfg.embed_dim, cfg.mlp_dim, stack=stack)

    def prompt(
        self,
        x_TD: Float[Array, "T D"],
        rotary: tuple[Array, Array],
        length: Int[Array, ""],
        groups: Int[Array, "T"],
        edges: Edges | None,
        capture: Iterable[Site],
    ) -> tuple[Float[Array, "T D"], tuple[Array, Array], dict[Site, Array]]:
        """One layer over a whole prompt: the residual, the layer's keys and values, and the captured sites."""
        seen = {Site.RESID_PRE: x_TD}
        q_TNH, k_SKH, v_SKH = self.attn.project(self.attn_norm(x_TD), *rotary)
        z_TNH = attend_prompt(q_TNH, k_SKH, v_SKH, length=length, groups=groups, edges=edges)
        seen[Site.VALUE], seen[Site.Z] = v_SKH, z_TNH
        x_TD, rest = self._finish(x_TD, z_TNH)
        seen |= rest
        return x_TD, (k_SKH, v_SKH), {site: seen[site] for site in capture}

    def token(
        self,
        x_D: Float[Array, "D"],
        rotary: tuple[Array, Array],
        prompt: Segment,
        decoded: Segment,
        step: Int[Array, ""],
        group: Int[Array, ""],
        edges: Edges | None,
    ) -> tuple[Float[Array, "D"], tuple[Array, Array]]:
        """One layer over one decoded token: the residual, and the decoded keys and values with this token's at `step`.

        The prompt's keys and values are only read, so a decoding loop never copies them.
        """
        q_NH, k_KH, v_KH = self.attn.project(self.attn_norm(x_D), *rotary)
        keys = jax.lax.dynamic_update_index_in_dim(decoded.keys, k_KH, step, axis=0)
        values = jax.lax.dynamic_update_index_in_dim(decoded.values, v_KH, step, axis=0)
        decoded = dataclasses.replace(decoded, keys=keys, values=values)
        z_NH = attend_token(q_NH, (prompt, decoded), group=group, edges=edges)
        return self._finish(x_D, z_NH)[0], (keys, values)

    def _finish(self, x: Array, z: Array) -> tuple[Array, dict[Site, Array]]:
        attn_out = self.attn.o(z)
        resid_mid = add(x, attn_out)
        mlp_out = self.mlp(self.mlp_norm(resid_mid))
        resid_post = add(resid_mid, mlp_out)
        seen = {Site.ATTN_OUT: attn_out, Site.RESID_MID: resid_mid}
        return resid_post, seen | {Site.MLP_OUT: mlp_out, Site.RESID_POST: resid_post}


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

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Unnormalised log-probabilities (nats, up to a constant) of the final residual, in float32."""
        table = self.embed if self.unembed is None else self.unembed
        return table.logits(self.final_norm(x))
