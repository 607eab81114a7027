"""Where a model's arrays lie on a mesh of devices: rules by parameter path, outside the model.

A mesh has up to three axes. Samples are dealt over `data`: each of its slices is a model of its own. Variants of one
prompt are cut over `variant`, heads and features over `model`. Numbers do not depend on the mesh, beyond rounding: XLA
adds the exchanges that a layout needs (GSPMD, Xu et al. 2021). The split of heads, features and rows is that of
Megatron-LM (Shoeybi et al. 2019).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, VARIANT, MODEL = AXES = ("data", "variant", "model")
Tree = TypeVar("Tree")

# Which dimension of a parameter is cut, counted from its end: the first one that the devices divide. Every parameter
# has a rule; what no dimension of can be cut is whole on every device, as are those with no dimension here.
HEADS_OUT, HEADS_IN, FEATURES_OUT, FEATURES_IN = (-2, -3), (-3, -1), (-1,), (-2, -1)
RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"decoder\.(embed|unembed)\.embedding", (-2, -1)),  # rows of the vocabulary
    (r".*\.attn\.(q|k|v|qkv)\.kernel", HEADS_OUT),
    (r".*\.attn\.(q|k|v|qkv)\.bias", (-2,)),
    (r".*\.attn\.(o|out)\.kernel", HEADS_IN),
    (r".*\.(mlp\.gate|mlp\.up|fc1)\.kernel", (-1, -2)),
    (r".*\.(mlp\.gate|mlp\.up|fc1)\.bias", FEATURES_OUT),
    (r".*\.(mlp\.down|fc2)\.kernel", FEATURES_IN),
    (r".*\.(mlp\.down|fc2|out)\.bias", ()),  # added once, after the sum over devices
    (r".*norm\.(scale|bias)", ()),
    (r"audio\.(conv1|conv2|proj)\.(kernel|bias)", ()),  # small
    (r"audio\.bos_eos\.embedding", ()),
    (r"vision\.patch_embed\.kernel", ()),
)
# The largest arrays are cut over variants too, as in FSDP (Zhao et al. 2023): rows are fetched where they are read.
FULLY_SHARDED = re.compile(r"decoder\.(embed|unembed)\.embedding")


def checked_mesh(mesh: Any) -> Mesh:
    """The mesh with all of `AXES`, laid out by the compiler.

    Args:
      mesh: a `jax.sharding.Mesh`, such as `jax.make_mesh((2, 1, 4), ("data", "variant", "model"))`; an axis that is
        not there has size 1.

    Raises:
      ValueError: it is no mesh, or has another axis.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh: expected a jax.sharding.Mesh with axes among {', '.join(AXES)}, got {type(mesh).__name__}; make "
            'one with jax.make_mesh((1, 1, 4), ("data", "variant", "model"))'
        )
    if strange := [name for name in mesh.axis_names if name not in AXES]:
        raise ValueError(
            f"mesh: expected axes among {', '.join(AXES)}, got {', '.join(map(str, strange))}; rename them"
        )
    order = [mesh.axis_names.index(name) for name in AXES if name in mesh.axis_names]
    devices = mesh.devices.transpose(order).reshape([mesh.shape.get(name, 1) for name in AXES])
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parameter_spec(path: str, shape: Sequence[int], sizes: Mapping[str, int]) -> P:
    """How a parameter is cut.

    Args:
      path: dotted, such as `decoder.layers.attn.q.kernel`.
      sizes: of the mesh's axes.

    Raises:
      ValueError: no rule speaks of the parameter.
    """
    dims = next((dims for pattern, dims in RULES if re.fullmatch(pattern, path)), None)
    if dims is None:
        raise ValueError(f"{path}: no rule in avjax.devices.mesh says how to shard it; add one")
    together = [(VARIANT, MODEL), (MODEL,)] if FULLY_SHARDED.fullmatch(path) else [(MODEL,)]
    for axes in together:
        count = math.prod(sizes.get(axis, 1) for axis in axes)
        for dim in dims:
            if count > 1 and shape[dim] % count == 0:
                cut: list[Any] = [None] * len(shape)
                cut[dim] = axes if len(axes) > 1 else axes[0]
                return P(*cut)
    return P()


def parameter_sharding(path: str, shape: Sequence[int], mesh: Mesh | None) -> jax.sharding.Sharding:
    """Where a parameter lies; without a mesh, on the default device."""
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, parameter_spec(path, shape, mesh.shape))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None for those of one device."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(sharding := getattr(leaf, "sharding", None), NamedSharding):
            return sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def whole(tree: Tree) -> Tree:
    """Under `jit`: results that every device, and so every process, holds whole. Nothing without a mesh."""
    return jax.tree.map(lambda x: _constrained(x, P()), tree)


def by_variant(tree: Tree) -> Tree:
    """Under `jit`: arrays whose leading axis, variants, is cut over the mesh where its devices divide it."""

    def cut(x: jax.Array) -> jax.Array:
        size = dict(_abstract_mesh(x).shape).get(VARIANT, 1)
        return _constrained(x, P(VARIANT, *[P.UNCONSTRAINED] * (x.ndim - 1))) if x.shape[0] % size == 0 else x

    return jax.tree.map(cut, tree)


def by_vocabulary(logits: jax.Array) -> jax.Array:
    """Under `jit`: logits whose last axis is cut over `model`, so that no device fetches all of the unembedding."""
    size = dict(_abstract_mesh(logits).shape).get(MODEL, 1)
    cut = logits.shape[-1] % size == 0
    return _constrained(logits, P(*[P.UNCONSTRAINED] * (logits.ndim - 1), MODEL)) if cut else logits


def _constrained(x: jax.Array, spec: P) -> jax.Array:
    mesh = _abstract_mesh(x)
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _abstract_mesh(x: jax.Array) -> Any:
    """Traced arrays know the mesh of the arguments that they come from."""
    return jax.typeof(x).sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]


def mesh_of_sizes(data: int = 1, variant: int = 1, model: int = 1) -> Mesh:
    """A mesh of all devices of all processes.

    Args:
      data, variant, model: sizes of its axes; one of them may be -1, for what the others leave.

    Raises:
      ValueError: the sizes do not make up the number of devices.
    """
    return jax.make_mesh(
        sizes_of(jax.device_count(), data, variant, model), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def sizes_of(count: int, data: int = 1, variant: int = 1, model: int = 1) -> tuple[int, int, int]:
    """Sizes of a mesh of `count` devices; see `mesh_of_sizes`.

    Raises:
      ValueError: the sizes do not make up the number of devices.
    """
    sizes = [data, variant, model]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count or min(sizes) < 1:
        axes = ", ".join(f"{name} {size}" for name, size in zip(AXES, (data, variant, model), strict=True))
        raise ValueError(f"mesh: expected sizes whose product is {count}, the number of devices, got {axes}")
    data, variant, model = sizes
    return data, variant, model


def slices(mesh: Mesh) -> list[Mesh]:
    """A mesh for each place on the `data` axis."""
    return [Mesh(devices[None], AXES, axis_types=(AxisType.Auto,) * len(AXES)) for devices in mesh.devices]


def on_slice(array: jax.Array, mesh: Mesh) -> jax.Array:
    """An array's part on one slice of its mesh, without a copy; the array is the same on all slices."""
    sharding = NamedSharding(mesh, array.sharding.spec)  # pyright: ignore[reportAttributeAccessIssue]
    here = {shard.device: shard.data for shard in array.addressable_shards}
    local = [here[device] for device in sharding.addressable_devices_indices_map(array.shape)]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, local)


def is_here(mesh: Mesh) -> bool:
    """Whether this process has a device of the mesh."""
    return any(device.process_index == jax.process_index() for device in np.ravel(mesh.devices))
