"""Specifications: the same run from Python, YAML and JSON; and what is refused, by key, value and expectation."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import yaml

import avjax
from avjax.edits.edits import Edit
from avjax.edits.grids import Grid, as_cells
from avjax.families.registry import read_config
from avjax.metrics import LogitDiff, LogProb
from avjax.runs.prepare import prepare_run
from avjax.runs.reading import read
from avjax.runs.spec.spec import Spec
from avjax.runs.store import Store
from tests.hub_configs import HUB_OMNI


def changed(given: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(given)
    *parents, last = (int(step) if step.isdigit() else step for step in key.split("."))
    place: Any = made
    for step in parents:
        place = place[step]
    place[last] = value
    return made


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("promt", "x", "promt: expected no such key, got 'x'"),
        ("dtype", "f32", "dtype: expected 'float32' or 'bfloat16', got 'f32'"),
        ("block_cells", 0, "block_cells: expected greater than or equal to 1, got 0"),
        ("allow_noop", "yes", "allow_noop: expected a valid boolean, got 'yes'"),
        ("grid.layers.width", "8", "grid.layers.width: expected a valid integer, got '8'"),
        ("grid.layers.widht", 8, "grid.layers.widht: expected no such key, got 8"),
        ("grid.layers", 3.5, "grid.layers: expected 12, [0, 3], '18:36' (0-based, end exclusive) or 'each'"),
        ("grid.edit", "knokout", "grid: expected 'edit' among 'knockout', 'scale_attention'"),
        ("grid.key", {"axis": []}, "grid.key.axis: List should have at least 1 item after validation, not 0, got []"),
        ("grid.heads", {"axis": [0], "width": 2}, "grid.heads.width: expected no such key, got 2"),
        ("grid.key", "vidio", "grid.key: selector 'vidio': unknown token type 'vidio'; expected names (text, audio,"),
        ("grid.query", "audio[2s", "grid.query: selector 'audio[2s': cannot read '[2s'"),
        ("mesh", {"data": 0}, "mesh: expected sizes of at least 1, with at most one -1 for all remaining devices, got"),
        ("mesh", {"data": -1, "model": -1}, "mesh: expected sizes of at least 1, with at most one -1"),
        ("metrics", [], "metrics: List should have at least 1 item"),
        ("metrics.0.metric", "logprob", "metrics.0: expected 'metric' among 'log_prob', 'prob'"),
        ("metrics.0.c", "x", "metrics.0.c: expected no such key, got 'x'"),
        ("metrics.0.a", 1.5, "metrics.0.a: expected text, which may hold {labels} of a clip, or token ids, got 1.5"),
        ("clips", [], "clips: expected at least one clip, got none"),
        ("clips", [{"vidoe": "x.mp4"}], "clips.0.vidoe: expected no such key, got 'x.mp4'"),
        ("clips", [{"labels": {"a": "b"}}], "clips.0: expected video, audio or image, got none (labels: a)"),
        ("promt", "x", "promt: expected no such key, got 'x'; did you mean 'prompt'?"),
        ("grid.qurey", "x", "grid.qurey: expected no such key, got 'x'; did you mean 'query'?"),
        ("grid.layers.placment", "x", "grid.layers.placment: expected no such key, got 'x'; did you mean 'placement'?"),
        ("grid.layers.placement", "center", "grid.layers.placement: expected 'trailing', 'leading' or 'centred', got"),
        ("grid.key.lables", ["a"], "grid.key.lables: expected no such key, got ['a']; did you mean 'labels'?"),
        ("grid", 3, "grid: expected keys and values, such as {edit: knockout, query: answer, key: video}, got 3"),
        (
            "grid",
            {"edt": "knockout"},
            "grid: expected a key 'edit', got {'edt': 'knockout'}; did you mean 'edit' instead of 'edt'?",
        ),
        (
            "metrics",
            "log_prob",
            "metrics: expected a list, such as [{metric: log_prob, answer: siren}], got 'log_prob'",
        ),
        ("metrics", {"metric": "kl"}, "metrics: expected a list, such as [{metric: log_prob, answer: siren}], got {"),
        ("metrics", ["log_prob"], "metrics.0: expected keys and values, such as {metric: log_prob, answer: siren}"),
        ("metrics", [{"metric": "Prob", "answer": "x"}], "metrics.0: expected 'metric' among 'log_prob', 'prob',"),
        ("metrics", [{"metric": "kl", "direction": "foward"}], "metrics.0.direction: expected 'forward' or 'reverse'"),
        (
            "metrics",
            [{"metric": "kl", "dirction": "forward"}],
            "metrics.0.dirction: expected no such key, got 'forward'",
        ),
        ("media", {"fsp": 2}, "media.fsp: expected no such key, got 2; did you mean 'fps'?"),
        ("capture", {"sites": ["resid_pots"]}, "capture.sites.0: expected 'resid_pre', 'resid_mid', 'resid_post'"),
        ("mesh", {"varient": 2}, "mesh.varient: expected no such key, got 2; did you mean 'variant'?"),
        ("executor", "replya", "executor: expected 'replay' or 'reference', got 'replya'; did you mean 'replay'?"),
        ("dtype", "bf16", "dtype: expected 'float32' or 'bfloat16', got 'bf16'; did you mean 'bfloat16'?"),
        ("clips", ["a.mp4"], "clips.0: expected keys and values, such as {video: clip.mp4}, got 'a.mp4'"),
        ("clips", [{"vidoe": "x.mp4"}], "clips.0.vidoe: expected no such key, got 'x.mp4'; did you mean 'video'?"),
        ("clips", [{"video": "a/x.mp4"}, {"video": "b/x.mp4"}], "clips: expected each clip once, got 'x' twice"),
    ],
)
def test_mistakes_are_named(key: str, value: Any, message: str, given: dict[str, Any]):
    with pytest.raises(ValueError, match=f"^spec: not a specification of a run:\n  {re.escape(message)}[^\n]*$"):
        Spec.of(changed(given, key, value))


@pytest.mark.parametrize(
    ("key", "value", "spelling"),
    [
        ("metrics.0.metric", "logitdiff", "logit_diff"),
        ("metrics", [{"metric": "kl", "direction": "foward"}], "forward"),
        ("metrics", [{"metric": "kl", "dirction": "forward"}], "direction"),
        ("metrics", [{"metric": "log_likelihood", "text": "x", "means": True}], "mean"),
        ("metrics", [{"metric": "attention_mass", "key": "vidio"}], "video"),
        ("grid.edit", "knokout", "knockout"),
        ("grid.query", "answr", "answer"),
        ("grid", {"edit": "ablate", "where": "audio", "mode": "zeros"}, "zero"),
        ("grid", {"edit": "scale", "where": "audio", "factor": 2, "site": "attn-in"}, "attn_in"),
        ("grid.layers.placement", "center", "centred"),
        ("capture", {"sites": ["resid_pots"]}, "resid_post"),
        ("order", "text_first", "text-first"),
        ("compat", "publishd", "published"),
    ],
)
def test_the_nearest_right_spelling(key: str, value: Any, spelling: str, given: dict[str, Any]):
    with pytest.raises(ValueError, match=re.escape(f"did you mean '{spelling}'?")):
        Spec.of(changed(given, key, value))


@pytest.mark.exhaustive
def test_windows_wider_than_the_model_are_refused(given: dict[str, Any]):
    for key, value in (("grid.layers.width", 40), ("grid.layers.stride", 9)):
        with pytest.raises(
            ValueError, match=rf"within 1 to 8, the layers of this model, got {value}; take 8, or leave"
        ):
            prepare_run(Spec.of(changed(given, key, value)))
    prepare_run(Spec.of(changed(given, "grid.layers.width", 8)))


def test_all_mistakes_are_named_together(given: dict[str, Any]):
    wrong = changed(changed(given, "promt", "x"), "grid.layers.width", 0)
    del wrong["model"]
    with pytest.raises(ValueError, match="not a specification") as error:
        Spec.of(wrong)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["model", "grid.layers.width", "promt"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("grid.layers", "18-36", "grid.0: expected layers such as 12, 18:36 or 0,3 .*; did you mean '18:36'"),
        ("grid", ["answer->audio@0:2", "answer-video"], "grid.1: rule 'answer-video': expected"),
        ("grid.query", {"axis": ["answer", "last"], "name": "key"}, "the axis 'key' is used twice"),
        ("grid.key", {"axis": ["audio", "video"], "labels": ["a"]}, "grid.0: axis 'key': expected 2 different labels"),
        ("grid", {"edit": "scale", "where": "audio", "factor": 2, "site": "pattern"}, "grid.0: Scale: the site"),
        ("grid", {"edit": "steer", "where": "audio", "vector": "no.npy"}, r"grid.0: .*no\.npy"),
    ],
)
def test_edits_that_cannot_be_are_named(key: str, value: Any, message: str, given: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        Spec.of(changed(given, key, value))


def edits_of(grid: Any, given: dict[str, Any], model: avjax.Model, directory: Path = Path()) -> list[list[Edit]]:
    made = Spec.of({**given, "grid": grid}, directory).build_grid()
    return [list(cell.edits) for cell in as_cells(made, model.config.decoder).cells]


def test_edits_are_those_of_python(given: dict[str, Any], omni_model: avjax.Model, tmp_path: Path):
    vector = np.arange(omni_model.config.decoder.embed_dim, dtype=np.float32)
    np.save(tmp_path / "v.npy", vector)
    pairs: list[tuple[Any, Grid]] = [
        ("answer->audio@1#h0", avjax.grid("answer->audio@1#h0")),
        (
            ["answer->audio", {"edit": "scale", "where": "video", "factor": {"axis": [0, 2]}, "site": "embed"}],
            avjax.grid("answer->audio", avjax.Scale("video", factor=avjax.axis("factor", [0, 2]))),
        ),
        (
            {"edit": "scale_attention", "query": "answer", "key": "audio", "factor": 2, "layers": "0:2", "heads": [1]},
            avjax.grid(avjax.ScaleAttention(query="answer", key="audio", factor=2, layers=range(2), heads=[1])),
        ),
        (
            {"edit": "knockout", "query": "answer", "key": "audio", "layers": {"axis": ["0:2", 2, [0, 2]]}},
            avjax.grid(
                avjax.Knockout(
                    query="answer", key="audio", layers=avjax.axis("layers", [(0, 1), (2,), (0, 2)], ["a", "b", "c"])
                )
            ),
        ),
        (
            {"edit": "knockout", "query": "answer", "key": "audio", "layers": "each", "heads": "each"},
            avjax.grid(avjax.Knockout(query="answer", key="audio", layers=avjax.each_layer(), heads=avjax.each_head())),
        ),
        (
            {"edit": "ablate", "where": "audio", "mode": {"axis": ["zero", "mean"]}, "site": "z", "layers": 1},
            avjax.grid(avjax.Ablate("audio", avjax.axis("mode", ["zero", "mean"]), layers=[1], seed=7)),
        ),
        (
            {"edit": "ablate", "where": "audio", "mode": "noise", "seed": 3, "noise": 1},
            avjax.grid(avjax.Ablate("audio", "noise", seed=3, noise=1)),
        ),
    ]
    for plain, expected in pairs:
        cells = as_cells(expected, omni_model.config.decoder).cells
        assert edits_of(plain, {**given, "seed": 7}, omni_model) == [list(cell.edits) for cell in cells]
    ((steer,),) = edits_of({"edit": "steer", "where": "last", "vector": "v.npy"}, given, omni_model, tmp_path)
    assert isinstance(steer, avjax.Steer)
    np.testing.assert_array_equal(steer.vector, vector)
    ((patch,),) = edits_of({"edit": "patch", "where": "last", "layers": 1}, given, omni_model)
    assert isinstance(patch, avjax.Patch) and patch.source == "mean"


def test_files_that_are_no_vector(given: dict[str, Any], omni_model: avjax.Model, tmp_path: Path):
    np.savez(tmp_path / "v.npz", a=np.zeros(3))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "words.npy").write_text("no array")
    for name in ("v.npz", "empty.npy", "words.npy"):
        with pytest.raises(ValueError, match=rf"grid\.0: vector: expected .*got {name}"):
            edits_of({"edit": "steer", "where": "last", "vector": name}, given, omni_model, tmp_path)


def test_yaml_json_and_python_are_one_run(spec: Path, given: dict[str, Any], tmp_path: Path):
    read_yaml = Spec.read(spec)
    as_json = tmp_path / "spec.json"
    as_json.write_text(json.dumps(yaml.safe_load(spec.read_text())))
    assert Spec.read(as_json) == read_yaml
    runs = [prepare_run(one).run for one in (read_yaml, Spec.read(as_json), Spec.of(given))]
    assert len({run.digest for run in runs}) == 1
    assert (
        [b.name for b in runs[0].blocks()] == [b.name for b in runs[1].blocks()] == [b.name for b in runs[2].blocks()]
    )


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("answer->vidio@4:8", "grid.0: selector 'vidio': unknown token type"),
        ({"edit": "knockout", "query": "answer", "key": {"axis": ["audio", "vidio"]}}, "grid.0: selector 'vidio'"),
        (["answer->audio", {"edit": "patch", "where": {"axis": ["audio[5:2]"]}}], "grid.1: selector 'audio[5:2]'"),
    ],
)
def test_selectors_are_read_before_any_clip(grid: Any, message: str, given: dict[str, Any]):
    with pytest.raises(ValueError, match=re.escape(message)):
        Spec.of({**given, "grid": grid})


def test_selectors_that_only_a_prompt_can_refuse_are_taken(given: dict[str, Any]):
    for key in ("video[2s:4s] - special", "[400, 500:900]", "audio[f3:f9] | last", [7, 1000], "query_text"):
        made = Spec.of({**given, "grid": {"edit": "knockout", "query": "answer", "key": key}})
        (cell,) = as_cells(made.build_grid(), read_config(HUB_OMNI).decoder).cells
        assert cell.edits[0].key == (tuple(key) if isinstance(key, list) else key)


def test_overrides(spec: Path):
    made = Spec.read(spec, ["grid.layers.width=2", "metrics.0.a=siren", "media.fps=1", "dtype=bfloat16"])
    assert made.grid.layers.width == 2 and made.metrics[0].a == "siren"  # pyright: ignore[reportAttributeAccessIssue]
    assert made.media.fps == 1 and made.dtype == "bfloat16"
    for override, message in (
        ("grid.layers", "expected KEY=VALUE"),
        ("grid.layers.width.x=1", "expected a key that the specification has, got 'x'"),
        ("metrics.7.a=x", "got '7'"),
        ("grid.layers.widht=2", "grid.layers.widht: expected no such key"),
    ):
        with pytest.raises(ValueError, match=message):
            Spec.read(spec, [override])


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just words"])
def test_files_that_are_no_specification(text: str, tmp_path: Path):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"spec\.yaml: expected"):
        Spec.read(tmp_path / "spec.yaml")


def test_tables_of_clips(clips: Path, given: dict[str, Any], tmp_path: Path):
    expected = Spec.of(given).all_clips()
    assert [clip.sample for clip in expected] == ["clip-0", "clip-1", "clip-2"]
    assert expected[0].labels.keys() == {"sound", "suggested"}
    rows = [{"video": clip.video, **clip.labels} for clip in expected]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.json", "t.jsonl", "t.parquet"):
        assert Spec.of({**given, "clips": name}, tmp_path).all_clips() == expected
    (tmp_path / "t.csv").write_text("vidoe,sound\nx.mp4,siren\n")
    (tmp_path / "twice.csv").write_text("video,sound,sound\nx.mp4,siren,rain\n")
    for name, message in (
        (
            "t.csv",
            r"t\.csv: not a spec.*\n  clips\.0: expected video, audio or image, got none \(labels: vidoe, sound\); "
            r"did you mean 'video'\?",
        ),
        ("twice.csv", r"twice\.csv: expected columns of different names, got 'sound' twice; rename one"),
        ("t.xlsx", "expected a table, but there is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            Spec.of({**given, "clips": name}, tmp_path).all_clips()


def test_what_is_missing_is_named_before_anything_runs(given: dict[str, Any], clips: Path, tmp_path: Path):
    files = [{"video": str(clips / "clip-0.mp4"), "labels": {"sound": "siren", "suggested": "rain"}}]
    gone = [{"video": f"gone-{i}.mp4", "audio": "gone.wav"} for i in range(2)]
    missing = r"expected files in .*, but these are missing:\n  gone-0: gone-0.mp4\n  gone-0: gone.wav"
    with pytest.raises(ValueError, match=missing):
        prepare_run(Spec.of({**given, "clips": files + gone}, tmp_path))
    del files[0]["labels"]["sound"]  # pyright: ignore[reportIndexIssue]
    unknown = r"clip 'clip-0': LogitDiff.a: expected \{labels\} that the clip has .*'suggested'.* got '\{sound\}'"
    with pytest.raises(ValueError, match=unknown):
        prepare_run(Spec.of({**given, "clips": files}, tmp_path))


def test_edits_that_do_not_fit_the_model_are_refused_at_once(given: dict[str, Any]):
    for key in ("layers", "heads"):
        grid = {"edit": "knockout", "query": "answer", "key": "audio", key: "90:99"}
        with pytest.raises(ValueError, match=f"expected {key} within 0:8"):
            prepare_run(Spec.of({**given, "grid": grid}))


def test_a_run_is_the_sweep_of_each_clip(given: dict[str, Any], clips: Path, tmp_path: Path):
    metrics = [*given["metrics"], {"metric": "log_prob", "answer": "{sound}", "name": "true_sound"}]
    made = Spec.of({**given, "metrics": metrics})
    prepared, store = prepare_run(made), Store(tmp_path / "run")
    outcome = prepared.execute(store)
    found = read(store)
    assert outcome.computed == 3 * 17 and not outcome.failed and not outcome.stopped and "done" not in found
    for clip in made.all_clips():
        prompt = prepared.model.prompt(given["prompt"], video=clip.video, audio="from_video", opening="I hear")
        sound, suggested = (str(clip.labels[name]) for name in ("sound", "suggested"))
        metrics = [LogitDiff(sound, suggested), LogProb(sound, name="true_sound")]
        alone = avjax.sweep(prepared.model, {clip.sample: prompt}, made.build_grid(), metrics)
        xr.testing.assert_allclose(found.sel(sample=[clip.sample]), alone, rtol=1e-4, atol=1e-4)
    assert prepared.execute(store).computed == 0


def test_a_clip_that_cannot_be_decoded_is_reported(given: dict[str, Any], clips: Path, tmp_path: Path):
    rows = [{"video": clip.video, "labels": clip.labels} for clip in Spec.of(given).all_clips()]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    rows.insert(1, {"video": str(broken), "labels": rows[0]["labels"]})
    made, store = Spec.of({**given, "clips": rows}), Store(tmp_path / "run")
    outcome = prepare_run(made).execute(store)
    assert list(outcome.failed) == ["broken"] and outcome.computed == 3 * 17
    (failure,) = store.failures().values()
    assert failure["sample"] == "broken" and "expected a picture, a video or a sound, got text" in failure["reason"]
    found = read(store)
    assert np.isnan(found.logit_diff.sel(sample="broken")).all()
    assert found.done.sum("sample").values.tolist() == [[3] * 8] * 2

    broken.write_bytes((clips / "clip-2.mp4").read_bytes())  # mended: another digest, and no cells were kept of it
    outcome = prepare_run(made).execute(store)
    assert outcome.computed == 17 and not outcome.failed and store.failures() == {}
    assert "done" not in read(store)


def test_the_readme_s_example_is_a_specification():
    (text,) = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    assert Spec.of(yaml.safe_load(text)).store == "run"


def test_the_schema_describes_what_is_accepted(given: dict[str, Any]):
    schema = Spec.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"model", "prompt", "clips", "grid", "metrics"} <= given.keys()
    assert {"Knockout", "Ablate", "LogitDiff", "Caption", "Windows"} <= schema["$defs"].keys()


def test_json_is_read_as_json_and_numbers_as_in_yaml_1_2(given: dict[str, Any], tmp_path: Path):
    scaled = {**given, "prompt": "hi \U0001f600", "grid": {"edit": "scale", "where": "video", "factor": 1e-05}}
    (tmp_path / "spec.json").write_text(json.dumps(scaled, indent="\t"))
    assert "\\ud83d" in (tmp_path / "spec.json").read_text() and "1e-05" in (tmp_path / "spec.json").read_text()
    assert Spec.read(tmp_path / "spec.json") == Spec.of(scaled, tmp_path)
    (tmp_path / "twice.json").write_text('{"model": "a", "model": "b"}')
    with pytest.raises(ValueError, match="the key 'model' twice"):
        Spec.read(tmp_path / "twice.json")
    text = yaml.safe_dump({**scaled, "grid": None})
    text = text.replace("grid: null", "grid: {edit: scale, where: video, factor: 1e-05}")
    (tmp_path / "spec.yaml").write_text(text)
    assert Spec.read(tmp_path / "spec.yaml") == Spec.of(scaled, tmp_path)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([{"metric": "kl"}, {"metric": "kl"}], "metrics: 'kl' occurs twice"),
        ([{"metric": "log_prob", "answer": [99999999]}], "expected token ids within 0:"),
    ],
)
def test_metrics_are_checked_before_any_clip_is_decoded(metrics: Any, message: str, given: dict[str, Any]):
    with pytest.raises(ValueError, match=message):
        prepare_run(Spec.of({**given, "metrics": metrics}))
