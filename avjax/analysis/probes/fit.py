"""Multinomial logistic regressions of many feature sets, splits and penalties: one program, called for each set.

Axes: F feature set, C clip, D feature, J job (a split with its labels), R regularisation strength, K class, E direction
of the preconditioner.

A job sees the clips that it is trained on and no others: not in its loss, nor in what standardises the features, nor in
the way that it takes to the optimum. Jobs with the same training clips are trained together.

What makes it fast, in the order of what it gains. Jobs that are trained together share their products with the
features: two per step, however many jobs, in float32. Strengths go from strong to weak, each from where the one before
ended.
Steps are taken in coordinates in which the features are nearly uncorrelated, so few are needed. Logits are linear in
the parameters, so that the step's length along an L-BFGS direction costs no product at all.
"""

import dataclasses
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from avjax.progress import Progress

MEMORY = 5  # steps that L-BFGS remembers
RANK = 48  # directions in which features are decorrelated
SEEN = 1000  # clips, about, that those are found from
CURVATURE = 0.15  # of the negative log-likelihood in a logit, roughly; it decides how fast, not where to
SUFFICIENT = 1e-4  # of the expected decrease (Armijo)
ROUNDING = 1e-6  # relative, of a loss in float32: below it a decrease cannot be seen
HALVINGS = 20
NEARLY_CONSTANT = 1e-5  # deviation under a job's weights, in deviations over its clips, below which it is rounding
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
    gradient: jax.Array  # F J R, the largest entry of that loss's gradient
    steps: jax.Array  # int32 F J R


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Data:
    """One feature set on the training clips of its jobs, whose own weights shift and rescale the base features.

    Kernels, biases and logits sum to 0 over classes, at the optimum and from zero on the way there: the last class
    takes no product.
    """

    x_CD: jax.Array
    x_DC: jax.Array  # the same, as the product for logits reads it fastest
    mean_JD: jax.Array  # over a job's training clips
    rescale_JD: jax.Array  # base units per unit of a job's own standardisation; 0 where a feature is constant
    targets_JKC: jax.Array
    weights_JC: jax.Array  # sum to 1 over the training clips of a job

    def logits(self, kernel_JKD: jax.Array, bias_JK: jax.Array) -> jax.Array:
        some_JKD = kernel_JKD[:, :-1] * self.rescale_JD[:, None]
        offset_JK = bias_JK[:, :-1] - _dot("jkd,jd->jk", some_JKD, self.mean_JD)
        return _with_last(_dot("jkd,dc->jkc", some_JKD, self.x_DC) + offset_JK[..., None])

    def gradient(self, p_JKC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the mean negative log-likelihood with respect to kernel [J, K, D] and bias [J, K]."""
        error_JKC = (p_JKC - self.targets_JKC)[:, :-1] * self.weights_JC[:, None]
        of_bias = error_JKC.sum(-1)
        of_kernel = _dot("jkc,cd->jkd", error_JKC, self.x_CD) - of_bias[..., None] * self.mean_JD[:, None]
        return _with_last(of_kernel * self.rescale_JD[:, None]), _with_last(of_bias)

    def nll(self, z_JKC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[J], nats per clip, and what normalises the logits [J, C]."""
        right_JC, total_JC = jnp.sum(z_JKC * self.targets_JKC, 1), jax.nn.logsumexp(z_JKC, 1)
        return jnp.sum(self.weights_JC * (total_JC - right_JC), -1), total_JC

    def curvature(self, p_JKC: jax.Array, change_JKC: jax.Array) -> jax.Array:
        """[J], second derivative of the mean negative log-likelihood along a change of the logits."""
        mean, square = jnp.sum(p_JKC * change_JKC, 1), jnp.sum(p_JKC * change_JKC**2, 1)
        return jnp.sum(self.weights_JC * (square - mean**2), -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Line:
    """A direction in which each job goes."""

    kernel: jax.Array  # J K D
    bias: jax.Array  # J K
    logits: jax.Array  # J K C
    slope: jax.Array  # J, of the loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Parameters of each job, and all of the loss that is the same at every strength."""

    kernel: jax.Array  # J K D
    bias: jax.Array  # J K
    logits: jax.Array  # J K C
    p: jax.Array  # J K C, probabilities
    nll: jax.Array  # J, mean negative log-likelihood
    of_kernel: jax.Array  # J K D, its gradient
    of_bias: jax.Array  # J K

    @classmethod
    def of(
        cls, data: _Data, kernel: jax.Array, bias: jax.Array, logits: jax.Array, nll: jax.Array, total_JC: jax.Array
    ) -> "_Place":
        p = jnp.exp(logits - total_JC[:, None])
        of_kernel, of_bias = data.gradient(p)
        return cls(kernel=kernel, bias=bias, logits=logits, p=p, nll=nll, of_kernel=of_kernel, of_bias=of_bias)

    @classmethod
    def zero(cls, data: _Data) -> "_Place":
        logits = jnp.zeros_like(data.targets_JKC)
        jobs, num_classes = logits.shape[:2]
        kernel, bias = jnp.zeros((jobs, num_classes, data.x_CD.shape[1])), jnp.zeros((jobs, num_classes))
        nll, total_JC = data.nll(logits)
        return cls.of(data, kernel, bias, logits, nll, total_JC)

    def loss(self, l2: jax.Array) -> jax.Array:
        return self.nll + 0.5 * l2 * _inner(self.kernel, self.kernel)

    def along(self, line: _Line, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Kernel, bias and logits."""
        far = _wide(length, 3)
        bias = self.bias + _wide(length, 2) * line.bias
        return self.kernel + far * line.kernel, bias, self.logits + far * line.logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Preconditioner:
    """Coordinates with a curvature near 1, up to an offset: s0 + U (s - s0) U^T of them is a kernel."""

    basis_DE: jax.Array
    size_E: jax.Array
    rest: jax.Array
    bias: float = CURVATURE**-0.5

    def __call__(self, x_JKD: jax.Array) -> jax.Array:
        inside = _dot("jkd,de->jke", x_JKD, self.basis_DE) * (self.size_E - self.rest)
        return self.rest * x_JKD + _dot("jke,de->jkd", inside, self.basis_DE)


def fit(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    weights: np.ndarray,
    strengths: np.ndarray,
    *,
    num_classes: int,
    tolerance: float,
    max_steps: int,
    progress: bool = False,
) -> Fit:
    """Trains F x J x R probes. Each stops at its own optimum, and changes no more.

    On a CPU each core trains a feature set of its own: the products of one are too small for XLA to share among cores,
    two of which were no faster than one.

    Args:
      features: float32 [F, C, D], finite.
      labels: int [J, C].
      weights: float [J, C]; 0 for clips that a job does not learn from, others sum to 1.
      strengths: [R], weights of half the squared kernel.
      tolerance: largest entry of the gradient at which a probe is trained, as scikit-learn has it.

    Source: Nocedal 1980 (L-BFGS); Halko et al. 2011 (the basis of the preconditioner).
    """
    order = np.argsort(-np.asarray(strengths), kind="stable")
    labels, weights = np.asarray(labels, np.int32), np.asarray(weights, np.float32)
    together = _jobs_by_clips(weights)
    size = max(len(clips) for clips, _ in together)
    settings = (
        jnp.asarray(np.asarray(strengths)[order], jnp.float32),
        jnp.float32(tolerance),
        jnp.int32(max_steps),
    )
    parts: list[Fit] = []
    with Progress("training probes", len(features) * len(together), "feature sets", enabled=progress) as bar:
        for clips, jobs in together:
            own = (_filled(labels[jobs][:, clips], size, 1), _filled(weights[jobs][:, clips], size, 1))
            parts.append(_fit_all(features, clips, size, own, settings, num_classes, bar))
    back = np.argsort(order)
    place = np.argsort(np.concatenate([jobs for _, jobs in together]))
    joined: Fit = jax.tree.map(lambda *a: jnp.concatenate(a, 1)[:, place], *parts)
    by_strength = {n: getattr(joined, n)[:, :, back] for n in ("kernel", "bias", "loss", "gradient", "steps")}
    return dataclasses.replace(joined, **by_strength)


def _jobs_by_clips(weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The different sets of training clips, in order of first appearance, and the jobs of each."""
    jobs: dict[bytes, list[int]] = {}
    for job, row in enumerate(weights > 0):
        jobs.setdefault(row.tobytes(), []).append(job)
    return [(np.flatnonzero(weights[own[0]] > 0), np.array(own)) for own in jobs.values()]


def _filled(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Zeros at the end of an axis: sets of training clips of different sizes share a program."""
    pad = [(0, size - x.shape[axis]) if i == axis else (0, 0) for i in range(x.ndim)]
    return np.pad(x, pad)


def _fit_all(
    features: np.ndarray | jax.Array,
    clips: np.ndarray,
    size: int,
    jobs: tuple[np.ndarray, np.ndarray],
    settings: tuple[jax.Array, ...],
    num_classes: int,
    bar: Progress,
) -> Fit:
    """The jobs of one set of training clips on every feature set."""
    there = jnp.arange(size) < len(clips)

    def trained_on(i: int) -> jax.Array:
        return jnp.asarray(_filled(np.asarray(features[i], np.float32)[clips], size, 0))

    count = len(features)
    # Found first and apart: LAPACK's threads would stand in the way of the products.
    principal = [jax.block_until_ready(_principal(trained_on(i), there)) for i in range(count)]
    own = tuple(map(jnp.asarray, jobs))

    def train(i: int) -> Fit:
        return jax.block_until_ready(_fit(trained_on(i), there, principal[i], *own, *settings, num_classes=num_classes))

    lanes = min(_cores(), count) if jax.default_backend() == "cpu" else 1
    sets = []
    with ThreadPoolExecutor(lanes) as pool:
        for trained in pool.map(train, range(count)):
            sets.append(trained)
            bar.advance(1)
    return jax.tree.map(lambda *a: jnp.stack(a), *sets)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(
    x_CD: jax.Array,
    there_C: jax.Array,
    principal: tuple[jax.Array, ...],
    labels: jax.Array,
    weights: jax.Array,
    strengths: jax.Array,
    tolerance: jax.Array,
    max_steps: jax.Array,
    *,
    num_classes: int,
) -> Fit:
    """Of one feature set; the result has no axis F."""
    basis_DE, variance_E, rest = principal
    base_CD, centre_D, spread_D = _standardised(x_CD, there_C)
    mean_JD = _dot("jc,cd->jd", weights, base_CD)
    # From deviations: a mean of squares less a squared mean has none of a small one's digits.
    own_JD = jax.lax.map(lambda j: jnp.sqrt(j[0] @ (base_CD - j[1]) ** 2), (weights, mean_JD))
    varies = (own_JD > CONSTANT * jnp.abs(mean_JD + centre_D / spread_D)) & (own_JD > NEARLY_CONSTANT)
    data = _Data(
        x_CD=base_CD,
        x_DC=base_CD.T,
        mean_JD=mean_JD,
        rescale_JD=jnp.where(varies, 1 / jnp.where(varies, own_JD, 1), 0),
        targets_JKC=jnp.swapaxes(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), 1, 2),
        weights_JC=weights,
    )

    def next_strength(places: tuple[_Place, _Place], l2: jax.Array) -> Any:
        size_E, other = (jax.lax.rsqrt(CURVATURE * v + l2) for v in (variance_E, rest))
        p = _Preconditioner(basis_DE=basis_DE, size_E=size_E, rest=other)
        before, start = places
        at, *path = _minimum(data, p, l2, _onward(data, l2, before, start), tolerance, max_steps)
        return (start, at), (at.kernel, at.bias, *path)

    zero = _Place.zero(data)
    _, path = jax.lax.scan(next_strength, (zero, zero), strengths)
    kernel, bias, loss, norm, steps = (jnp.swapaxes(f, 0, 1) for f in path)
    return Fit(
        mean=centre_D + spread_D * mean_JD,
        scale=jnp.where(varies, spread_D * own_JD, 1),
        kernel=jnp.where(varies[:, None, None], kernel, 0),  # what a job has not seen vary
        bias=bias,
        loss=loss,
        gradient=norm,
        steps=steps,
    )


def _minimum(
    data: _Data, p: _Preconditioner, l2: jax.Array, start: _Place, tolerance: jax.Array, max_steps: jax.Array
) -> tuple[_Place, jax.Array, jax.Array, jax.Array]:
    """The optimum of every job at one strength; its loss, largest entry of the gradient, and steps, [J] each."""
    solver = optax.scale_by_lbfgs(memory_size=MEMORY)

    def gradient(at: _Place) -> tuple[jax.Array, jax.Array, jax.Array]:
        of_kernel = at.of_kernel + l2 * at.kernel
        largest = jnp.maximum(jnp.abs(of_kernel).max((1, 2)), jnp.abs(at.of_bias).max(1))
        return of_kernel, at.of_bias, largest

    def step(carry: Any) -> Any:
        at, (of_kernel, of_bias, largest), coordinates, state, steps = carry
        active = ~(largest <= tolerance)
        update, state = jax.vmap(solver.update)((p(of_kernel), of_bias * p.bias), state, coordinates)
        update = jax.tree.map(jnp.negative, update)
        kernel, bias = p(update[0]), update[1] * p.bias
        line = _Line(
            kernel=kernel,
            bias=bias,
            logits=data.logits(kernel, bias),
            slope=_inner(kernel, of_kernel) + _inner(bias, of_bias),
        )
        length, nll, total_JC = _search(data, l2, at, line, active)
        moved = jax.tree.map(lambda u: _wide(length, u.ndim) * u, update)
        kernel, bias, logits = at.along(line, length)
        at = _Place.of(data, kernel, bias, logits, nll, total_JC)
        return at, gradient(at), optax.apply_updates(coordinates, moved), state, steps + active

    def unfinished(carry: Any) -> jax.Array:
        _, (*_, largest), _, _, steps = carry
        return jnp.any(~(largest <= tolerance)) & (jnp.max(steps) < max_steps)

    # L-BFGS reads differences of coordinates alone, so that they can be counted from the start.
    first = jnp.zeros_like(start.kernel), jnp.zeros_like(start.bias)
    state = jax.vmap(solver.init)(first)
    steps = jnp.zeros(len(start.bias), jnp.int32)
    at, (*_, largest), _, _, steps = jax.lax.while_loop(unfinished, step, (start, gradient(start), first, state, steps))
    return at, at.loss(l2), largest, steps


def _onward(data: _Data, l2: jax.Array, before: _Place, at: _Place) -> _Place:
    """As far as it helps at another strength, along the way from the last strength's optimum but one to the last's."""
    kernel, bias = at.kernel - before.kernel, at.bias - before.bias
    slope = _inner(kernel, at.of_kernel + l2 * at.kernel) + _inner(bias, at.of_bias)
    line = _Line(kernel=kernel, bias=bias, logits=at.logits - before.logits, slope=slope)
    length, nll, total_JC = _search(data, l2, at, line, slope < 0)
    kernel, bias, logits = at.along(line, length)
    return _Place.of(data, kernel, bias, logits, nll, total_JC)


def _search(
    data: _Data, l2: jax.Array, at: _Place, line: _Line, active: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How far to go along a line [J], and there the negative log-likelihood [J] and what normalises the logits [J, C].

    Newton's step for the loss along the line, halved until the loss decreases enough. Logits are linear in the
    parameters, so that none of it takes a product; those of optax take two for each length that they try.
    """
    bend = data.curvature(at.p, line.logits) + l2 * _inner(line.kernel, line.kernel)
    loss = at.loss(l2)

    def tried(length: jax.Array) -> tuple[jax.Array, ...]:
        kernel, _, logits = at.along(line, length)
        nll, total_JC = data.nll(logits)
        penalised = nll + 0.5 * l2 * _inner(kernel, kernel)
        allowed = loss + SUFFICIENT * length * line.slope + ROUNDING * jnp.abs(loss)
        return length, nll, total_JC, ~(penalised <= allowed)  # NaN is too far

    def shorter(search: Any) -> Any:
        (length, _, _, too_far), halvings = search
        return tried(jnp.where(too_far, length / 2, length)), halvings + 1

    newton = jnp.where(active & (line.slope < 0), -line.slope / jnp.maximum(bend, 1e-30), 0)
    (length, nll, total_JC, _), _ = jax.lax.while_loop(
        lambda s: jnp.any(s[0][-1]) & (s[1] < HALVINGS), shorter, (tried(newton), 0)
    )
    return length, nll, total_JC


def _standardised(x_CD: jax.Array, there_C: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features with mean 0 and deviation 1 over the clips that are there, their mean and their deviation.

    Constants are 0, and so are clips that only fill the array.
    """
    there_C1 = there_C[:, None]
    mean_D = x_CD.mean(0, where=there_C1)
    centred = jnp.where(there_C1, x_CD - mean_D, 0)
    deviation_D = jnp.sqrt(jnp.mean(centred**2, 0, where=there_C1))
    varies = deviation_D > CONSTANT * jnp.abs(mean_D)
    return jnp.where(varies, centred, 0) / jnp.where(varies, deviation_D, 1), mean_D, jnp.where(varies, deviation_D, 1)


@jax.jit
def _principal(x_CD: jax.Array, there_C: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of standardised features: the directions [D, E] in which they vary most, the variances there [E], and the mean
    variance elsewhere."""
    return _principal_of(_standardised(x_CD, there_C)[0])


def _principal_of(x_CD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_CD = x_CD[:: max(1, x_CD.shape[0] // SEEN)]
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


def _with_last(x: jax.Array) -> jax.Array:
    """[J, K, ...] from all classes but the last."""
    return jnp.concatenate([x, -x.sum(1, keepdims=True)], 1)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """[J]"""
    return jnp.sum(a * b, tuple(range(1, a.ndim)))


def _wide(length_J: jax.Array, ndim: int) -> jax.Array:
    return length_J.reshape(-1, *(1,) * (ndim - 1))
