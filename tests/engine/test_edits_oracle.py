"""Edits at every site: the same logits, activations and tokens as hooks on the torch model."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import avjax
from avjax.engine.clean_runs import CleanRuns
from avjax.engine.lowering import lower
from avjax.engine.reference import logits_at
from avjax.models.sites import Site
from avjax.prompts.selectors import select
from tests.engine.edits_oracle import HEADED, SITES, Change, EditsOracle, Factor
from tests.tiny_hf import TinyCheckpoint

TOLERANCE = 1e-4
L, N, K, D = 8, 4, 2, 64
SHAPES = {"z": (N, D // N), "value": (K, D // N)}
ROWS = (2, 3, 9, 17, 30, 43)  # of 44: the last one is read out
WHERE = "[2:4, 9, 17, 30, 43]"
SIZE = 44
LAYERS = {site: (0,) if site == "embed" else (1, 4, 7) for site in SITES}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing, said twice: to avjax, and to the hooks."""

    edits: tuple
    changes: tuple[Change | Factor, ...]


def token_prompt(omni: TinyCheckpoint, model: avjax.Model, seed: int, size: int = SIZE) -> avjax.Prompt:
    ids = np.random.default_rng(seed).integers(0, omni.ids["endoftext"], size)[None]
    return model.prompt_from_hf({"input_ids": ids})


@pytest.fixture(scope="module")
def prompt(omni, omni_model) -> avjax.Prompt:
    return token_prompt(omni, omni_model, 3)


@pytest.fixture(scope="module")
def other(omni, omni_model) -> avjax.Prompt:
    return token_prompt(omni, omni_model, 4)


@pytest.fixture(scope="module")
def oracle(omni, omni_model, prompt) -> EditsOracle:
    return EditsOracle(omni.torch_model, omni_model, prompt)


@pytest.fixture(scope="module")
def clean(oracle):
    return oracle.run()


@pytest.fixture(scope="module")
def elsewhere(omni, omni_model, other):
    """What the sites hold on the other prompt, as torch computes it."""
    return EditsOracle(omni.torch_model, omni_model, other).run()[1]


def shape_of(site: str) -> tuple[int, ...]:
    return SHAPES.get(site, (D,))


def place(site: str, heads: tuple[int, ...] | None) -> tuple[dict, dict]:
    """Keywords of the edit and of the change."""
    layers = LAYERS[site]
    edit = {"site": site, **({} if site == "embed" else {"layers": layers})}
    return edit | ({} if heads is None else {"heads": heads}), {"site": site, "layers": layers, "heads": heads}


def layer_of(values: np.ndarray, site: str, layer: int) -> torch.Tensor:
    return torch.tensor(values if site == "embed" else values[layer])


def scale(site: str, heads, **known) -> Case:
    edit, change = place(site, heads)
    return Case((avjax.Scale(WHERE, -1.7, **edit),), (Change(**change, rows=ROWS, function=lambda x, i, r: -1.7 * x),))


def zero(site: str, heads, **known) -> Case:
    edit, change = place(site, heads)
    return Case((avjax.Ablate(WHERE, "zero", **edit),), (Change(**change, rows=ROWS, function=lambda x, i, r: 0 * x),))


def mean(site: str, heads, *, clean, **known) -> Case:
    edit, change = place(site, heads)
    held = clean[1][site]

    def averaged(x, i, rows):
        return layer_of(held, site, i)[list(ROWS)].mean(0, keepdim=True).expand_as(x)

    return Case((avjax.Ablate(WHERE, "mean", **edit),), (Change(**change, rows=ROWS, function=averaged),))


def steer(site: str, heads, **known) -> Case:
    edit, change = place(site, heads)
    vector = np.random.default_rng(5).normal(size=shape_of(site)).astype(np.float32)
    add = Change(**change, rows=ROWS, function=lambda x, i, r: x - 0.8 * torch.tensor(vector))
    return Case((avjax.Steer(WHERE, vector, scale=-0.8, **edit),), (add,))


def steer_by_layer(site: str, heads, **known) -> Case:
    edit, change = place(site, heads)
    vector = np.random.default_rng(6).normal(size=(L, *shape_of(site))).astype(np.float32)
    add = Change(**change, rows=ROWS, function=lambda x, i, r: x + torch.tensor(vector[i]))
    return Case((avjax.Steer(WHERE, vector, **edit),), (add,))


def patch_run(site: str, heads, *, source, elsewhere, **known) -> Case:
    edit, change = place(site, heads)
    take = Change(**change, rows=ROWS, function=lambda x, i, r: layer_of(elsewhere[site], site, i)[r])
    return Case((avjax.Patch(WHERE, source, **edit),), (take,))


def patch_prompt(site: str, heads, *, other, elsewhere, **known) -> Case:
    edit, change = place(site, heads)
    take = Change(**change, rows=ROWS, function=lambda x, i, r: layer_of(elsewhere[site], site, i)[r])
    return Case((avjax.Patch(WHERE, other, **edit),), (take,))


def patch_rows_by_layer(site: str, heads, **known) -> Case:
    """An array [L, n, ...] over the selected positions; [n, ...] at the embedding."""
    edit, change = place(site, heads)
    values = np.random.default_rng(7).normal(size=(L, len(ROWS), *shape_of(site))).astype(np.float32)
    values = values[:1] if site == "embed" else values
    take = Change(**change, rows=ROWS, function=lambda x, i, r: torch.tensor(values[i]))
    return Case((avjax.Patch(WHERE, values, **edit),), (take,))


def patch_one_layer(site: str, heads, **known) -> Case:
    """An array [T, ...], the same in every layer."""
    edit, change = place(site, heads)
    values = np.random.default_rng(8).normal(size=(SIZE, *shape_of(site))).astype(np.float32)
    take = Change(**change, rows=ROWS, function=lambda x, i, r: torch.tensor(values)[r])
    return Case((avjax.Patch(WHERE, values, **edit),), (take,))


KINDS: tuple[Callable[..., Case], ...] = (
    scale,
    zero,
    mean,
    steer,
    steer_by_layer,
    patch_run,
    patch_rows_by_layer,
    patch_one_layer,
)
HEADS = {"z": (1, 2), "value": (1,)}


@pytest.fixture(scope="module")
def case(omni_model, other, clean, elsewhere) -> Callable[..., Case]:
    source = avjax.run(omni_model, other, capture=SITES)

    def made(kind: Callable[..., Case], site: str, heads) -> Case:
        return kind(site, heads, source=source, other=other, clean=clean, elsewhere=elsewhere)

    return made


def agree(logits, captures, expected: tuple[np.ndarray, dict[str, np.ndarray]], clean) -> None:
    assert np.abs(np.asarray(logits) - expected[0]).max() <= TOLERANCE
    for site in SITES:
        assert captures[site].shape == expected[1][site].shape
        assert np.abs(np.asarray(captures[site]) - expected[1][site]).max() <= TOLERANCE, site
    assert np.abs(expected[0][-1] - clean[0][-1]).max() > 1e-2, "an edit that does not show proves nothing"


def check(model: avjax.Model, prompt: avjax.Prompt, oracle: EditsOracle, case: Case, clean) -> None:
    got = avjax.run(model, prompt, *case.edits, at="all", capture=SITES)
    agree(got.logits, got.captures, oracle.run(case.changes), clean)


SINGLE = [(kind, site, HEADS.get(site)) for kind in KINDS for site in SITES]
SINGLE += [(kind, site, None) for kind in (scale, mean, steer_by_layer, patch_rows_by_layer) for site in HEADED]
NAMES = [f"{kind.__name__}-{site}-{'all' if heads is None else 'some'}" for kind, site, heads in SINGLE]


@pytest.fixture(scope="module")
def lowered(omni_model, prompt, case):
    """All of them as variants of one prompt, which makes them one executable."""
    cases = [case(*single) for single in SINGLE]
    edits = [c.edits for c in cases]
    clean = CleanRuns(omni_model)
    together = lower(prompt, omni_model.config.decoder, edits, num_decoded=0, allow_noop=False, clean=clean)
    return cases, together, together.bank.sources(SIZE), omni_model.encode(prompt, together.groups)


@pytest.mark.exhaustive
@pytest.mark.parametrize("index", range(len(SINGLE)), ids=NAMES)
def test_one_edit(omni_model, oracle, clean, lowered, index: int):
    cases, together, sources, inputs = lowered
    stacked = together.interventions([index])
    edit = dataclasses.replace(jax.tree.map(lambda leaf: leaf[0], stacked), sources=sources)
    captured = tuple(Site(site) for site in SITES)
    logits, seen = logits_at(omni_model.network.decoder, inputs, edit, jnp.arange(SIZE), capture=captured)
    agree(logits, seen, oracle.run(cases[index].changes), clean)


ALONE = [(scale, "value"), (mean, "resid_mid"), (patch_run, "attn_out"), (patch_prompt, "embed"), (steer, "z")]
ALONE += [(patch_run, "attn_in"), (steer, "mlp_in")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "site"), ALONE, ids=lambda x: getattr(x, "__name__", x))
def test_one_edit_alone(omni_model, prompt, oracle, clean, case, kind, site: str):
    check(omni_model, prompt, oracle, case(kind, site, None), clean)


def test_a_mean_by_its_two_names(omni_model, prompt):
    a, b = (
        avjax.run(omni_model, prompt, edit).logits
        for edit in (
            avjax.Ablate(WHERE, "mean", site="mlp_out", layers=[2]),
            avjax.Patch(WHERE, "mean", site="mlp_out", layers=[2]),
        )
    )
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_several_edits_compose_in_the_order_written(omni_model, prompt, oracle, clean, case):
    """At one site the first edit acts first: scaled then steered is not steered then scaled."""
    seeds = [(scale, "resid_pre"), (steer, "resid_pre"), (mean, "z"), (patch_run, "mlp_out"), (scale, "mlp_out")]
    seeds += [(steer, "embed"), (scale, "embed"), (patch_one_layer, "value"), (steer_by_layer, "resid_post")]
    seeds += [(mean, "attn_in"), (scale, "attn_in"), (steer, "mlp_in"), (scale, "mlp_in")]
    seeds += [(scale, "resid_post"), (patch_rows_by_layer, "resid_mid"), (scale, "attn_out")]
    parts = [case(kind, site, None) for kind, site in seeds]
    forward = Case(*(tuple(x for p in parts for x in getattr(p, name)) for name in ("edits", "changes")))
    check(omni_model, prompt, oracle, forward, clean)
    backward = Case(forward.edits[::-1], forward.changes[::-1])
    check(omni_model, prompt, oracle, backward, clean)
    difference = oracle.run(forward.changes)[0] - oracle.run(backward.changes)[0]
    assert np.abs(difference).max() > 1e-2


@pytest.mark.exhaustive
def test_edges_and_activations_together(omni_model, prompt, oracle, clean, case):
    parts = [case(scale, "value", None), case(steer, "resid_post", None)]
    edge = avjax.ScaleAttention(query="[20:44]", key="[0:15]", factor=3.5, layers=[0, 3, 4], heads=[0, 3])
    factor = Factor(tuple(range(20, 44)), tuple(range(15)), 3.5, (0, 3, 4), (0, 3))
    both = Case((edge, *(e for p in parts for e in p.edits)), (factor, *(c for p in parts for c in p.changes)))
    check(omni_model, prompt, oracle, both, clean)
    _, captures = oracle.run(both.changes)
    got = avjax.run(omni_model, prompt, *both.edits, capture=["pattern"])
    assert np.abs(np.asarray(got.captures["pattern"]) - captures["pattern"]).max() <= 1e-5


def test_pattern_and_mass(omni_model, prompt, oracle, clean):
    groups = ["[0:5]", "[3:20]", "last", "all", "[20:44] - last"]
    got = avjax.run(omni_model, prompt, capture=["pattern", "mass"], groups=groups)
    expected = clean[1]["pattern"]
    assert np.abs(np.asarray(got.captures["pattern"]) - expected).max() <= 1e-5
    spans = [range(5), range(3, 20), [43], range(44), range(20, 43)]
    for group, span in zip(groups, spans, strict=True):
        mass = np.asarray(got.captures["mass"])[..., got.members[group]].sum(-1)
        assert np.abs(mass - expected[..., list(span)].sum(-1)).max() <= 1e-5, group


def test_names_of_one_layer(omni_model, prompt, oracle, case, clean):
    """A TransformerLens name gives that layer alone, after its edit."""
    edits, changes = case(scale, "resid_post", None).edits, case(scale, "resid_post", None).changes
    _, captures = oracle.run(changes)
    got = avjax.run(omni_model, prompt, *edits, capture=["blocks.4.hook_resid_post", "blocks.7.attn.hook_z"])
    for name, expected in zip(got.captures, (captures["resid_post"][4], captures["z"][7]), strict=True):
        assert np.abs(np.asarray(got.captures[name]) - expected).max() <= TOLERANCE


NEW_TOKENS = 8
T_MEDIA = 32
TYPES = ["text"] * 6 + ["audio", "video"] * 8 + ["text"] * 10
WHERES = {  # by selector: positions of the prompt, and from where on all are edited
    "answer": ((), T_MEDIA - 1),
    "generated": ((), T_MEDIA),
    "all": ((), 0),
    "all - generated": (tuple(range(T_MEDIA)), None),
    "audio": (tuple(range(6, 22, 2)), None),
    "video | generated": (tuple(range(7, 22, 2)), T_MEDIA),
    "[24:28]": (tuple(range(24, 28)), None),
}


@pytest.fixture(scope="module")
def media_prompt(omni_model) -> avjax.Prompt:
    rng = np.random.default_rng(9)
    positions = np.sort(rng.integers(0, 30, (3, T_MEDIA)), axis=1)
    return omni_model.prompt_from_embeddings(rng.normal(size=(T_MEDIA, D)), positions, TYPES)


def generation_cases() -> list[tuple[str, Case]]:
    vector = np.random.default_rng(10).normal(size=D).astype(np.float32)
    per_head = np.random.default_rng(11).normal(size=(N, D // N)).astype(np.float32)
    cases = []
    for where, (rows, after) in WHERES.items():
        at = {"rows": rows, "after": after}
        cases.append(
            (
                where,
                Case(
                    (avjax.Steer(where, vector, scale=1.5, layers=[0, 5, 7]), avjax.Scale(where, 0.3, site="mlp_out")),
                    (
                        Change("resid_post", lambda x, i, r: x + 1.5 * torch.tensor(vector), **at, layers=(0, 5, 7)),
                        Change("mlp_out", lambda x, i, r: 0.3 * x, **at, layers=tuple(range(L))),
                    ),
                ),
            )
        )
        cases.append(
            (
                where,
                Case(
                    (
                        avjax.Scale(where, -1.2, site="embed"),
                        avjax.Scale(where, 2.0, site="value", layers=[2, 3], heads=[1]),
                        avjax.Steer(where, per_head, site="z", layers=[6], heads=[0, 2]),
                        avjax.Ablate(where, "zero", site="attn_out", layers=[1]),
                        avjax.Scale(where, -0.5, site="attn_in", layers=[4, 7]),
                        avjax.Steer(where, vector, scale=0.4, site="mlp_in", layers=[0, 7]),
                    ),
                    (
                        Change("embed", lambda x, i, r: -1.2 * x, **at),
                        Change("value", lambda x, i, r: 2 * x, **at, layers=(2, 3), heads=(1,)),
                        Change("z", lambda x, i, r: x + torch.tensor(per_head), **at, layers=(6,), heads=(0, 2)),
                        Change("attn_out", lambda x, i, r: 0 * x, **at, layers=(1,)),
                        Change("attn_in", lambda x, i, r: -0.5 * x, **at, layers=(4, 7)),
                        Change("mlp_in", lambda x, i, r: x + 0.4 * torch.tensor(vector), **at, layers=(0, 7)),
                    ),
                ),
            )
        )
    return cases


@pytest.fixture(scope="module")
def continued(omni, omni_model, media_prompt):
    """Expected continuations, the clean one last."""
    oracle = EditsOracle(omni.torch_model, omni_model, media_prompt)
    return [oracle.generate(case.changes, NEW_TOKENS) for _, case in generation_cases()] + [
        oracle.generate((), NEW_TOKENS)
    ]


@pytest.mark.exhaustive
@pytest.mark.parametrize("executor", ["replay", "reference"])
def test_generation(omni_model, media_prompt, continued, executor: str):
    variants = [case.edits for _, case in generation_cases()]
    got = avjax.generate_variants(
        omni_model, media_prompt, [*variants, []], max_new_tokens=NEW_TOKENS, executor=executor
    )
    for (where, _), found, (tokens, logits) in zip([*generation_cases(), ("clean", None)], got, continued, strict=True):
        assert found.tokens.tolist() == tokens[: len(found.tokens)], where
        assert np.abs(found.logits - logits[: len(found.tokens)]).max() <= TOLERANCE, where
    full = sum(len(found.tokens) == NEW_TOKENS for found in got)
    assert full >= len(got) - 2, "few may end early"
    assert len({tuple(tokens) for tokens, _ in continued}) >= 10, "edits must change what is said"


def test_selectors_are_what_the_table_says(media_prompt):
    for where, (rows, after) in WHERES.items():
        expected = np.zeros(T_MEDIA + 1, bool)
        expected[list(rows)] = True
        if after is not None:
            expected[after:] = True
        np.testing.assert_array_equal(select(media_prompt, where), expected)
