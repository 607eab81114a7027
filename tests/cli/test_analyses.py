"""`avjax run ANALYSIS` against the calls of `avjax.analysis` that it stands for, on clips as files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import avjax
from avjax import analysis
from avjax.cli import app
from avjax.metrics import LogitDiff
from avjax.organism import world
from avjax.organism.world import KINDS, PROMPT

COUNT, OPENING = 4, "I hear"


@pytest.fixture(scope="module")
def model() -> avjax.Model:
    return avjax.load("tiny-av")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, world.Clip]]:
    """Clips under conflict, as files."""
    directory = tmp_path_factory.mktemp("clips")
    made = {f"{i}.mp4": world.clip("test", i, "counterfactual") for i in range(COUNT)}
    for name, clip in made.items():
        clip.write(directory / name)
    return {name: (directory / name, clip) for name, clip in made.items()}


@pytest.fixture(scope="module")
def prompts(model, clips) -> dict[str, avjax.Prompt]:
    return {name: model.prompt(PROMPT, video=path, audio="from_video") for name, (path, _) in clips.items()}


@pytest.fixture(scope="module")
def opened(model, prompts) -> dict[str, avjax.Prompt]:
    return {name: prompt.continued(model.encode_text(OPENING)) for name, prompt in prompts.items()}


def words(clips: dict[str, tuple[Path, world.Clip]]) -> tuple[dict[str, str], dict[str, str]]:
    """The sound that is heard, and the one that belongs to the picture, as captions have them."""

    def word(kind: int | None) -> str:
        assert kind is not None
        return f" {KINDS[kind].sound}"

    return {n: word(c.heard) for n, (_, c) in clips.items()}, {n: word(c.seen) for n, (_, c) in clips.items()}


def invoke(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


def given(clips: dict[str, tuple[Path, world.Clip]], *, answers: bool = True, opening: bool = True) -> list[object]:
    """Options for every clip."""
    heard, suggested = words(clips)
    options: list[object] = ["-m", "tiny-av", "-p", PROMPT]
    for name, (path, _) in clips.items():
        options += ["-v", path]
        if answers:
            options += ["--answer", heard[name], "--other", suggested[name]]
    return [*options, *(["--opening", OPENING] if opening else [])]


def check(tmp_path: Path, arguments: list[object], expected: xr.Dataset, *names: str) -> str:
    """The dataset that a command writes has the call's values and units; what it prints is returned."""
    shown = invoke(*arguments, "--out", tmp_path / "found.nc").stdout
    with xr.open_dataset(tmp_path / "found.nc") as found:
        for name in names:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
            assert found[name].dims == expected[name].dims and found[name].attrs["units"]
            assert found[name].size > 1
    return shown


def metrics_of(clips: dict[str, tuple[Path, world.Clip]]) -> dict[str, LogitDiff]:
    heard, suggested = words(clips)
    return {name: LogitDiff(heard[name], suggested[name]) for name in clips}


@pytest.mark.exhaustive
def test_attention(tmp_path, model, clips, prompts):
    expected = analysis.attention_mass(model, prompts, ["audio", "video"], "generated", captions="I hear rain.")
    options = ["--key", "audio", "--key", "video", "--caption", "I hear rain."]
    arguments = ["attention", *given(clips, answers=False, opening=False), *options]
    shown = check(tmp_path, arguments, expected, "mass", "per_key")
    assert f"mean over {COUNT} clips" in shown and "video" in shown


@pytest.mark.exhaustive
def test_lens(tmp_path, model, clips, prompts):
    two = dict(list(clips.items())[:2])
    expected = analysis.logit_lens(
        model, {n: prompts[n] for n in two}, "audio", "resid_mid", norm=False, k=2, answers=[" siren", " rain"]
    )
    options = ["--answer", " siren", "--answer", " rain", "--site", "resid_mid", "--no-norm", "-k", 2]
    arguments = ["lens", *given(two, answers=False, opening=False), *options]
    check(tmp_path, [o if o != "-k" else "--k" for o in arguments], expected, "rank", "log_prob", "entropy")


@pytest.mark.parametrize("kind", ["windows", "heads", "pathways"])
def test_knockout(tmp_path, model, clips, opened, kind: str):
    one = dict(list(clips.items())[:1])
    chosen, by_sample = {n: opened[n] for n in one}, metrics_of(one)
    arguments = ["knockout", *given(one), *([f"--{kind}"] if kind != "windows" else ["--width", 3])]
    if kind == "windows":
        expected = analysis.knockout_windows(model, chosen, by_sample, width=3)
    elif kind == "heads":
        expected = analysis.knockout_heads(model, chosen, by_sample)
    else:
        expected = analysis.edge_sufficiency(model, chosen, by_sample, pathways=("audio", "video", "text"))
    check(tmp_path, arguments, expected, "logit_diff")


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["mute", "blank", "noise:-5", "shift:0.5", "swap:", "swap-video:"])
def test_trace(tmp_path, model, clips, opened, kind: str):
    one, other = dict(list(clips.items())[:1]), clips["3.mp4"][0]
    corrupt = {
        "mute": avjax.MuteAudio(),
        "blank": avjax.BlankVideo(),
        "noise:-5": avjax.NoiseAudio(-5.0),
        "shift:0.5": avjax.ShiftAudio(0.5),
        "swap:": avjax.SwapAudio(str(other)),
        "swap-video:": avjax.SwapVideo(str(other)),
    }[kind]
    opening = model.encode_text(OPENING)
    broken = {
        name: model.prompt(PROMPT, video=path, audio="from_video", corrupt=corrupt).continued(opening)
        for name, (path, _) in one.items()
    }
    expected = analysis.trace(model, {n: opened[n] for n in one}, broken, *words(one), groups=("video", "last"))
    said = kind + str(other) if kind.endswith(":") else kind
    arguments = ["trace", *given(one), "--corrupt", said, "--group", "video", "--group", "last"]
    check(tmp_path, arguments, expected, "ie_clean", "recovery")


@pytest.mark.exhaustive
def test_scale(tmp_path, model, clips, opened):
    expected = analysis.scale_modalities(model, opened, metrics_of(clips), what="value", factors=[0.0, 0.5], width=4)
    arguments = ["scale", *given(clips), "--what", "value", "--factor", 0, "--factor", 0.5, "--width", 4]
    check(tmp_path, arguments, expected, "logit_diff")


@pytest.mark.exhaustive
def test_attribute(tmp_path, model, clips, opened):
    expected = analysis.attribute(model, opened, metrics_of(clips), keys=["video"], top=2)
    shown = check(
        tmp_path, ["attribute", *given(clips), "--key", "video", "--top", 2], expected, "edge_estimate", "exact"
    )
    assert str(expected["candidate"].values[0]) in shown


@pytest.mark.exhaustive
def test_gates(tmp_path, model, clips, opened):
    expected = analysis.learn_gates(model, opened, metrics_of(clips), held_out=0.5, strength=0.1, steps=5)
    arguments = ["gates", *given(clips), "--steps", 5, "--held-out", 0.5]
    assert "cut" in check(tmp_path, arguments, expected, "cut", "held_out")


@pytest.mark.exhaustive
def test_probe(tmp_path, model, clips, prompts):
    copies = {}
    for name, (path, clip) in clips.items():
        copy = tmp_path / f"copy {name}"
        copy.write_bytes(path.read_bytes())
        copies |= {name: (path, clip), copy.name: (copy, clip)}
    labels, types = ["high", "low"] * COUNT, ["a", "b", "c", "a"] * 2
    given_prompts = {n: prompts[n.removeprefix("copy ")] for n in copies}
    features = analysis.probe_features(model, given_prompts, ("z",), pooling="last")
    settings = {"strengths": [0.1], "seeds": (0, 1), "control": types}
    expected = analysis.train_probes(features, labels, **settings).results
    options = [o for label, kind in zip(labels, types, strict=True) for o in ("--label", label, "--control", kind)]
    options += ["--site", "z", "--pooling", "last", "--strength", 0.1, "--seeds", 2, "--save", tmp_path / "probes"]
    arguments = ["probe", *given(copies, answers=False, opening=False), *options]
    shown = check(tmp_path, arguments, expected, "accuracy", "auroc", "selectivity")
    assert "selectivity" in shown
    twice = ["probe", "-m", "tiny-av", "-p", PROMPT, *[o for p in [clips["0.mp4"][0]] * 8 for o in ("-v", p)]]
    same_file = invoke(*twice, *[o for label in labels for o in ("--label", label)], status=2).stderr
    assert "more than 1 groups of clips" in same_file  # one file is never on both sides of a split
    assert analysis.Probes.load(tmp_path / "probes").results["accuracy"].equals(expected["accuracy"])


@pytest.mark.exhaustive
def test_compare(tmp_path, model, clips, prompts):
    base = avjax.load("tiny-vl")
    silent = {name: base.prompt(PROMPT, video=path, audio=None) for name, (path, _) in clips.items()}
    heard, _ = words(clips)
    named = [word.strip() for word in heard.values()]
    expected = analysis.compare_with_base(model, base, prompts, silent, classes={"named": named})
    options = ["--base", "tiny-vl", *[o for word in named for o in ("--word", word)]]
    arguments = ["compare", *given(clips, answers=False, opening=False), *options]
    result = invoke(*arguments, "--json")
    assert "caveat:" in result.stderr
    ranks = json.loads(result.stdout)["data_vars"]["rank"]["data"]
    np.testing.assert_allclose(np.array(ranks, float), expected["rank"])
    assert "share" in check(tmp_path, arguments, expected, "rank", "kl_model_base", "kl_base_model")


@pytest.mark.exhaustive
def test_sinks(tmp_path, model, clips, prompts):
    expected = analysis.find_sinks(model, prompts, 3.0)
    arguments = ["attention", *given(clips, answers=False, opening=False), "--sinks", "--threshold", 3]
    check(tmp_path, arguments, expected, "sink_layers", "mds", "peak")


@pytest.mark.exhaustive
def test_latent_audio_by_a_tuned_lens(tmp_path, model, clips, prompts):
    two, known = dict(list(clips.items())[:2]), clips["3.mp4"][0]
    heard, _ = words(two)
    chosen = {name: prompts[name] for name in two}
    tuned = analysis.train_tuned_lens(model, {"3.mp4": prompts["3.mp4"]}, chosen, "audio[0:20]")
    where = "audio[0:20]"
    expected = analysis.latent_audio_understanding(model, chosen, heard, lens=tuned, where=where)
    options = [o for name in two for o in ("--answer", heard[name])]
    arguments = [
        "lens",
        *given(two, answers=False, opening=False),
        *options,
        "--tuned",
        known,
        "--latent",
        "--where",
        where,
    ]
    shown = check(tmp_path, arguments, expected, "recall", "recall_by_layer")
    assert "kl_after" in shown
    json.loads(invoke(*arguments, "--json").stdout)


@pytest.mark.exhaustive
def test_what_decides(tmp_path, model, clips, opened):
    _, suggested = words(clips)
    expected = analysis.deciding_modality(model, opened, suggested)
    options = ["-m", "tiny-av", "-p", PROMPT, "--opening", OPENING, "--decides"]
    for name, (path, _) in clips.items():
        options += ["-v", path, "--answer", suggested[name]]
    shown = check(tmp_path, ["trace", *options], expected, "lost")
    assert "video" in shown


@pytest.mark.exhaustive
def test_bad_options_are_refused(clips):
    both = ["knockout", *given(clips), "--heads", "--pathways"]
    assert "expected --heads or --pathways, got both" in invoke(*both, status=2).stderr
    few = ["scale", *given(clips, answers=False), "--answer", "a", "--answer", "b"]
    assert f"once for each of {COUNT} videos, got 2 times" in invoke(*few, status=2).stderr
    bare = ["trace", *given(clips), "--corrupt", "noise"]
    assert "expected mute, blank, noise:DECIBELS" in invoke(*bare, status=2).stderr
    unknown = ["trace", *given(clips), "--corrupt", "shake"]
    assert "swap:FILE or swap-video:FILE, got 'shake'" in invoke(*unknown, status=2).stderr


@pytest.mark.exhaustive
def test_json_is_the_dataset(model, clips, opened):
    one = dict(list(clips.items())[:1])
    shown = json.loads(invoke("knockout", *given(one), "--json").stdout)
    expected = analysis.knockout_windows(model, {n: opened[n] for n in one}, metrics_of(one), width=4)
    found = xr.Dataset.from_dict(shown)
    np.testing.assert_allclose(found["logit_diff"], expected["logit_diff"], rtol=1e-5, atol=1e-6)
