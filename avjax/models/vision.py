"""The vision tower of Qwen2.5-VL and Qwen2.5-Omni: windowed and full attention within a frame pair, 2-D rotary, merger.

Axes: B frame pairs, W windows, S patches of a window, P patch dim, N heads, H head dim, D embed, L layer, O output.

Patches arrive in window order, every window padded to the same number of slots. Windowed attention is then a batch
axis, full attention a reshape, and no layer gathers. A frame pair (one step of the temporal grid) never attends to
another, so clips of any length run through one executable per window count.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from avjax.models.config import VisionConfig
from avjax.models.layers import (
    GatedMLP,
    Linear,
    RMSNorm,
    add,
    dot,
    gelu,
    inverse_frequencies,
    masked_softmax,
    rotate,
    rounded,
    scaled,
)


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """Where the patches of one grid step go; the same for every step of a clip."""

    patch_index: np.ndarray  # int32 W S: position in the processor's patch order, -1 for padding
    rows_columns: np.ndarray  # int32 W S 2: spatial patch coordinates, 0 for padding
    merged_index: np.ndarray  # int32 tokens: slot (window-major, merged) of each token in reading order

    @property
    def valid(self) -> np.ndarray:
        return self.patch_index >= 0


def window_layout(cfg: VisionConfig, grid_height: int, grid_width: int, num_windows: int | None = None) -> WindowLayout:
    """The window order of a grid of patches.

    Args:
      grid_height: patches from top to bottom; a multiple of the merge size, as `grid_width`.
      num_windows: pad to this many windows.
    """
    merge, side = cfg.spatial_merge_size, cfg.window_side
    rows, columns = grid_height // merge, grid_width // merge
    token = np.arange(rows * columns).reshape(rows, columns)
    down, across = -(-rows // side), -(-columns // side)
    padded = np.full((down * side, across * side), -1)
    padded[:rows, :columns] = token
    token_WS = padded.reshape(down, side, across, side).transpose(0, 2, 1, 3).reshape(down * across, side * side)
    # Valid tokens first within a window, as HF packs them; their order among themselves is kept.
    order = np.argsort(token_WS < 0, axis=1, kind="stable")
    token_WS = np.take_along_axis(token_WS, order, axis=1)
    extra = (num_windows or len(token_WS)) - len(token_WS)
    token_WS = np.pad(token_WS, ((0, extra), (0, 0)), constant_values=-1)

    unit = merge * merge  # the processor writes the patches of one merged token next to each other
    inside = np.arange(unit)
    patch_WSU = np.where(token_WS[..., None] >= 0, token_WS[..., None] * unit + inside, -1)
    row = (token_WS // columns)[..., None] * merge + inside // merge
    column = (token_WS % columns)[..., None] * merge + inside % merge
    coordinates = np.where(patch_WSU[..., None] >= 0, np.stack([row, column], axis=-1), 0)
    slots = np.flatnonzero(token_WS.reshape(-1) >= 0)
    merged_index = np.empty(rows * columns, np.int32)
    merged_index[token_WS.reshape(-1)[slots]] = slots
    return WindowLayout(
        patch_index=patch_WSU.reshape(len(token_WS), -1).astype(np.int32),
        rows_columns=coordinates.reshape(len(token_WS), -1, 2).astype(np.int32),
        merged_index=merged_index,
    )


class VisionAttention(nnx.Module):
    def __init__(self, cfg: VisionConfig, *, stack: tuple[int, ...]):
        heads = [cfg.num_heads, cfg.head_dim]
        # q, k and v share a kernel with a leading axis of 3, as Qwen2.5-VL stores them.
        self.qkv = Linear([cfg.embed_dim], heads, stack=(*stack, 3), bias=True)
        self.out = Linear(heads, [cfg.embed_dim], stack=stack, bias=True)

    def __call__(self, x_BSD: Array, rotary: tuple[Array, Array], valid_S: Array) -> Array:
        """Attention among the S patches of each row; `rotary` [S, H] and `valid_S` broadcast over rows."""
        q, k, v = (
            rounded(dot("...sd,dnh->...snh", x_BSD, kernel_DNH) + bias_NH, x_BSD.dtype)
            for kernel_DNH, bias_NH in zip(self.qkv.kernel[...], self.qkv.bias[...], strict=True)  # pyright: ignore[reportOptionalSubscript]
        )
        # HF rotates in float32 whatever the compute dtype.
        q, k = (rounded(rotate(y.astype(jnp.float32), *rotary), x_BSD.dtype) for y in (q, k))
        scores = scaled(dot("...qnh,...snh->...nqs", q, k), q.shape[-1], q.dtype)
        weights = rounded(masked_softmax(scores, valid_S[..., None, None, :]), x_BSD.dtype)
        return self.out(rounded(dot("...nqs,...snh->...qnh", weights, v), x_BSD.dtype))


class VisionBlock(nnx.Module):
    def __init__(self, cfg: VisionConfig, *, stack: tuple[int, ...]):
        self.attn_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.attn = VisionAttention(cfg, stack=stack)
        self.mlp_norm = RMSNorm(cfg.embed_dim, cfg.norm_eps, stack=stack)
        self.mlp = GatedMLP(cfg.embed_dim, cfg.mlp_dim, stack=stack, bias=True)

    def __call__(self, x_BWSD: Array, rotary: tuple[Array, Array], valid_WS: Array, full: Array) -> Array:
        y = self.attn_norm(x_BWSD)
        frames, windows, slots, _ = y.shape

        def windowed(y: Array) -> Array:
            return self.attn(y, rotary, valid_WS)

        def whole_frame(y: Array) -> Array:
            cos, sin = (angle.reshape(windows * slots, -1) for angle in rotary)
            flat = self.attn(y.reshape(frames, windows * slots, -1), (cos, sin), valid_WS.reshape(-1))
            return flat.reshape(y.shape)

        x_BWSD = add(x_BWSD, jax.lax.cond(full, whole_frame, windowed, y))
        return add(x_BWSD, self.mlp(self.mlp_norm(x_BWSD)))


class PatchMerger(nnx.Module):
    def __init__(self, cfg: VisionConfig):
        merged = cfg.embed_dim * cfg.spatial_merge_size**2
        self.norm = RMSNorm(cfg.embed_dim, cfg.norm_eps)
        self.fc1 = Linear([merged], [merged], bias=True)
        self.fc2 = Linear([merged], [cfg.output_dim], bias=True)

    def __call__(self, x_BWSD: Array) -> Array:
        y = self.norm(x_BWSD)
        y = y.reshape(len(y), -1, self.fc1.kernel.shape[0])
        return self.fc2(gelu(self.fc1(y)))


class VisionTower(nnx.Module):
    def __init__(self, cfg: VisionConfig):
        self.cfg = cfg
        self.patch_embed = Linear(cfg.patch_shape, [cfg.embed_dim])
        self.layers = VisionBlock(cfg, stack=(cfg.num_layers,))
        self.merger = PatchMerger(cfg)

    def __call__(
        self,
        patches_BWSP: Float[Array, "B W S P"],
        rows_columns_WS2: Int[Array, "W S 2"],
        valid_WS: Bool[Array, "W S"],
        *,
        capture_layers: bool = False,
    ) -> tuple[Float[Array, "B slots O"], Array | None]:
        """Merged tokens in window order; `WindowLayout.merged_index` restores reading order.

        Returns:
          The merged tokens, and with `capture_layers` the residual after each block [L, B, W, S, D].
        """
        x_BWSD = self.patch_embed(patches_BWSP.reshape(*patches_BWSP.shape[:-1], *self.cfg.patch_shape))
        half = inverse_frequencies(self.cfg.head_dim // 2, self.cfg.rope_theta)
        angles = rows_columns_WS2[..., None].astype(jnp.float32) * half
        angles = angles.reshape(*rows_columns_WS2.shape[:2], -1)
        angles = jnp.concatenate([angles, angles], axis=-1)
        rotary = (jnp.cos(angles), jnp.sin(angles))
        full_L = np.isin(np.arange(self.cfg.num_layers), self.cfg.full_attention_layers)

        def step(x: Array, layer: tuple[VisionBlock, Array]) -> tuple[Array, Array | None]:
            block, full = layer
            x = block(x, rotary, valid_WS, full)
            return x, x if capture_layers else None

        x_BWSD, captures = jax.lax.scan(step, x_BWSD, (self.layers, jnp.asarray(full_L)))
        return self.merger(x_BWSD), captures
