"""Plans for TPU topologies, compiled for them without a TPU: `pytest -m tpu -n 2`, with the extra `tpu`."""

import json

import jax
import pytest
from typer.testing import CliRunner

import avjax
from avjax.checkpoint.builtin import builtin_directory
from avjax.cli import app
from avjax.families.registry import abstract_network
from avjax.metrics import Caption, LogProb
from avjax.sweeping.cost import Counts
from avjax.tpu.chips import GIB
from avjax.tpu.synthetic import named_config
from avjax.tpu.topology_plan import DoesNotFit, TopologyPlan, plan_topology

pytestmark = pytest.mark.tpu

TOKENS = 2500
GRID = avjax.grid(
    avjax.Knockout(query="answer", key=avjax.axis("key", ["audio", "video"]), layers=avjax.windows(8, stride=4))
)


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
    arrays = jax.tree.leaves(abstract_network(named_config(config), "bfloat16"))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) / plan.mesh[2]
    assert held <= plan.parameter_bytes < 1.1 * held
    keys = Counts(named_config(config).decoder, 2).cache_bytes(TOKENS) / plan.mesh[2]
    assert plan.parameter_bytes + 2 * keys < plan.peak_bytes <= plan.hbm_bytes, "the clean pass's and their layout"
    kinds = {program.name.split(",")[0].split(" ")[0] for program in plan.programs}
    assert kinds == {"vision", "audio", "clean", "key", "replay", "decoding"}


def test_7b_on_one_v5e_is_refused_with_the_smallest_that_fits():
    with pytest.raises(DoesNotFit) as refused:
        planned("qwen2.5-omni-7b", "v5e:1x1")
    said = str(refused.value)
    assert "does not fit v5e:1x1: its parameters alone take 16.6 GiB of a chip's 15.75 GiB" in said
    assert said.endswith("that fits is v5e:2x2, with the mesh data 2, variant 1, model 2")


def test_operations_and_bytes_are_those_of_the_decoder():
    """XLA's own counts, with loops counted as often as they run, are those of the products written out."""
    metrics = [LogProb("dog"), Caption(max_new_tokens=20)]
    plan = plan_topology("qwen2.5-omni-3b", "v5e:1x1", GRID, metrics, prompt_tokens=TOKENS, quick=True)
    by_name = {program.name.replace(", kept", "").split(",")[0]: program for program in plan.programs}
    cfg = named_config("qwen2.5-omni-3b").decoder
    counts = Counts(cfg, 2)
    padded = 2560  # the bucket of 2,500
    # Causal blocks skip part of the products above the diagonal, never more than half of all edges.
    least = cfg.num_layers * padded * counts.per_row * (cfg.num_layers - 1) / cfg.num_layers
    assert least < by_name["clean pass"].flops < 1.25 * counts.forward(padded) + counts.attention(padded**2)
    assert by_name["clean pass"].calls == 2, "one for each kind of metric"

    decoding, steps = by_name["decoding"], 19
    by_hand = 20 * counts.decoding(TOKENS, steps)
    assert by_hand < decoding.flops < 1.05 * by_hand
    network = abstract_network(named_config("qwen2.5-omni-3b"), "bfloat16")
    # Of the two tables, the unembedding is read whole and the embedding by rows.
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network.decoder))
    weights = arrays - cfg.vocab_size * cfg.embed_dim * 2
    assert steps * weights < decoding.bytes < 1.2 * steps * (weights + counts.cache_bytes(TOKENS))
    seconds = plan.seconds_of[plan.programs.index(decoding)]
    assert seconds == pytest.approx(decoding.bytes / 819e9), "each token reads the weights of 819 GB/s"

    replay = by_name["replay"]
    row = cfg.num_layers * (counts.per_row + counts.attention(TOKENS))
    assert 0.5 * row < replay.flops / int(replay.name.split()[1]) < 1.25 * row
    layers = cfg.num_layers * counts.per_row  # as many bytes: 2 for each multiply-add's weight
    assert 0.5 * layers < replay.bytes < 1.5 * layers


@pytest.mark.parametrize("name", ["ablation", "attention"])
def test_specifications_are_planned(name: str):
    """One patches in what other passes find; one unembeds nothing."""
    words = ("plan", "--topology", "v5e:1x1", "--config", str(builtin_directory("tiny-av")), "--prompt-tokens", "300")
    made = CliRunner().invoke(app, [*words, "--quick", "--json", "--grid", f"sweeps/specs/{name}.yaml"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found["flops"] > 0
    captures = [program["name"] for program in found["programs"] if "clean pass with resid_post" in program["name"]]
    assert len(captures) == (name == "ablation")


def test_cells_of_a_run_are_swept_by_block():
    settings = {"prompt_tokens": 100, "quick": True}
    tiny = str(builtin_directory("tiny-av"))
    whole, blocks = (
        plan_topology(tiny, "v5e:1x1", GRID, LogProb("dog"), block_cells=cells, **settings) for cells in (None, 3)
    )
    assert whole.cells == blocks.cells == 4
    calls = [next(p.calls for p in plan.programs if p.name.startswith("clean pass")) for plan in (whole, blocks)]
    assert calls == [1, 2]


def test_a_budget_that_no_mesh_has_is_refused():
    message = "fits no known v5e topology; on v5e:8x8: the clean pass and one variant need an estimated"
    with pytest.raises(DoesNotFit, match=message):
        plan_topology(
            str(builtin_directory("tiny-av")), "v5e:1x1", GRID, LogProb("dog"), prompt_tokens=100, memory_bytes=1
        )


def test_the_unembedding_stays_on_its_chips():
    """Of 1.09 GB, which reading out would else fetch whole."""
    plan = plan_topology(
        "qwen2.5-omni-7b", "v5e:2x2", GRID, LogProb("dog"), prompt_tokens=300, mesh=(2, 1, 2), quick=True
    )
    (read,) = (program for program in plan.programs if program.name.startswith("read-out"))
    assert "152064 tokens" in read.name and read.temporary_bytes < 0.1 * GIB


def test_a_mesh_cuts_parameters_and_operations():
    one, cut = (
        plan_topology(
            "qwen2.5-vl-3b", "v5e:2x2", "answer->video@4:8", LogProb("dog"), prompt_tokens=300, mesh=mesh, quick=True
        )
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
    assert "the smallest topology of this chip that fits is v5e:2x2" in refused.output
