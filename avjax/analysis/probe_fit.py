"""Multinomial logistic regressions of many feature sets, splits and penalties, trained in one compiled loop.

Axes: F feature set, C clip, D feature, J job (a split with its labels), R regularisation strength, K class, E direction
of the preconditioner.

What makes it fast, in the order of what it gains. All jobs of a feature set share their products with its features:
two per step, however many jobs, in float32. Strengths go from strong to weak, each from where the one before ended.
Steps are taken in coordinates in which the features are nearly uncorrelated, so few are needed. Logits are linear in
the parameters, so that the step's length along an L-BFGS direction costs no product at all.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

MEMORY = 5  # steps that L-BFGS remembers
RANK = 64  # directions in which features are decorrelated
CURVATURE = 0.15  # of the negative log-likelihood in a logit, roughly; it decides how fast, not where to
SUFFICIENT = 1e-4  # of the expected decrease (Armijo)
ROUNDING = 1e-6  # relative, of a loss in float32: below it a decrease cannot be seen
HALVINGS = 20
CONSTANT = 1e-6  # standard deviation over mean, below which a feature is constant


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Trained probes, over features standardised with each job's own training clips."""

    mean: jax.Array  # F J D
    scale: jax.Array  # F J D; 1 where a feature is constant
    kernel: jax.Array  # F J R K D
    bias: jax.Array  # F J R K
    loss: jax.Array  # F J R, nats per clip: negative log-likelihood and penalty
    gradient_norm: jax.Array  # F J R, of that loss
    steps: jax.Array  # int32 F J R


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    """One feature set. Base features are standardised with all clips, trained or not; jobs rescale them."""

    x_CD: jax.Array
    x_DC: jax.Array  # the same, as the product for logits reads it fastest
    rescale_JD: jax.Array  # base units per unit of a job's own standardisation; 0 where a feature is constant
    targets_JKC: jax.Array
    weights_JC: jax.Array  # sum to 1 over the training clips of a job

    def logits(self, kernel_JKD: jax.Array, bias_JK: jax.Array) -> jax.Array:
        return _dot("jkd,dc->jkc", kernel_JKD * self.rescale_JD[:, None], self.x_DC) + bias_JK[..., None]

    def gradient(self, p_JKC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the mean negative log-likelihood with respect to kernel [J, K, D] and bias [J, K]."""
        error_JKC = (p_JKC - self.targets_JKC) * self.weights_JC[:, None]
        return _dot("jkc,cd->jkd", error_JKC, self.x_CD) * self.rescale_JD[:, None], error_JKC.sum(-1)

    def nll(self, z_JKC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[J], nats per clip, and what normalises the logits [J, C]."""
        right_JC, total_JC = jnp.sum(z_JKC * self.targets_JKC, 1), jax.nn.logsumexp(z_JKC, 1)
        return jnp.sum(self.weights_JC * (total_JC - right_JC), -1), total_JC

    def curvature(self, p_JKC: jax.Array, change_JKC: jax.Array) -> jax.Array:
        """[J], second derivative of the mean negative log-likelihood along a change of the logits."""
        mean, square = jnp.sum(p_JKC * change_JKC, 1), jnp.sum(p_JKC * change_JKC**2, 1)
        return jnp.sum(self.weights_JC * (square - mean**2), -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Preconditioner:
    """A symmetric map P from coordinates with a curvature near 1 to kernels: s0 + U (s - s0) U^T."""

    basis_DE: jax.Array
    size_E: jax.Array
    rest: jax.Array

    def __call__(self, x_JKD: jax.Array) -> jax.Array:
        inside = _dot("jkd,de->jke", x_JKD, self.basis_DE) * (self.size_E - self.rest)
        return self.rest * x_JKD + _dot("jke,de->jkd", inside, self.basis_DE)

    def inverse(self) -> "_Preconditioner":
        return _Preconditioner(basis_DE=self.basis_DE, size_E=1 / self.size_E, rest=1 / self.rest)


def fit(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    *,
    num_classes: int,
    tolerance: float,
    max_steps: int,
) -> Fit:
    """Trains F x J x R probes. Each stops at its own optimum, and changes no more.

    Args:
      features: float32 [F, C, D], finite.
      labels: int [J, C].
      weights: float [J, C]; 0 for clips that a job does not learn from, others sum to 1.
      strengths: [R], weights of half the squared kernel.
      tolerance: gradient norm of the loss at which a probe is trained.

    Source: Nocedal 1980 (L-BFGS); Halko et al. 2011 (the basis of the preconditioner).
    """
    order = np.argsort(-np.asarray(strengths), kind="stable")
    found = _fit(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(np.asarray(strengths)[order], jnp.float32),
        jnp.float32(tolerance),
        jnp.int32(max_steps),
        num_classes=num_classes,
    )
    back = np.argsort(order)
    by_strength = {n: getattr(found, n)[:, :, back] for n in ("kernel", "bias", "loss", "gradient_norm", "steps")}
    return dataclasses.replace(found, **by_strength)


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    strengths: jax.Array,
    tolerance: jax.Array,
    max_steps: jax.Array,
    *,
    num_classes: int,
) -> Fit:
    targets_JKC = jnp.swapaxes(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), 1, 2)

    def one(x_CD: jax.Array) -> Fit:
        base_CD, centre_D, spread_D = _standardised(x_CD)
        mean_JD = weights @ base_CD
        own_JD = jnp.sqrt(jnp.maximum(weights @ base_CD**2 - mean_JD**2, 0))
        varies = own_JD > CONSTANT * jnp.abs(mean_JD + centre_D / spread_D)
        rescale_JD = jnp.where(varies, 1 / jnp.where(varies, own_JD, 1), 0)
        data = _Data(x_CD=base_CD, x_DC=base_CD.T, rescale_JD=rescale_JD, targets_JKC=targets_JKC, weights_JC=weights)
        basis_DE, variance_E, rest = _principal(base_CD)

        def next_strength(start: Any, l2: jax.Array) -> Any:
            size_E, other = (jax.lax.rsqrt(CURVATURE * v + l2) for v in (variance_E, rest))
            p = _Preconditioner(basis_DE=basis_DE, size_E=size_E, rest=other)
            kernel, bias, *found = _minimum(data, p, l2, start, tolerance, max_steps)
            return (kernel, bias), (kernel, bias, *found)

        jobs = labels.shape[0]
        start = jnp.zeros((jobs, num_classes, x_CD.shape[1])), jnp.zeros((jobs, num_classes))
        _, found = jax.lax.scan(next_strength, start, strengths)
        kernel, bias, loss, norm, steps = (jnp.swapaxes(f, 0, 1) for f in found)
        # The bias of the base features takes their mean over a job's clips, which a user's probe subtracts.
        bias = bias + _dot("jrkd,jd->jrk", kernel, mean_JD * rescale_JD)
        return Fit(
            mean=centre_D + spread_D * mean_JD,
            scale=jnp.where(varies, spread_D * own_JD, 1),
            kernel=kernel,
            bias=bias,
            loss=loss,
            gradient_norm=norm,
            steps=steps,
        )

    return jax.lax.map(one, features)


def _minimum(
    data: _Data, p: _Preconditioner, l2: jax.Array, start: Any, tolerance: jax.Array, max_steps: jax.Array
) -> tuple[jax.Array, ...]:
    """Kernel [J, K, D], bias [J, K], loss, gradient norm and steps [J] of every job at one strength."""
    solver = optax.scale_by_lbfgs(memory_size=MEMORY)
    wide = jnp.float32(CURVATURE**0.5)  # coordinates of the bias have a curvature near 1 too

    def value(kernel: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll, total = data.nll(z)
        return nll + 0.5 * l2 * _inner(kernel, kernel), total

    def step(carry: Any) -> Any:
        (v, b), kernel, z, loss, gradient, norm, p_JKC, state, steps = carry
        active = norm > tolerance
        inner = p(gradient[0]), gradient[1] / wide
        update, state = jax.vmap(solver.update)(inner, state, (v, b))
        update = jax.tree.map(jnp.negative, update)
        kernel_change = p(update[0])
        change = data.logits(kernel_change, update[1] / wide)
        slope = _inner(kernel_change, gradient[0]) + _inner(update[1] / wide, gradient[1])
        bend = data.curvature(p_JKC, change) + l2 * _inner(kernel_change, kernel_change)
        length = jnp.where(active & (slope < 0), -slope / jnp.maximum(bend, 1e-30), 0)

        def losses(length: jax.Array) -> tuple[jax.Array, jax.Array]:
            return value(kernel + _wide(length, 3) * kernel_change, z + _wide(length, 3) * change)

        def too_far(length: jax.Array, found: jax.Array) -> jax.Array:
            # Written so that NaN is too far.
            return ~(found <= loss + SUFFICIENT * length * slope + ROUNDING * jnp.abs(loss))

        def shorter(search: Any) -> Any:
            length, (found, _), halvings = search
            length = jnp.where(too_far(length, found), length / 2, length)
            return length, losses(length), halvings + 1

        length, (loss, total), _ = jax.lax.while_loop(
            lambda s: jnp.any(too_far(s[0], s[1][0])) & (s[2] < HALVINGS), shorter, (length, losses(length), 0)
        )
        moved = jax.tree.map(lambda u: _wide(length, u.ndim) * u, update)
        v, b = optax.apply_updates((v, b), moved)
        kernel, z = kernel + _wide(length, 3) * kernel_change, z + _wide(length, 3) * change
        p_JKC = jnp.exp(z - total[:, None])
        gradient, norm = slopes(kernel, p_JKC)
        return (v, b), kernel, z, loss, gradient, norm, p_JKC, state, steps + active

    def slopes(kernel: jax.Array, p_JKC: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        of_kernel, of_bias = data.gradient(p_JKC)
        gradient = of_kernel + l2 * kernel, of_bias
        return gradient, jnp.sqrt(_inner(gradient[0], gradient[0]) + _inner(gradient[1], gradient[1]))

    def unfinished(carry: Any) -> jax.Array:
        norm, steps = carry[5], carry[-1]
        return jnp.any(norm > tolerance) & (jnp.max(steps) < max_steps)

    kernel, bias = start
    first = p.inverse()(kernel), bias * wide
    z = data.logits(kernel, bias)
    loss, total = value(kernel, z)
    p_JKC = jnp.exp(z - total[:, None])
    gradient, norm = slopes(kernel, p_JKC)
    state = jax.vmap(solver.init)(first)
    steps = jnp.zeros(bias.shape[0], jnp.int32)
    carry = first, kernel, z, loss, gradient, norm, p_JKC, state, steps
    (_, b), kernel, _, loss, _, norm, _, _, steps = jax.lax.while_loop(unfinished, step, carry)
    return kernel, b / wide, loss, norm, steps


def _standardised(x_CD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features with mean 0 and deviation 1 over all clips, their mean and their deviation; constants are 0."""
    mean_D = x_CD.mean(0)
    centred = x_CD - mean_D
    deviation_D = jnp.sqrt(jnp.mean(centred**2, 0))
    varies = deviation_D > CONSTANT * jnp.abs(mean_D)
    return jnp.where(varies, centred, 0) / jnp.where(varies, deviation_D, 1), mean_D, jnp.where(varies, deviation_D, 1)


def _principal(x_CD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The directions [D, E] in which features vary most, the variances there [E], and the mean variance elsewhere."""
    count, size = x_CD.shape
    rank = min(RANK, size, count)
    q = jax.random.normal(jax.random.key(0), (size, rank))
    for _ in range(2):
        q, _ = jnp.linalg.qr(_dot("cd,ce->de", x_CD, _dot("cd,de->ce", x_CD, q)))
    seen_CE = _dot("cd,de->ce", x_CD, q)
    variance_E, turn_EE = jnp.linalg.eigh(_dot("ce,cf->ef", seen_CE, seen_CE) / count)
    total = jnp.sum(x_CD**2) / count
    rest = jnp.maximum(total - variance_E.sum(), 0) / max(size - rank, 1)
    return q @ turn_EE, jnp.maximum(variance_E, 0), rest


def _dot(spec: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *arrays, precision=jax.lax.Precision.HIGHEST)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """[J]"""
    return jnp.sum(a * b, tuple(range(1, a.ndim)))


def _wide(length_J: jax.Array, ndim: int) -> jax.Array:
    return length_J.reshape(-1, *(1,) * (ndim - 1))
