"""Operations of a traced program, loops counted as often as they run.

XLA's own count of a compiled program takes the body of a loop once. The ratio of the two counts here, with and without
repetitions, carries that figure over.
"""

import dataclasses
import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Work:
    """Of matrix products and convolutions: operations (2 per multiply-add), and bytes of operands and results."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)


def work(program: ClosedJaxpr, trips: int | None) -> Work:
    """What a program does on all devices together.

    Args:
      trips: how often loops of unknown length run; None counts every loop's body once, those of known length too.
    """
    return _of(program.jaxpr, trips)


def _of(jaxpr: Any, trips: int | None) -> Work:
    total = Work()
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        match name:
            case "dot_general":
                (contract, _), _ = params["dimension_numbers"]
                depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
                total += Work(2.0 * math.prod(eqn.outvars[0].aval.shape) * depth, _bytes(eqn))
            case "conv_general_dilated":
                kernel = eqn.invars[1].aval.shape
                out = params["dimension_numbers"].rhs_spec[0]
                per_output = math.prod(kernel) / kernel[out]
                total += Work(2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output, _bytes(eqn))
            case "scan":
                total += _of(params["jaxpr"].jaxpr, trips) * (1 if trips is None else params["length"])
            case "while":
                total += _of(params["body_jaxpr"].jaxpr, trips) * (1 if trips is None else trips)
            case "cond":
                # Of the branches by platform, the last is an accelerator's; of others, the larger counts.
                branches = [_of(branch.jaxpr, trips) for branch in params["branches"]]
                total += branches[-1] if _by_platform(jaxpr, eqn) else max(branches, key=lambda w: w.flops)
            case _:
                for inner in (p for p in params.values() if isinstance(p, ClosedJaxpr | Jaxpr)):
                    total += _of(getattr(inner, "jaxpr", inner), trips)
    return total


def _by_platform(jaxpr: Jaxpr, cond: Any) -> bool:
    """Whether the index of a branch comes from `jax.lax.platform_dependent`."""
    return any(eqn.primitive.name == "platform_index" and eqn.outvars[0] is cond.invars[0] for eqn in jaxpr.eqns)


def _bytes(eqn: Any) -> float:
    return float(sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars)))
