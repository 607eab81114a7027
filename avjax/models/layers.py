"""Parameters and arithmetic that every tower shares.

Axes: B batch, T query, S key, N heads, K kv heads, G = N / K, H head dim, D embed, F mlp, L layer, V vocab.

Every parameter of a stacked block carries a leading L, so a stack is one pytree that `jax.lax.scan` walks. Rounding
follows Hugging Face: norms, softmax, rotary angles and activations in float32, then back to the compute dtype.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


def dot(equation: str, *operands: Array) -> Array:
    """`einsum` that keeps float32 exact on accelerators, where the default would round it to bfloat16 or TF32."""
    exact = all(x.dtype == jnp.float32 for x in operands)
    return jnp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST if exact else None)


class Linear(nnx.Module):
    """`x @ kernel + bias`, with the output possibly split in several axes (heads, head dim)."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], *, stack: Sequence[int] = (), bias: bool = False):
        self.kernel = nnx.Param(jnp.zeros((*stack, *inputs, *outputs)))
        self.bias = nnx.Param(jnp.zeros((*stack, *outputs))) if bias else None
        self.num_inputs = len(inputs)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...]
        n = self.num_inputs
        contract = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
        exact = x.dtype == jnp.float32
        precision = jax.lax.Precision.HIGHEST if exact else None
        y = jax.lax.dot_general(x, kernel, (contract, ((), ())), precision=precision)
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """A table of rows; also the unembedding, as logits = x @ table.T."""

    def __init__(self, rows: int, embed_dim: int):
        self.embedding = nnx.Param(jnp.zeros((rows, embed_dim)))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        return self.embedding[...][ids]

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        return dot("...d,vd->...v", x, self.embedding[...])


class RMSNorm(nnx.Module):
    def __init__(self, embed_dim: int, eps: float, *, stack: Sequence[int] = ()):
        self.scale = nnx.Param(jnp.zeros((*stack, embed_dim)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * y.astype(x.dtype)


class LayerNorm(nnx.Module):
    def __init__(self, embed_dim: int, eps: float = 1e-5, *, stack: Sequence[int] = ()):
        self.scale = nnx.Param(jnp.zeros((*stack, embed_dim)))
        self.bias = nnx.Param(jnp.zeros((*stack, embed_dim)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, embed_dim: int, mlp_dim: int, *, stack: Sequence[int] = (), bias: bool = False):
        self.gate = Linear([embed_dim], [mlp_dim], stack=stack, bias=bias)
        self.up = Linear([embed_dim], [mlp_dim], stack=stack, bias=bias)
        self.down = Linear([mlp_dim], [embed_dim], stack=stack, bias=bias)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(silu(self.gate(x)) * self.up(x))


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact (erf) form."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def rotate(
    x: Float[Array, "... heads H"], cos: Float[Array, "... H"], sin: Float[Array, "... H"]
) -> Float[Array, "... heads H"]:
    """Rotary embedding in the half-split convention: the first half of H pairs with the second."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[..., None, :] + turned * sin[..., None, :]


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """float32 [dim / 2]; the power is rounded once, as torch's is, so that long prompts keep HF's angles."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1.0) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def masked_softmax(scores: Float[Array, "... S"], keep: Array) -> Float[Array, "... S"]:
    """float32 softmax over the keys that `keep` marks; a row without any reads zero, in value and gradient."""
    scores = jnp.where(keep, scores.astype(jnp.float32), -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
