"""`avjax.sweep` with a store: the same dataset, from any number of stops, processes and shares."""

import dataclasses
import itertools
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import avjax
from avjax.devices.processes import Team
from avjax.edits.edits import Edit
from avjax.edits.grids import as_cells
from avjax.engine.clean_pass import clean_pass, shared_keys
from avjax.engine.replay import replay
from avjax.engine.session import Session
from avjax.metrics import KL, AttentionMass, Caption, LogProb, Metric, TopK, View
from avjax.models.buckets import bucket
from avjax.prompts.prompt import Prompt
from avjax.prompts.selectors import KINDS
from avjax.runs import execute as executing
from avjax.runs import sweep as sweeping
from avjax.runs.begin import begin
from avjax.runs.execute import execute
from avjax.runs.export import export, merge
from avjax.runs.identity import edits_digest, metric_json, model_identity
from avjax.runs.reading import read, summary, unusable
from avjax.runs.run import Sample, StoredRun
from avjax.runs.store import Store
from tests.engine.test_knockout_compiles import prompt_of

GRID = avjax.grid(
    avjax.Knockout(query="answer", key=avjax.axis("key", ["text", "special"]), layers=avjax.windows(1, name="depth"))
)
METRICS = [LogProb((5,)), TopK(2), AttentionMass("text"), KL(), Caption(3)]


@pytest.fixture(scope="module")
def prompts(omni_model: avjax.Model) -> dict[str, Prompt]:
    return {name: omni_model.prompt(f"Say what {name} is.") for name in ("b", "a", "c")}


@pytest.fixture(scope="module")
def plain(omni_model: avjax.Model, prompts: dict[str, Prompt]) -> xr.Dataset:
    return avjax.sweep(omni_model, prompts, GRID, METRICS)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three cells."""
    monkeypatch.setattr(sweeping, "CELLS_PER_BLOCK", 3)


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_it_is_the_same_dataset(omni_model: avjax.Model, prompts: dict[str, Prompt], plain: xr.Dataset, tmp_path: Path):
    found = avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")
    xr.testing.assert_identical(found, plain)
    for name in plain.variables:
        assert found[name].dtype == plain[name].dtype, name


@pytest.mark.exhaustive
def test_small_blocks_give_the_same_to_rounding(
    small_blocks: None, omni_model: avjax.Model, prompts: dict[str, Prompt], plain: xr.Dataset, tmp_path: Path
):
    found = avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")
    assert len(list((tmp_path / "run" / "cells").iterdir())) > len(prompts)
    xr.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.exhaustive
def test_only_what_is_missing_is_computed(
    small_blocks: None,
    omni_model: avjax.Model,
    prompts: dict[str, Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    store = tmp_path / "run"
    first = avjax.sweep(omni_model, prompts, GRID, METRICS, store=store)
    before = contents(store)
    calls: list[Any] = []
    compute = executing._computed
    monkeypatch.setattr(executing, "_computed", lambda *given: calls.append(given) or compute(*given))
    xr.testing.assert_identical(avjax.sweep(omni_model, prompts, GRID, METRICS, store=store), first)
    assert calls == [] and contents(store) == before

    gone = sorted(before)[1]
    (store / gone).unlink()
    xr.testing.assert_identical(avjax.sweep(omni_model, prompts, GRID, METRICS, store=store), first)
    assert len(calls) == 1 and contents(store) == before, "to the bit"


def test_samples_of_one_content_are_two(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    twice = {"one": prompts["a"], "other": prompts["a"]}
    found = avjax.sweep(omni_model, twice, GRID, METRICS, store=tmp_path / "run")
    xr.testing.assert_identical(found, avjax.sweep(omni_model, twice, GRID, METRICS))


def test_what_selectors_read_decides_too(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    opened = prompts["a"].continued(omni_model.encode_text("I hear"))
    as_text = dataclasses.replace(opened, kinds=np.where(opened.kinds == KINDS.index("generated"), 0, opened.kinds))
    assert opened.fingerprint == as_text.fingerprint
    avjax.sweep(omni_model, {"a": opened}, "last->text", KL(), store=tmp_path / "run")
    with pytest.raises(ValueError, match="differs in the clip or words of 'a'"):
        avjax.sweep(omni_model, {"a": as_text}, "last->text", KL(), store=tmp_path / "run")


@pytest.mark.exhaustive
def test_changed_parameters_are_another_model(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    avjax.sweep(omni_model, prompts, GRID, KL(), store=tmp_path / "run")
    halved = dataclasses.replace(omni_model, network=jax.tree.map(lambda leaf: leaf / 2, omni_model.network))
    with pytest.raises(ValueError, match="differs in parameters"):
        avjax.sweep(halved, prompts, GRID, KL(), store=tmp_path / "run")


def test_labels_and_names_of_several_types(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    factor = avjax.axis("factor", [2, 0.5], ["twice", 1])
    grid = avjax.grid(avjax.ScaleAttention(query="last", key="text", factor=factor))
    found = avjax.sweep(omni_model, {np.int64(3): prompts["a"]}, grid, KL(), store=tmp_path / "run")
    assert found.factor.values.tolist() == ["twice", "1"] and found.sample.values.tolist() == [3]
    assert set(pd.read_parquet(tmp_path / "run" / "cells").factor.dropna()) == {"twice", "1"}
    with pytest.raises(ValueError, match="expected names that are all text or all numbers"):
        avjax.sweep(omni_model, {1: prompts["a"], "1": prompts["b"]}, GRID, KL(), store=tmp_path / "other")


def test_a_store_without_cells_takes_another_sweep(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    Store(tmp_path / "run").begin({"identity": {"of": "another"}, "samples": {}})
    found = avjax.sweep(omni_model, prompts, GRID, KL(), store=tmp_path / "run")
    assert "done" not in found


def test_stopping_decodes_no_more_clips(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    decoded: list[int] = []

    def sample(i: int) -> Sample:
        return Sample(name=str(i), digest=str(i), prompt=lambda: decoded.append(i) or prompts["a"], metrics=METRICS)

    run = dataclasses.replace(run_of(omni_model, prompts, 100), samples=tuple(map(sample, range(20))))
    store, asked = Store(tmp_path / "run"), itertools.count()
    begin(store, omni_model, run, {})
    outcome = execute(omni_model, run, store, stop=lambda: next(asked) > 1)
    assert outcome.stopped and outcome.computed == 17 and len(decoded) <= 2


def run_of(model: avjax.Model, prompts: dict[str, Prompt], block_cells: int = 3) -> StoredRun:
    samples = tuple(
        Sample(name=name, digest=name, prompt=lambda p=prompt: p, metrics=METRICS) for name, prompt in prompts.items()
    )
    cells = as_cells(GRID, model.config.decoder)
    return StoredRun(digest="run", cells=cells, samples=samples, settings={}, block_cells=block_cells)


def test_shares_make_up_the_whole(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    run = run_of(omni_model, prompts)
    for n in (1, 2, 3, 5, 50):
        shares = [run.blocks((i, n)) for i in range(n)]
        assert [b for share in shares for b in share] == run.blocks()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    store = Store(tmp_path / "run")
    begin(store, omni_model, run, {})
    counts = [execute(omni_model, run, store, shard=(i, 3)).computed for i in range(3)]
    assert sum(counts) == len(prompts) * (len(run.cells.cells) + 1) and min(counts) > 0
    assert "done" not in read(store)


def test_what_is_not_there_yet_is_no_number(
    omni_model: avjax.Model, prompts: dict[str, Prompt], plain: xr.Dataset, tmp_path: Path
):
    run, store = run_of(omni_model, prompts), Store(tmp_path / "run")
    begin(store, omni_model, run, {})
    asked = itertools.count()
    outcome = execute(omni_model, run, store, stop=lambda: next(asked) > 2)
    assert outcome.stopped and outcome.computed == 7  # two blocks of three cells, and the clean one
    found = read(store)
    assert found.done.sel(sample="b").values.ravel().tolist() == [True] * 6 + [False] * 10
    assert not found.done.sel(sample="c").any()
    assert np.isnan(found.log_prob.sel(sample="c")).all() and (found.caption.sel(sample="c") == "").all()
    assert np.isnan(found.log_prob_clean.sel(sample="c")) and (found.edges.sel(sample="c") == -1).all()
    some = {"sample": "b", "key": "text", "depth": slice(0, 5)}
    xr.testing.assert_allclose(found.log_prob.sel(some), plain.log_prob.sel(some), rtol=1e-5)


def test_each_row_has_a_key_of_its_own(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    data = avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")
    rows = pd.read_parquet(tmp_path / "run" / "cells")
    assert len(rows) == rows.cell_key.nunique() == data.log_prob.size + data.sizes["sample"]
    edited = rows[rows.cell_index >= 0].set_index(["sample", "key", "depth"])
    for sample, key, depth in edited.index:
        at = data.sel(sample=sample, key=key, depth=depth)
        row = edited.loc[(sample, key, depth)]
        assert row.log_prob == at.log_prob and row.caption == at.caption and row.edges == at.edges
        assert row.depth_window == at.depth_window and row.cell == at.cell
        np.testing.assert_array_equal(np.stack(list(row.attention_mass)), at.attention_mass)
    clean = rows[rows.cell_index < 0].set_index("sample")
    np.testing.assert_array_equal(clean.log_prob[data.sample.values], data.log_prob_clean)


@dataclasses.dataclass(frozen=True)
class Largest(Metric):
    """Of the user's own."""

    name: str = "largest"

    def __call__(self, view: View):
        return view.logits.max()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metrics": METRICS[:-1]}, r"differs in metrics \(now .*LogProb\(.*, then .*Caption\("),
        ({"metrics": [*METRICS, Largest()]}, r"differs in metrics \(now .*"),
        ({"grid": "answer->text@0:2"}, r"differs in grid \(now 1 cell.*answer->text@0:2, then "),
        ({"executor": "reference"}, r"differs in executor \(now \"reference\", then \"replay\"\)"),
        ({"allow_noop": True}, "differs in allow_noop"),
        ({"prompts": ["b", "a"]}, r"differs in the names of its samples \(now b, a; then b, a, c\)"),
        ({"words": "Tell"}, "differs in the clip or words of 'b'"),
    ],
)
def test_another_sweep_is_refused(
    changed: dict[str, Any], message: str, omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path
):
    store = tmp_path / "run"
    avjax.sweep(omni_model, prompts, GRID, METRICS, store=store)
    before = contents(store)
    given: dict[str, Any] = {"prompts": prompts, "grid": GRID, "metrics": METRICS, **changed}
    if "words" in given:
        given["prompts"] = prompts | {"b": omni_model.prompt(given.pop("words"))}
    if isinstance(given["prompts"], list):
        given["prompts"] = {name: prompts[name] for name in given["prompts"]}
    with pytest.raises(ValueError, match=f"it holds another run, which {message}.*choose another store") as error:
        avjax.sweep(omni_model, store=store, **given)
    assert not re.search(r"[0-9a-f]{16}", str(error.value)), "values and not digests"
    assert contents(store) == before


def test_another_checkpoint_is_refused(
    omni_model: avjax.Model, vl_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path
):
    avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")
    others = {name: vl_model.prompt(f"Say what {name} is.") for name in prompts}
    with pytest.raises(ValueError, match=r"differs in checkpoint \(now"):
        avjax.sweep(vl_model, others, GRID, METRICS, store=tmp_path / "run")


def test_damage_is_never_read(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")
    part = next((tmp_path / "run" / "cells").iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match=re.escape(part.name)):
        avjax.sweep(omni_model, prompts, GRID, METRICS, store=tmp_path / "run")


def test_edits_are_told_apart(omni_model: avjax.Model, prompts: dict[str, Prompt]):
    a, b = prompts["a"], prompts["b"]
    vector = np.arange(4, dtype=np.float32)
    edits: list[Edit] = [
        avjax.Knockout(query="answer", key="text"),
        avjax.Knockout(query="answer", key="text", layers=[0]),
        avjax.Knockout(query="text", key="text"),
        avjax.ScaleAttention(query="answer", key="text", factor=0),
        avjax.Patch("last", source=a),
        avjax.Patch("last", source=b),
        avjax.Patch("last", source="mean"),
        avjax.Steer("last", vector),
        avjax.Steer("last", vector + 1),
        avjax.Steer("last", vector.astype(np.float64)),
        avjax.Ablate("last", "noise"),
        avjax.Ablate("last", "noise", seed=1),
    ]
    assert len({edits_digest([edit]) for edit in edits}) == len(edits)
    assert edits_digest(edits[:2]) != edits_digest(edits[1::-1])
    assert edits_digest([avjax.Patch("last", source=a)]) == edits_digest([avjax.Patch("last", source=a)])
    run = avjax.run(omni_model, a, capture=["resid_post"])
    with pytest.raises(TypeError, match="a patch from a run"):
        edits_digest([avjax.Patch("last", source=run)])


@pytest.mark.exhaustive
def test_edits_by_sample(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    def patch(sources: dict[str, Prompt]) -> avjax.Patch:
        return avjax.Patch("last", source=sources, layers=[1])

    swapped = dict(zip(prompts, [*list(prompts.values())[1:], prompts["b"]], strict=True))
    found = avjax.sweep(omni_model, prompts, patch(swapped), LogProb((5,)), store=tmp_path / "run")
    xr.testing.assert_identical(found, avjax.sweep(omni_model, prompts, patch(swapped), LogProb((5,))))
    with pytest.raises(ValueError, match="differs in grid"):
        avjax.sweep(omni_model, prompts, patch(prompts), LogProb((5,)), store=tmp_path / "run")


def test_axes_do_not_take_the_store_s_names(omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path):
    grid = avjax.grid(avjax.Knockout(query="answer", key=avjax.axis("cell_key", ["text"])))
    with pytest.raises(ValueError, match="the axis name 'cell_key' is also a column of the store"):
        avjax.sweep(omni_model, prompts, grid, KL(), store=tmp_path / "run")


def test_metrics_of_the_user_s_own_carry_their_source():
    @dataclasses.dataclass(frozen=True)
    class Smallest(Metric):
        name: str = "smallest"

        def __call__(self, view: View):
            return view.logits.min()

    assert metric_json(Largest())["source"] != metric_json(Smallest())["source"]
    namespace: dict[str, Any] = {"Metric": Metric, "dataclasses": dataclasses}
    exec("@dataclasses.dataclass(frozen=True)\nclass Hidden(Metric):\n    name: str = 'hidden'", namespace)
    with pytest.raises(TypeError, match="the source of Hidden cannot be read"):
        metric_json(namespace["Hidden"]())


@pytest.mark.exhaustive
def test_programs_are_compiled_once_per_bucket_of_lengths(omni_model: avjax.Model, tmp_path: Path):
    """Whatever the order of the clips: programs of a bucket stay at hand."""
    lengths = {"a": 70, "b": 150, "c": 100, "d": 190, "e": 128}
    assert [bucket(length) for length in lengths.values()] == [128, 192, 128, 192, 128]
    prompts = {name: prompt_of(omni_model, length) for name, length in lengths.items()}
    programs = (clean_pass, shared_keys, replay)
    for program in programs:
        program.clear_cache()
    avjax.sweep(omni_model, prompts, "last->video@3", avjax.metrics.KL(), store=tmp_path / "run", progress=False)
    assert [program._cache_size() for program in programs] == [2, 2, 2]


@pytest.mark.parametrize("block_cells", [1, 2])
def test_equal_edits_under_other_labels_are_cells_of_their_own(
    omni_model: avjax.Model,
    prompts: dict[str, Prompt],
    tmp_path: Path,
    block_cells: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sweeping, "CELLS_PER_BLOCK", block_cells)
    key = avjax.axis("key", ["text"] * 5, list("vwxyz"))
    found = avjax.sweep(
        omni_model, prompts["a"], avjax.Knockout(query="answer", key=key), KL(), store=tmp_path / "run", progress=False
    )
    assert "done" not in found and len(set(found.kl.values.ravel().tolist())) == 1
    assert np.isfinite(found.kl.values).all()


def test_any_value_of_a_parameter_and_every_setting_count(omni_model: avjax.Model):
    before = model_identity(omni_model)
    leaves, tree = jax.tree.flatten(omni_model.network)
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    middle = tuple(size // 2 for size in leaves[largest].shape)
    changed = [leaf if i != largest else leaf.at[middle].add(1e-3) for i, leaf in enumerate(leaves)]
    swapped = [leaf if i != largest else leaf[::-1] for i, leaf in enumerate(leaves)]
    for other in (changed, swapped):
        found = model_identity(dataclasses.replace(omni_model, network=jax.tree.unflatten(tree, other)))
        assert {k for k in found if found[k] != before[k]} == {"parameters"}
    generation = dataclasses.replace(omni_model.host.generation, stop_tokens=(3,))
    host = dataclasses.replace(omni_model.host, generation=generation)
    found = model_identity(dataclasses.replace(omni_model, host=host))
    assert {k for k in found if found[k] != before[k]} == {"settings"}


def test_parts_of_another_run_are_named_and_put_aside(
    omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path
):
    own, other = tmp_path / "own", tmp_path / "other"
    expected = avjax.sweep(omni_model, prompts["a"], GRID, KL(), store=own, progress=False)
    avjax.sweep(omni_model, prompts["b"], GRID, KL(), store=other, progress=False)
    for part in (other / "cells").iterdir():
        shutil.copy(part, own / "cells" / part.name)
    store = Store(own)
    uses = [lambda: read(store), lambda: summary(own), lambda: export(store, tmp_path / "t.csv")]
    for use in (*uses, lambda: merge([store], Store(tmp_path / "all"))):
        with pytest.raises(ValueError, match="expected cells of this run, got another run's"):
            use()
    assert len(store.put_aside(unusable(store))) == 1
    xr.testing.assert_identical(read(store), expected)


def test_ctrl_c_ends_a_sweep_at_once(
    omni_model: avjax.Model, prompts: dict[str, Prompt], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """It comes where the work is done, and not to a thread that waits for it."""
    begun: list[str] = []
    before = executing._computed  # pyright: ignore[reportPrivateUsage]

    def computed(model: Any, run: StoredRun, block: Any, prompt: Prompt, prepared: Any) -> xr.Dataset:
        begun.append(block.name)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return before(model, run, block, prompt, prepared)

    monkeypatch.setattr(executing, "_computed", computed)
    monkeypatch.setattr(sweeping, "CELLS_PER_BLOCK", 3)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            avjax.sweep(omni_model, prompts, GRID, KL(), store=tmp_path / "run", progress=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(begun) == 2


class OneStops(Team):
    """A team in whose other process SIGTERM has come."""

    def all_gather(self, value: int) -> list[int]:
        return [value, executing.STOP]


def test_a_process_that_follows_can_stop_the_run(
    omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(executing, "Team", OneStops)
    monkeypatch.setattr(OneStops, "minimum", lambda self, value: value)
    cells = as_cells(GRID, omni_model.config.decoder)
    samples = (Sample(name="a", digest="a", prompt=lambda: prompts["a"], metrics=(KL(),)),)
    run = StoredRun(digest="run", cells=cells, samples=samples, settings={}, block_cells=3)
    store = Store(tmp_path / "run")
    store.begin({"layout": vars(run.layout)})
    outcome = execute(omni_model, run, store, progress=False)
    assert outcome.stopped and len(store.parts()) == 1


def test_what_is_one_block_is_prepared_once(
    omni_model: avjax.Model, prompts: dict[str, Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The sessions that the early refusal makes are those that are computed."""
    sessions, prepared = [], Session.__init__

    def counted(self: Session, *arguments: Any, **settings: Any) -> None:
        sessions.append(settings.get("dtype"))
        prepared(self, *arguments, **settings)

    monkeypatch.setattr(Session, "__init__", counted)
    asked = (["last->text@0", "last->text@1"], [KL(), Caption(2)])
    stored = avjax.sweep(omni_model, prompts, *asked, store=tmp_path / "run", progress=False)
    assert len(sessions) == 2 * len(prompts), "a pass and a caption of each prompt"
    monkeypatch.undo()
    expected = avjax.sweep(omni_model, prompts, *asked, progress=False)
    xr.testing.assert_equal(stored.drop_vars("cell_key", errors="ignore"), expected)


@pytest.mark.parametrize("block_cells", [2, 1])
def test_sessions_that_no_block_can_use_are_let_go(
    omni_model: avjax.Model,
    prompts: dict[str, Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block_cells: int,
):
    handed: list[Any] = []
    monkeypatch.setattr(sweeping, "CELLS_PER_BLOCK", block_cells)
    monkeypatch.setattr(
        sweeping, "execute", lambda *given, prepared, **more: handed.append(prepared) or execute(*given, **more)
    )
    avjax.sweep(omni_model, prompts["a"], ["last->text@0", "last->text@1"], KL(), store=tmp_path / "run")
    assert [prepared is not None for prepared in handed] == [block_cells == 2]
