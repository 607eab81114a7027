"""What a lens holds over a full-size model, by XLA's own account: 36 layers of 2,048 and a vocabulary of 151,936."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from avjax.analysis.lens_projection import CHUNK_BYTES, chunk_rows, lens_pass, project
from avjax.analysis.tuned_lens import Data, Translators, slope_of
from avjax.engine.reference import prefill
from avjax.families.registry import abstract_network, read_config
from avjax.models.sites import Site
from avjax.prompts.prompt import Inputs
from tests.hub_configs import HUB_OMNI

MB = 2**20
BOUND = 256 * MB
CONFIG = read_config(HUB_OMNI)
D, V, L = CONFIG.decoder.embed_dim, CONFIG.decoder.vocab_size, CONFIG.decoder.num_layers
S = jax.ShapeDtypeStruct


def held(program: Any) -> int:
    """Bytes of a program's results and temporaries."""
    analysis = program.compile().memory_analysis()
    return analysis.output_size_in_bytes + analysis.temp_size_in_bytes


def inputs_of(size: int, dtype: str) -> Inputs:
    return Inputs(
        embeddings=S((size, D), jnp.dtype(dtype)),
        positions=S((3, size), jnp.int32),
        groups=S((size,), jnp.int32),
        generated_group=S((), jnp.int32),
        length=S((), jnp.int32),
        num_groups=1,
    )


def test_the_config_is_the_full_one():
    assert (L, D, V) == (36, 2048, 151936)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size, audio", [(320, 250), (1664, 1500), (3264, 250)])
def test_every_audio_token_and_layer(size: int, audio: int):
    """One program, the forward pass included; no residual of all layers and no logits of all positions can hide in it.

    A CPU copies one layer's parameters as it walks them, in any forward pass; they are weights.
    """
    decoder = abstract_network(CONFIG, "float32").decoder
    chunk = chunk_rows(V, audio, CHUNK_BYTES)
    rows = -(-audio // chunk) * chunk
    program = lens_pass.lower(
        decoder,
        inputs_of(size, "float32"),
        S((rows,), jnp.int32),
        S((L,), jnp.bool_),
        S((4, 2), jnp.int32),
        None,
        site=Site.RESID_POST,
        norm=True,
        k=10,
        chunk=chunk,
    )
    layer = sum(leaf.size * 4 // L for leaf in jax.tree.leaves(decoder.layers))
    assert held(program) - layer < BOUND
    forward = jax.jit(lambda decoder, inputs: prefill(decoder, inputs, None)[0])
    assert held(program) - held(forward.lower(decoder, inputs_of(size, "float32"))) < 64 * MB


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [True, False])
def test_the_lens_alone_holds_its_chunk_and_no_copy_of_the_table(dtype: str, norm: bool):
    """Also in bfloat16, where a float32 table would be 1,187 MB."""
    decoder = abstract_network(CONFIG, dtype).decoder
    chunk = chunk_rows(V, 1500, CHUNK_BYTES)
    rows = -(-1500 // chunk) * chunk
    lens = Translators(kernel=S((D, D), jnp.float32), bias=S((D,), jnp.float32))
    one = jax.jit(functools.partial(project, norm=norm, k=10, chunk=chunk))
    for translators in (None, lens):
        assert (
            held(one.lower(decoder, S((rows, D), jnp.dtype(dtype)), S((4, 2), jnp.int32), translators))
            < 4 * CHUNK_BYTES
        )


def test_the_measure_sees_what_it_must():
    """Logits of all positions at once break the bound."""
    decoder = abstract_network(CONFIG, "float32").decoder
    one = jax.jit(functools.partial(project, norm=True, k=10, chunk=256))
    assert held(one.lower(decoder, S((256, D), jnp.float32), S((4, 2), jnp.int32), None)) > BOUND


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tuned_lens_s_gradient_holds_chunks_too(dtype: str):
    """Beside the gradient itself and what it reads: a step's positions, and a CPU's float32 copy of bfloat16 ones."""
    decoder = abstract_network(CONFIG, dtype).decoder
    chunk, count = chunk_rows(V, 64, CHUNK_BYTES // 4), 500
    maps = Translators(kernel=S((L, D, D), jnp.float32), bias=S((L, D), jnp.float32))
    data = Data(seen=S((L, count, D), jnp.dtype(dtype)), final=S((count, D), jnp.dtype(dtype)))
    program = jax.jit(slope_of).lower(decoder, maps, data, S((-(-64 // chunk), chunk), jnp.int32))
    gradient = sum(leaf.size * 4 for leaf in jax.tree.leaves(maps))
    assert held(program) - 2 * gradient - L * count * D * 4 < BOUND


def test_chunks_are_as_many_rows_as_fit():
    assert chunk_rows(V, 1500, CHUNK_BYTES) == CHUNK_BYTES // (4 * V) == 55
    assert chunk_rows(V, 3, CHUNK_BYTES) == 4
    assert chunk_rows(V, 1500, 1) == 1
