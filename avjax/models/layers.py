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
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def rounded(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    """Rounds float32 to the compute dtype, which the compiler must not postpone.

    A plain cast is not enough: XLA drops a cast to bfloat16 and back between two operations that it fuses. The towers
    round where Hugging Face rounds, so that bfloat16 results agree and not only float32 ones.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        x = jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def dot(equation: str, *operands: Array) -> Float[Array, "..."]:
    """`einsum` in float32, also of bfloat16 operands.

    float32 operands keep their precision on accelerators, where the default would round them to bfloat16 or TF32.
    """
    exact = all(x.dtype == jnp.float32 for x in operands)
    precision = jax.lax.Precision.HIGHEST if exact else None
    return jnp.einsum(equation, *operands, precision=precision, preferred_element_type=jnp.float32)


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
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        y = jax.lax.dot_general(
            x, kernel, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
        )
        return rounded(y if self.bias is None else y + self.bias[...], x.dtype)


class Embedding(nnx.Module):
    """A table of rows; also the unembedding, as logits = x @ table.T."""

    def __init__(self, rows: int, embed_dim: int):
        self.embedding = nnx.Param(jnp.zeros((rows, embed_dim)))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        return self.embedding[...][ids]

    def logits(self, x: Float[Array, "... D"], tokens: Int[Array, "V"] | None = None) -> Float[Array, "... V"]:
        """float32 whatever the compute dtype: rounded logits would tie."""
        table = self.embedding[...]
        return dot("...d,vd->...v", x, table if tokens is None else table[tokens])


class RMSNorm(nnx.Module):
    def __init__(self, embed_dim: int, eps: float, *, stack: Sequence[int] = ()):
        self.scale = nnx.Param(jnp.zeros((*stack, embed_dim)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return product(self.scale[...], rounded(y, x.dtype))


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
        return rounded(y * self.scale[...] + self.bias[...], x.dtype)


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, embed_dim: int, mlp_dim: int, *, stack: Sequence[int] = (), bias: bool = False):
        self.gate = Linear([embed_dim], [mlp_dim], stack=stack, bias=bias)
        self.up = Linear([embed_dim], [mlp_dim], stack=stack, bias=bias)
        self.down = Linear([mlp_dim], [embed_dim], stack=stack, bias=bias)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(product(silu(self.gate(x)), self.up(x)))


def add(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return rounded(x.astype(jnp.float32) + y.astype(jnp.float32), x.dtype)


def product(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return rounded(x.astype(jnp.float32) * y.astype(jnp.float32), x.dtype)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return rounded(jax.nn.silu(x.astype(jnp.float32)), x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact (erf) form."""
    return rounded(jax.nn.gelu(x.astype(jnp.float32), approximate=False), x.dtype)


def rotate(
    x: Float[Array, "... heads H"], cos: Float[Array, "... H"], sin: Float[Array, "... H"]
) -> Float[Array, "... heads H"]:
    """Rotary embedding in the half-split convention: the first half of H pairs with the second."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return add(product(x, cos[..., None, :]), product(turned, sin[..., None, :]))


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """float32 [dim / 2]; the power is rounded once, as torch's is, so that long prompts keep HF's angles."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1.0) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def scaled(scores: Array, head_dim: int, dtype: DTypeLike) -> Array:
    """Scores over the root of the head dim, rounded before and after as HF's eager attention does; then float32."""
    return rounded(rounded(scores, dtype) * head_dim**-0.5, dtype).astype(jnp.float32)


def masked_softmax(scores: Float[Array, "... S"], keep: Array) -> Float[Array, "... S"]:
    """Softmax over the keys that `keep` marks; a row without any reads zero, in value and gradient."""
    scores = jnp.where(keep, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)
