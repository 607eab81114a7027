"""How parameters are cut, and which meshes are refused."""

import math
import re

import jax
import pytest
from jax.sharding import AxisType

import avjax
from avjax.devices.mesh import AXES, RULES, checked_mesh, mesh_of_sizes, parameter_spec
from avjax.devices.processes import picklable_errors
from avjax.engine.budget import Budget
from avjax.families.registry import abstract_network, read_config
from avjax.models.parameters import parameter_paths
from tests.hub_configs import HUB_OMNI, HUB_VL

PARAMETERS = {
    path: leaf.shape
    for config in (HUB_OMNI, HUB_VL)
    for path, leaf in parameter_paths(abstract_network(read_config(config))).items()
}


@pytest.mark.parametrize("path", PARAMETERS)
def test_each_parameter_has_one_rule(path: str):
    assert sum(re.fullmatch(pattern, path) is not None for pattern, _ in RULES) == 1


@pytest.mark.parametrize("sizes", [{"model": 2}, {"model": 4}, {"model": 8}, {"variant": 2, "model": 4}])
def test_a_cut_divides_its_dimension(sizes: dict[str, int]):
    for path, shape in PARAMETERS.items():
        for dim, axes in enumerate(parameter_spec(path, shape, sizes)):
            axes = axes if isinstance(axes, tuple) else (axes,)
            assert shape[dim] % math.prod(sizes.get(axis, 1) for axis in axes if axis is not None) == 0, path


def test_nearly_all_of_a_model_is_cut():
    """Of the 3B's parameters, a device of four holds little more than a quarter."""
    held = 0
    for path, shape in PARAMETERS.items():
        cut = [axis for axis in parameter_spec(path, shape, {"model": 4}) if axis is not None]
        held += math.prod(shape) // 4 ** len(cut)
    assert held / sum(map(math.prod, PARAMETERS.values())) < 0.26


def test_tables_are_cut_over_variants_too():
    shape = (151936, 2048)
    assert parameter_spec("decoder.embed.embedding", shape, {"variant": 2, "model": 4})[0] == ("variant", "model")


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"decoder\.layers\.attn\.sinks: no rule"):
        parameter_spec("decoder.layers.attn.sinks", (8, 4), {"model": 2})


def test_a_mesh_of_fewer_axes_is_completed():
    mesh = checked_mesh(jax.make_mesh((1,), ("model",)))
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (jax.make_mesh((1, 1), ("data", "tensor")), "expected axes among data, variant, model, got tensor"),
        ((1, 1, 4), r"expected a jax\.sharding\.Mesh .* got tuple"),
    ],
)
def test_another_mesh_is_refused(mesh: object, said: str):
    with pytest.raises(ValueError, match=said):
        avjax.load("tiny-av", mesh=mesh)  # pyright: ignore[reportArgumentType]


def test_sizes_must_make_up_the_devices():
    count = jax.device_count()
    assert mesh_of_sizes(data=-1).shape["data"] == count
    with pytest.raises(ValueError, match=rf"product is {count}, the number of devices, got data {count + 1}"):
        mesh_of_sizes(data=count + 1)
    with pytest.raises(ValueError, match="got data -1, variant -1"):
        mesh_of_sizes(data=-1, variant=-1)


class Untold(Exception):
    """It cannot be pickled: its argument is not what it was made of."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} and {second}")


def test_errors_that_cannot_be_pickled_are_told_by_their_words():
    told = picklable_errors({0: Untold("this", "that"), 1: ValueError("plain")})
    assert type(told[0]) is RuntimeError and str(told[0]) == "Untold: this and that"
    assert type(told[1]) is ValueError


def test_a_device_needs_memory_for_its_heads_and_features_alone():
    settings = {"memory_bytes": 2**34, "itemsize": 2, "num_keys": 2560, "num_reads": 1, "num_groups": 4}
    cfg = read_config(HUB_OMNI).decoder
    one, cut, odd = (Budget(cfg=cfg, **settings, on_cpu=False, model_devices=n) for n in (1, 2, 7))
    for whole, part in ((one.shared_bytes(), cut.shared_bytes()), (one.variant_bytes(8), cut.variant_bytes(8))):
        assert whole / 2 < part < whole
    assert odd.shared_bytes() == one.shared_bytes(), "7 divides neither heads nor features"
