"""Plans for TPU topologies, compiled for them without a TPU: `pytest -m tpu -n 2`, with the extra `tpu`."""

import json

import pytest
from typer.testing import CliRunner

import avjax
from avjax.cli import app
from avjax.metrics import Caption, LogProb
from avjax.planning import Counts
from avjax.tpu.chips import GIB
from avjax.tpu.planning import DoesNotFit, TopologyPlan, plan_topology
from avjax.tpu.synthetic import named_config

pytestmark = pytest.mark.tpu

TOKENS = 2500
GRID = avjax.grid(
    avjax.Knockout(query="answer", key=avjax.axis("key", ["audio", "video"]), layers=avjax.windows(8, stride=4))
)
HBM = {"v5e": 16, "v6e": 32, "v5p": 96}  # GiB, of which a little is the system's


def planned(config: str, topology: str) -> TopologyPlan:
    return plan_topology(config, topology, GRID, Caption(max_new_tokens=20), prompt_tokens=TOKENS, quick=True)


@pytest.mark.parametrize(
    ("config", "topology"),
    [
        ("qwen2.5-omni-3b", "v5e:1x1"),
        ("qwen2.5-omni-3b", "v5e:2x2"),
        ("qwen2.5-omni-3b", "v5e:2x4"),
        ("qwen2.5-omni-3b", "v6e:1x1"),
        ("qwen2.5-omni-3b", "v5p:2x2x1"),
        ("qwen2.5-omni-7b", "v5e:2x2"),
        ("qwen2.5-omni-7b", "v5e:2x4"),
        ("qwen2.5-omni-7b", "v6e:2x2"),
        ("qwen2.5-omni-7b", "v5p:2x2x1"),
    ],
)
def test_it_compiles_and_fits(config: str, topology: str):
    plan = planned(config, topology)
    print(f"\n{config} {topology} {plan.mesh}: {plan.peak_bytes / GIB:.2f} of {plan.hbm_bytes / GIB:.2f} GiB")
    assert 0.97 < plan.hbm_bytes / (HBM[topology.partition(":")[0]] * GIB) < 1
    assert plan.parameter_bytes < plan.peak_bytes <= plan.hbm_bytes
    kinds = {program.name.split(",")[0].split(" ")[0] for program in plan.programs}
    assert kinds == {"vision", "audio", "clean", "key", "replay", "decoding"}


def test_7b_on_one_v5e_is_refused_with_the_smallest_that_fits():
    with pytest.raises(DoesNotFit) as refused:
        planned("qwen2.5-omni-7b", "v5e:1x1")
    said = str(refused.value)
    assert "does not fit v5e:1x1: its parameters alone take 16.6 GiB of a chip's 15.75 GiB" in said
    assert said.endswith("has room is v5e:2x2, with the mesh data 2, variant 1, model 2")


def test_operations_are_those_of_the_decoder():
    """XLA's own count, with loops counted as often as they run, is that of the products written out."""
    plan = plan_topology("qwen2.5-omni-3b", "v5e:1x1", GRID, LogProb("dog"), prompt_tokens=TOKENS, quick=True)
    by_name = {program.name.split(",")[0]: program for program in plan.programs}
    cfg = named_config("qwen2.5-omni-3b").decoder
    counts = Counts(cfg, 2)
    padded = 2560  # the bucket of 2,500
    # Causal blocks skip part of the products above the diagonal, never more than half of all edges.
    least = cfg.num_layers * padded * counts.per_row * (cfg.num_layers - 1) / cfg.num_layers
    assert least < by_name["clean pass"].flops < 1.25 * counts.forward(padded) + counts.attention(padded**2)


def test_a_mesh_cuts_parameters_and_operations():
    one, cut = (
        plan_topology("qwen2.5-vl-3b", "v5e:2x2", GRID, LogProb("dog"), prompt_tokens=300, mesh=mesh, quick=True)
        for mesh in ((4, 1, 1), (2, 1, 2))
    )
    assert cut.parameter_bytes < 0.55 * one.parameter_bytes
    assert cut.flops < 0.7 * one.flops


def test_the_command_prints_what_fits():
    words = ("plan", "--topology", "v5e:1x1", "--config", "qwen2.5-omni-3b", "--prompt-tokens", "300", "--quick")
    made = CliRunner().invoke(app, [*words, "-r", "answer->video@4:8", "--answer", "dog", "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert 1 * GIB < found["peak_bytes"] <= found["hbm_bytes"] < 16 * GIB
    refused = CliRunner().invoke(app, [*words[:4], "qwen2.5-omni-7b", *words[5:], "-r", "answer->video@4:8"])
    assert refused.exit_code == 2
    assert "the smallest of its kind that has room is v5e:2x2" in refused.output
