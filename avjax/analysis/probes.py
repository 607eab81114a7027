"""Linear probes: what a linear map can read from activations.

Axes: C clip, D feature, K class; leading axes, such as layers, are probes that are trained at once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils as otu

MAX_STEPS = 500
TOLERANCE = 1e-4  # of the gradient's norm, at which a probe is trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Multinomial logistic regressions on standardised features."""

    mean: jax.Array  # [..., 1, D]
    scale: jax.Array  # [..., 1, D]
    kernel: jax.Array  # [..., D, K]
    bias: jax.Array  # [..., 1, K]

    def logits(self, features: np.ndarray | jax.Array) -> jax.Array:
        """[..., C, K]"""
        return (jnp.asarray(features) - self.mean) / self.scale @ self.kernel + self.bias


def train_probe(features: np.ndarray | jax.Array, labels: np.ndarray, num_classes: int, l2: float = 1e-3) -> Probe:
    """Probes of one label from many sets of features, trained together with L-BFGS.

    Args:
      features: [..., C, D]; such as residuals of all layers.
      labels: int [C].
      l2: weight of half the squared kernel beside the mean negative log-likelihood (nats) per clip.

    Raises:
      ValueError: labels and features do not match, or features are not finite.
    """
    features, labels = jnp.asarray(features, jnp.float32), np.asarray(labels)
    if features.ndim < 2 or labels.shape != features.shape[-2:-1]:
        raise ValueError(f"probe: expected a label per clip, got {labels.shape} for features {features.shape}")
    if len(np.unique(labels)) < 2 or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"probe: expected two or more classes within 0:{num_classes}, got {np.unique(labels)}")
    if not bool(jnp.isfinite(features).all()):
        raise ValueError("probe: expected finite features; look for an overflow where they come from")
    if not l2 > 0:
        raise ValueError(
            f"probe: expected l2 above 0, got {l2}; without it classes that can be told apart have no optimum"
        )
    mean, scale = features.mean(-2, keepdims=True), features.std(-2, keepdims=True)
    scale = jnp.where(scale > 1e-6 * jnp.abs(mean), scale, 1.0)  # a constant says nothing, of unseen clips either
    flat = ((features - mean) / scale).reshape(-1, *features.shape[-2:])
    kernel, bias = _trained(flat, jnp.asarray(labels), num_classes, l2)
    leading = features.shape[:-2]
    return Probe(
        mean=mean, scale=scale, kernel=kernel.reshape(*leading, -1, num_classes), bias=bias.reshape(*leading, 1, -1)
    )


@jax.jit(static_argnames="num_classes")
def _trained(features: jax.Array, labels: jax.Array, num_classes: int, l2: float) -> tuple[jax.Array, jax.Array]:
    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
            kernel, bias = parameters
            nll = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, labels)
            return jnp.mean(nll) + 0.5 * l2 * jnp.sum(kernel**2)

        solver = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry: Any) -> Any:
            parameters, state = carry
            value, gradient = value_and_grad(parameters, state=state)
            changes, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(parameters, changes), state

        def unfinished(carry: Any) -> jax.Array:
            state = carry[1]
            count, gradient = otu.tree_get(state, "count"), otu.tree_get(state, "grad")
            return (count == 0) | ((count < MAX_STEPS) & (optax.tree.norm(gradient) > TOLERANCE))

        first = jnp.zeros((x.shape[-1], num_classes)), jnp.zeros((1, num_classes))
        (kernel, bias), _ = jax.lax.while_loop(unfinished, step, (first, solver.init(first)))
        return kernel, bias

    return jax.vmap(one)(features)
