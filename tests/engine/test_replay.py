"""Replays equal full forward passes, for any composition of edits; and what they cost in memory and compilations."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import avjax
from avjax.engine import clean_runs
from avjax.engine import session as sessions
from avjax.metrics import AttentionMass, Logits, LogLikelihood
from avjax.sweeping.prepare import prepare
from tests.engine.test_knockout_compiles import count_compilations

RELATIVE = 1e-5
L, N, K, D = 8, 4, 2, 64
SHAPES = {"z": (N, D // N), "value": (K, D // N)}
SITES = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "z", "value")
NUM_VARIANTS = 20
FACTORS = (0.0, 0.0, 0.25, 1.0, 3.0, 1e4)


def types_of(size: int) -> list[str]:
    """Text before the media, between them and after, where there is room."""
    kinds = ["text", "audio", "video", "audio", "text", "video", "text", "text", "text"] if size >= 9 else ["text"]
    edges = np.linspace(0, size, len(kinds) + 1).round().astype(int)
    return [kind for kind, width in zip(kinds, np.diff(edges), strict=True) for _ in range(width)]


def made_prompt(model: avjax.Model, size: int, seed: int = 0) -> avjax.Prompt:
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.integers(0, size + 3, (3, size)), axis=1)
    return model.prompt_from_embeddings(rng.normal(size=(size, D)), positions, types_of(size))


class Pool:
    """Selectors and sources that the edits of one prompt are drawn from.

    Every sweep over a pool holds its anchors, which use all of it: so all have the same shapes and executables.
    """

    def __init__(self, model: avjax.Model, size: int):
        self.prompt = made_prompt(model, size)
        self.run = avjax.run(model, made_prompt(model, size, seed=1), capture=SITES)
        self.names = ["last", "answer", "generated", "all", "[0:] - last", [size // 2]]
        if size >= 9:
            self.names += ["audio", "video", "text", "video | generated", f"[{size - size // 9}:{size - 1}]"]
        self.inside = [n for n in self.names if n not in ("answer", "generated", "all", "video | generated")]
        self.inside += ["all - generated"]
        rng = np.random.default_rng(size)
        self.vectors, self.arrays = {}, {}
        for site in SITES:
            shape = SHAPES.get(site, (D,))
            self.vectors[site] = [rng.normal(size=s).astype(np.float32) for s in (shape, (L, *shape))]
            layers = 1 if site == "embed" else L
            self.arrays[site] = rng.normal(size=(layers, size, *shape)).astype(np.float32)

    def from_sources(self, site: str, kind: int, where: Any, scale: float, place: dict[str, Any]) -> Any:
        """One of the edits that mix something in; the positions of a mean, noise or resampling are part of a source."""
        whole, place = "all - generated", {"site": site, **place}
        match kind:
            case 0 | 1:
                return avjax.Steer(where, self.vectors[site][kind], scale=scale, **place)
            case 2:
                return avjax.Patch(where, self.run, **place)
            case 3:
                return avjax.Patch(where, self.arrays[site], **place)
            case 4:
                return avjax.Ablate("last", "mean", **place)
            case 5:
                return avjax.Ablate(whole, "mean", **place)
            case 6:
                return avjax.Ablate("[0:] - last" if len(self.prompt) > 1 else "last", "noise", **place, noise=0.5)
            case _:
                resampled = len(self.prompt) > 1
                return avjax.Ablate(whole, "resample" if resampled else "zero", **place, seed=1)

    def anchors(self) -> list[list[Any]]:
        edges = [avjax.ScaleAttention(query=s, key=s, factor=0.5 + i / 4) for i, s in enumerate(self.names)]
        places = [avjax.Scale(s, 1.25, site="mlp_out") for s in (*self.names, *self.inside)]
        mixed = [self.from_sources(site, kind, "last", 0.5, {}) for site in SITES for kind in range(8)]
        return [[], edges, places, mixed, mixed[::-1]]

    def variant(self, rng: np.random.Generator) -> list[Any]:
        """Up to four edits; now and then none."""
        return [
            self.edge(rng) if rng.random() < 0.4 else self.activation(rng)
            for _ in range(rng.choice([0, 1, 1, 2, 3, 4]))
        ]

    def edge(self, rng: np.random.Generator) -> Any:
        query, key = (self.names[rng.integers(len(self.names))] for _ in range(2))
        fields = {"query": query, "key": key, "layers": some(rng, L), "heads": some(rng, N)}
        if rng.random() < 0.4:
            return avjax.Knockout(**fields)
        return avjax.ScaleAttention(**fields, factor=float(rng.choice(FACTORS)))

    def activation(self, rng: np.random.Generator) -> Any:
        site = str(rng.choice(SITES))
        place: dict[str, Any] = {} if site == "embed" else {"layers": some(rng, L)}
        if site in SHAPES:
            place["heads"] = some(rng, SHAPES[site][0])
        where = self.names[rng.integers(len(self.names))]
        inside = self.inside[rng.integers(len(self.inside))]
        if (kind := rng.integers(0, 10)) >= 8:
            return avjax.Scale(where, float(rng.choice([-1.5, 0.0, 1.0, 2.0])), site=site, **place)
        return self.from_sources(site, int(kind), where if kind < 2 else inside, float(rng.normal()), place)


def some(rng: np.random.Generator, count: int) -> list[int] | None:
    if rng.random() < 0.3:
        return None
    return sorted(rng.choice(count, rng.integers(1, min(count, 3) + 1), replace=False).tolist())


@pytest.fixture(scope="module")
def pool(omni_model):
    return functools.cache(functools.partial(Pool, omni_model))


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def compare(a: xr.Dataset, b: xr.Dataset) -> None:
    """All that two sweeps read, and what is missing of it; each measured the floors of its own rounding."""
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        if str(name).endswith("_floor"):
            assert 0 <= a[name] < 1e-4 and 0 <= b[name] < 1e-4, name
        elif a[name].dtype.kind == "f":
            for i, cell in enumerate(a[name].coords["cell"].values if "variant" in a[name].dims else ["clean"]):
                x, y = (d[name][i] if "variant" in d[name].dims else d[name] for d in (a, b))
                if np.isnan(y).all():
                    assert np.isnan(x).all(), (name, cell)
                elif name.startswith("attention_mass"):
                    assert np.abs(x - y).max() <= 2e-6 * max(1, float(np.abs(y).max())), (name, cell)
                else:
                    assert relative(x, y) <= RELATIVE, (name, cell)
        else:
            np.testing.assert_array_equal(a[name].values, b[name].values)


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a sweep reads beside all logits."""

    size: int
    fed: int = 0
    masses: tuple[tuple[str, str], ...] = ()
    examples: int = 4

    def metrics(self, model: avjax.Model) -> list[Any]:
        vocab = model.config.decoder.vocab_size
        found: list[Any] = [Logits(range(vocab))]
        if self.fed:
            found.append(LogLikelihood(np.random.default_rng(0).integers(0, vocab, self.fed).tolist()))
        return found + [
            AttentionMass(key, query=query, name=f"attention_mass_{i}") for i, (query, key) in enumerate(self.masses)
        ]


READS = (
    Reads(size=1, fed=1, masses=(("last", "all"),)),
    pytest.param(Reads(size=40, fed=5), marks=pytest.mark.exhaustive),
    pytest.param(
        Reads(size=150, masses=(("last", "audio"), ("text & [130:150]", "[0:] - last"))), marks=pytest.mark.exhaustive
    ),
)


@pytest.mark.parametrize("reads", READS, ids=lambda r: f"{r.size}-fed{r.fed}-masses{len(r.masses)}")
def test_sweep(omni_model: avjax.Model, pool, reads: Reads):
    held = pool(reads.size)
    shown = []

    @settings(max_examples=reads.examples)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int):
        rng = np.random.default_rng(seed)
        variants = [*held.anchors(), *(held.variant(rng) for _ in range(NUM_VARIANTS))]
        a, b = (
            avjax.sweep(
                omni_model,
                held.prompt,
                variants,
                reads.metrics(omni_model),
                executor=executor,
                allow_noop=True,
                progress=False,
            )
            for executor in ("replay", "reference")
        )
        compare(a, b)
        reached = np.isfinite(b["logits"]).all(["token", "sample"]).values
        assert reached.mean() > 0.8
        spread = np.abs(b["logits"] - b["logits_clean"]).max("token").values[reached]
        assert spread[0] <= 1e-4
        shown.append((spread > 1e-3).mean())

    check()
    assert np.mean(shown) > 0.4, "most edits must show"


def generated_variants(held: Pool) -> list[list[Any]]:
    rng = np.random.default_rng(5)
    found: list[list[Any]] = [[]]
    while len(found) < 14:
        rows = "answer", "generated", "last | generated", f"[{len(held.prompt) - 3}:{len(held.prompt)}]"
        query, site = str(rng.choice(rows)), str(rng.choice(["mlp_out", "resid_post", "value", "attn_in", "mlp_in"]))
        heads = {"heads": some(rng, K)} if site == "value" else {}
        edge = avjax.ScaleAttention(query=query, key=held.names[rng.integers(4)], factor=float(rng.choice(FACTORS)))
        steer = avjax.Steer(query, held.vectors[site][1], scale=0.7, site=site, layers=some(rng, L), **heads)
        found.append([[edge], [steer], [edge, steer]][rng.integers(3)])
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("compat", [None, "published"])
def test_generation(omni_model: avjax.Model, pool, compat):
    held = pool(40)
    variants = generated_variants(held)
    a, b = (
        avjax.generate_variants(
            omni_model, held.prompt, variants, max_new_tokens=7, executor=executor, compat=compat, allow_noop=True
        )
        for executor in ("replay", "reference")
    )
    for x, y, edits in zip(a, b, variants, strict=True):
        np.testing.assert_array_equal(x.tokens, y.tokens, err_msg=str(edits))
        assert relative(x.logits, y.logits) <= RELATIVE
        assert x.touched == y.touched
    assert len({tuple(x.tokens) for x in a}) >= 5, "edits must change what is said"


LAST = [f"last->[{i}:{i + 9}]@{i % 8}#h{i % 4}" for i in range(12)]


@pytest.mark.exhaustive
def test_a_small_budget_changes_nothing(omni_model: avjax.Model, pool):
    """The error names the least that suffices; with exactly that, batches hold one variant."""
    prompt, metric = pool(40).prompt, Logits(range(omni_model.config.decoder.vocab_size))
    roomy = avjax.sweep(omni_model, prompt, LAST, metric, progress=False)
    with count_compilations() as seen, pytest.raises(ValueError, match="expected at least") as error:
        avjax.sweep(omni_model, prompt, LAST, metric, memory_bytes=1000, progress=False)
    assert seen == []
    least = int(str(error.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    planned = prepare(omni_model, prompt, LAST, metric, memory_bytes=least)
    assert {batch.size for session in planned.sessions.values() for batch in session.planned} == {1}
    compare(avjax.sweep(omni_model, prompt, LAST, metric, memory_bytes=least, progress=False), roomy)
    with pytest.raises(ValueError, match="expected at least"):
        avjax.sweep(omni_model, prompt, LAST, metric, memory_bytes=least - 1, progress=False)
    with pytest.raises(ValueError, match="expected a whole number of bytes, got True"):
        avjax.sweep(omni_model, prompt, LAST, metric, memory_bytes=True, progress=False)


def test_grids_of_one_shape_share_executables(omni_model: avjax.Model, pool):
    prompt, metric = pool(40).prompt, Logits(range(omni_model.config.decoder.vocab_size))
    avjax.sweep(omni_model, prompt, LAST, metric, progress=False)
    others = [f"last->[{i + 1}:{i + 12}]*{i / 2 + 1.5}@{7 - i % 8}#h{i % 3}" for i in range(12)]
    with count_compilations() as seen:
        avjax.sweep(omni_model, prompt, others, metric, progress=False)
    assert seen == []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """The prompts and sites of clean passes that sources ask for."""
    seen, clean_sites = [], clean_runs.clean_sites
    monkeypatch.setattr(clean_runs, "clean_sites", lambda m, p, s, d: seen.append((p, s)) or clean_sites(m, p, s, d))
    return seen


@pytest.mark.parametrize(("size", "first", "rows"), [(512, 20, 496), (500, 20, 496), (512, 40, 480), (512, 200, 320)])
def test_a_region_ends_where_its_edit_begins(omni_model: avjax.Model, size: int, first: int, rows: int):
    """In steps that prompts of one padded length share: few executables, and little computed in vain."""
    prompt = made_prompt(omni_model, size)
    planned = prepare(omni_model, prompt, avjax.Scale(f"[{first}:]", 0.5), Logits([1]), floor=False)
    assert [b.num_rows for session in planned.sessions.values() for b in session.planned] == [rows]


@pytest.mark.exhaustive
def test_clean_activations_are_computed_once_and_not_before_the_sweep(omni_model: avjax.Model, pool, asked):
    prompt = pool(40).prompt
    grid = avjax.grid(avjax.Ablate("audio", "mean", site="z", layers=avjax.each_layer(), heads=avjax.each_head()))
    prepare(omni_model, prompt, grid, Logits([1]))
    assert asked == []
    avjax.sweep(omni_model, prompt, grid, Logits([1]), progress=False)
    assert asked == [(prompt, ["z"])]


@pytest.mark.exhaustive
def test_every_sample_has_its_own_source_and_few_are_held(omni_model: avjax.Model, pool, asked):
    """A sweep over samples gives what each sample gives alone; of the clean runs it keeps two."""
    prompts = {f"s{i}": dataclasses.replace(pool(40).prompt) for i in range(5)}
    sources = {name: pool(40).run.prompt for name in prompts}
    sources |= {f"s{i}": pool(40).prompt for i in (1, 3)}
    edits = [avjax.Patch("audio", sources, site="resid_post", layers=[2]), avjax.Ablate("video", "noise", site="value")]
    metric = Logits(range(omni_model.config.decoder.vocab_size))
    planned = prepare(omni_model, prompts, edits, metric)
    assert asked == []
    for session in planned.sessions.values():
        jax.block_until_ready(session.sources)
        assert len(planned.clean_runs.held) <= clean_runs.KEPT
    together = avjax.sweep(omni_model, prompts, edits, metric, progress=False)
    for name, prompt in prompts.items():
        alone = [avjax.Patch("audio", sources[name], site="resid_post", layers=[2]), edits[1]]
        compare(avjax.sweep(omni_model, {name: prompt}, alone, metric, progress=False), together.sel(sample=[name]))
    differ = abs(together["logits"].sel(sample="s0") - together["logits"].sel(sample="s1")).max("token")
    assert differ[0] > 1e-3 and differ[1] == 0


def test_noise_differs_between_prompts_and_places(omni_model: avjax.Model):
    """And is the same for one seed, prompt and place, so that a run can be repeated."""

    def noise(prompt: avjax.Prompt, where: str, site: str, seed: int = 0) -> np.ndarray:
        edit = avjax.Ablate(where, "noise", site=site, seed=seed)
        session = next(iter(prepare(omni_model, prompt, edit, Logits([1])).sessions.values()))
        drawn = np.asarray(next(iter(session.sources.values())).dense)[:, 0]
        return drawn[drawn != 0][:64]

    one, other = (made_prompt(omni_model, 40, seed) for seed in (0, 1))
    first = noise(one, "[5:9]", "mlp_out")
    np.testing.assert_array_equal(first, noise(made_prompt(omni_model, 40, 0), "[5:9]", "mlp_out"))
    for different in (
        noise(other, "[5:9]", "mlp_out"),
        noise(one, "[5:9]", "attn_out"),
        noise(one, "[5:9]", "mlp_out", seed=1),
    ):
        assert abs(np.corrcoef(first, different)[0, 1]) < 0.6


@pytest.mark.exhaustive
def test_one_pass_finds_all_sites_of_a_prompt(omni_model: avjax.Model, pool, asked):
    prompt, source = pool(40).prompt, pool(40).run.prompt
    edits = [avjax.Ablate("audio", "mean", site=s) for s in ("z", "value", "mlp_out", "resid_mid")]
    edits += [avjax.Patch("video", source, site=s) for s in ("resid_pre", "attn_out")]
    asks = [Logits([1]), LogLikelihood((3, 4))]
    avjax.sweep(omni_model, prompt, edits, asks, progress=False)
    assert sorted(len(sites) for _, sites in asked) == [2, 4]
    assert avjax.plan(omni_model, prompt, edits, asks, calibrate=False).forwards == 1 + 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("executor", ["replay", "reference"])
def test_activations_beyond_float32_are_refused(omni_model: avjax.Model, pool, executor: str):
    """Where a norm would overflow, a read-out is no number that means anything; the cell is named."""
    prompt = pool(40).prompt
    huge = avjax.Scale("all", 1e15, site="resid_pre", layers=[0])
    fine = avjax.sweep(omni_model, prompt, huge, Logits([1, 2]), executor=executor, progress=False)
    assert np.isfinite(fine["logits"]).all() and not np.allclose(fine["logits"], fine["logits_clean"])
    twice = [["last->audio"], [huge, avjax.Scale("all", 1e10, site="resid_pre", layers=[1])]]
    with pytest.raises(OverflowError, match=r"\*1e\+15 at resid_pre@0.*activations reach"):
        avjax.sweep(omni_model, prompt, twice, Logits([1]), executor=executor, progress=False)
    with pytest.raises(OverflowError, match="activations reach"):
        avjax.generate_variants(omni_model, prompt, twice, max_new_tokens=3, executor=executor)
    late = [
        [avjax.Scale("generated", 1e15, site="resid_pre", layers=[0]), avjax.Scale("generated", 1e10, site="embed")]
    ]
    with pytest.raises(OverflowError, match="activations reach"):
        avjax.generate_variants(omni_model, prompt, late, max_new_tokens=3, executor=executor)


@pytest.mark.exhaustive
def test_factors_that_compose_beyond_float32_are_refused(omni_model: avjax.Model, pool):
    def scaled(factor: float, count: int, keys: str = "all") -> list[Any]:
        return [avjax.ScaleAttention(query="last", key=keys, factor=factor)] * count

    prompt, metric = pool(40).prompt, Logits(range(omni_model.config.decoder.vocab_size))
    for factor, most in ((1e-6, 5), (1e6, 5)):  # a common factor cancels
        for executor in ("replay", "reference"):
            got = avjax.sweep(omni_model, prompt, [scaled(factor, most)], metric, executor=executor, progress=False)
            np.testing.assert_allclose(got["logits"].values[0], got["logits_clean"].values, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="product on an edge"):
            avjax.sweep(omni_model, prompt, [scaled(factor, 6)], metric, progress=False)
    apart = [*scaled(1e6, 4, "audio"), *scaled(1e6, 4, "video")]  # on no edge together
    avjax.sweep(omni_model, prompt, [apart], metric, progress=False)


def test_what_cannot_be_refuses_before_anything_runs(omni_model: avjax.Model, pool, asked):
    prompt = pool(40).prompt
    short = omni_model.prompt("nothing to hear")
    metric = Logits([1])
    wrong = {"cannot be aligned": avjax.Patch("audio", short), "at least 2 tokens": avjax.Ablate("last", "resample")}
    for message, edit in wrong.items():
        with count_compilations() as seen, pytest.raises(ValueError, match=message):
            avjax.sweep(omni_model, prompt, [avjax.Ablate("audio", "mean"), edit], metric, progress=False)
        assert seen == [] and asked == []


@pytest.mark.exhaustive
def test_a_grid_is_traced_once(omni_model: avjax.Model, pool, monkeypatch: pytest.MonkeyPatch):
    """Every layer, head and key of a grid in several batches, from different first layers: one trace."""
    traced = chex.assert_max_traces(sessions.replay.__wrapped__, n=1)
    static = ("num_variants", "num_rows", "keep_cache", "compat")
    monkeypatch.setattr(sessions, "replay", jax.jit(traced, static_argnames=static))
    key = avjax.axis("key", ["audio", "video", "text"])
    grid = avjax.grid(avjax.Knockout(query="last", key=key, layers=avjax.each_layer(), heads=avjax.each_head()))
    planned = prepare(omni_model, pool(40).prompt, grid, Logits([1]))
    assert len({b.start_layer for session in planned.sessions.values() for b in session.planned}) > 1
    found = avjax.sweep(omni_model, pool(40).prompt, grid, Logits([1]), progress=False)
    assert found["logits"].shape == (3, L, N, 1, 1)


def test_the_clean_variant_is_the_clean_run(omni_model: avjax.Model, pool):
    """Also of `avjax.run`, whose program is another: to rounding."""
    prompt, metric = pool(40).prompt, Logits(range(omni_model.config.decoder.vocab_size))
    alone = avjax.sweep(omni_model, prompt, [[]], metric, progress=False)
    among = avjax.sweep(omni_model, prompt, [[], *LAST], metric, progress=False)
    run = avjax.run(omni_model, prompt).logits
    for found in (alone["logits"][0], alone["logits_clean"], among["logits"][0], among["logits_clean"]):
        assert relative(found, run) <= 1e-6


def test_a_variant_without_edits_is_the_clean_run_to_the_bit(omni_model: avjax.Model, pool):
    prompt, metric = pool(40).prompt, Logits(range(omni_model.config.decoder.vocab_size))
    for variants in ([[]], [LAST[0], [], *LAST[1:]]):
        found = avjax.sweep(omni_model, prompt, variants, metric, progress=False)
        np.testing.assert_array_equal(found["logits"].values[int(len(variants) > 1)], found["logits_clean"].values)
