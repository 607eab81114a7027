"""What needs no compiler: topologies, published architectures, prompts without a clip, operations of loops."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from avjax.cli import app
from avjax.families.registry import abstract_network, read_config
from avjax.models.parameters import parameter_paths
from avjax.tpu.chips import CHIPS, GIB, Topology
from avjax.tpu.counting import work
from avjax.tpu.synthetic import SyntheticPrompt, named_config
from tests.hub_configs import HUB_OMNI


@pytest.mark.parametrize("text", ["v5e", "v9:2x2", "v5e:2", "v5e:2x", "v5p:2x2", "v5e:0x2", "2x4"])
def test_what_is_no_topology_is_refused(text: str):
    with pytest.raises(ValueError, match="topology: expected"):
        Topology.of(text)


def test_topologies_of_a_chip_grow():
    for chip in CHIPS.values():
        sizes = [place.size for place in Topology(chip, chip.shapes[0]).of_this_chip()]
        assert sizes == sorted(set(sizes)) and sizes[0] == 1
    assert str(Topology.of("v5e:2x4")) == "v5e:2x4" and Topology.of("v5p:2x2x1").size == 4


@pytest.mark.parametrize(("chip", "gib"), [("v5e", 16), ("v6e", 32), ("v5p", 96)])
def test_a_program_has_nearly_all_of_a_chip_s_memory(chip: str, gib: int):
    assert 0.97 < CHIPS[chip].hbm_bytes / (gib * GIB) < 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install():
    words = ("plan", "--topology", "v5e:1x1", "--config", "qwen2.5-omni-3b", "--prompt-tokens", "300")
    refused = CliRunner().invoke(app, [*words, "-r", "answer->video@4:8"])
    assert refused.exit_code == 2 and 'pip install "avjax[tpu]"' in refused.output


# Billions of parameters as the hub's pages of the two VL models state them.
@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-vl-3b", 3.75), ("qwen2.5-vl-7b", 8.29)])
def test_published_sizes(name: str, billions: float):
    shapes = (leaf.shape for leaf in parameter_paths(abstract_network(named_config(name))).values())
    assert round(sum(map(math.prod, shapes)) / 1e9, 2) == billions


def test_the_3b_is_the_hub_s():
    assert named_config("qwen2.5-omni-3b") == read_config(HUB_OMNI)


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"config: expected qwen2\.5-omni-3b, .* got 'qwen3'"):
        named_config("qwen3")


@pytest.mark.parametrize("name", ["qwen2.5-omni-7b", "qwen2.5-vl-3b"])
@pytest.mark.parametrize("tokens", [100, 300, 2500])
def test_a_prompt_has_the_tokens_of_its_clip(name: str, tokens: int):
    config = named_config(name)
    layout = SyntheticPrompt.of(tokens, config)
    prompt, (steps, height, width) = layout.prompt(config), layout.vision_grid(config)
    counts = prompt.counts()
    assert sum(counts.values()) == tokens == len(prompt)
    assert counts["video"] == steps * height * width // config.vision.spatial_merge_size**2
    assert counts.get("audio", 0) == layout.mel_frames // 4
    assert prompt.kinds[-1] == 0, "it ends with text"


def test_too_short_a_prompt_is_refused():
    with pytest.raises(ValueError, match="expected at least 69 for a second of clip, got 60"):
        SyntheticPrompt.of(60, named_config("qwen2.5-omni-3b"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "qwen2.5-vl-3b"], "expected --config and --prompt-tokens; give both"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "-m", "tiny-av"], "got --model"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "--fps", "3"], "got --fps"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "--mesh", "2,2"], "expected three sizes"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "--mesh", "1,4,²"], "expected three sizes"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "--mesh", "2,2,2"], "whose product is 4"),
        (["--config", "qwen2.5-vl-3b", "--prompt-tokens", "300", "--dtype", "int8"], "dtype: expected bfloat16 or"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(words: list[str], said: str):
    refused = CliRunner().invoke(app, ["plan", "--topology", "v5e:2x2", "-r", "answer->video@4:8", *words])
    assert refused.exit_code == 2 and said in " ".join(refused.output.split())


def test_options_of_a_topology_want_one():
    words = ["-m", "tiny-av", "-p", "What?", "-r", "answer->video", "--mesh", "1,1,1", "--quick"]
    refused = CliRunner().invoke(app, ["plan", *words])
    assert (
        refused.exit_code == 2 and "expected these options only with --topology, got --mesh, --quick" in refused.output
    )


def test_loops_count_as_often_as_they_run():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    def program(x: jax.Array, w: jax.Array, count: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)
        x = jax.lax.fori_loop(0, count, lambda _, x: x @ w, x)
        return jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.map(lambda r: r @ w, x), default=lambda x: x @ w @ w)

    traced = jax.jit(program).trace(x, w, np.int32(0)).jaxpr
    product = 2 * 3 * 4 * 4
    assert work(traced, None).flops == (1 + 1 + 2) * product
    assert work(traced, 7).flops == (5 + 7 + 2) * product
    image, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((2, 2, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=numbers))
    assert work(convolve.trace(image, kernel).jaxpr, 1).flops == 2 * (4 * 4 * 5) * (2 * 2 * 3)
