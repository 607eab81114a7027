"""The command line, as a user runs it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import avjax
from avjax.cli import app
from avjax.media import decode, isolated
from tests.engine.knockout_oracle import Oracle, Rule
from tests.tiny_hf import TinyCheckpoint

PROMPT = "Describe what you see and hear."
RULES = {
    "generated,video,2,8": Rule("generated", "video", tuple(range(2, 8))),
    "query_text->query_text@0:4#h1,h2": Rule("query_text", "query_text", tuple(range(4)), (1, 2)),
    "answer->audio": Rule("answer", "audio", tuple(range(8))),
}
HEAVY = {"jax", "flax", "numpy", "transformers", "torch", "orbax", "av", "soundfile", "rich.table", "xarray", "plotly"}


def invoke(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


def check_captions(clip: Path, omni: TinyCheckpoint, model: avjax.Model, *, compat: str | None) -> None:
    """`avjax run` on a file from disk against hooks on the torch model, clean and under each rule."""
    rules = [argument for rule in RULES for argument in ("--rule", rule)]
    options = [] if compat is None else ["--compat", compat]
    arguments = ["run", "-m", omni.directory, "--video", clip, "-p", PROMPT, "--max-new-tokens", 20, *rules, *options]
    variants = json.loads(invoke(*arguments, "--json").stdout)["variants"]
    assert len(variants) == 1 + len(RULES)

    oracle = Oracle(omni.torch_model, model.prompt(PROMPT, video=clip, audio="from_video"))
    for variant, edits in zip(variants, [[], *([rule] for rule in RULES.values())], strict=True):
        expected = oracle.generate(edits, 20, zero_rows=compat is None)
        assert variant["tokens"] == expected.tokens.tolist()
        assert variant["text"] == model.decode_text(expected.tokens)
    assert len({tuple(v["tokens"]) for v in variants}) > 1, "the rules must change something"
    assert variants[2]["blocked_queries"] > 0, "one rule must leave a query without a key"


@pytest.mark.exhaustive
@pytest.mark.parametrize("compat", [None, "published"])
def test_captions_equal_torch(clip: Path, omni: TinyCheckpoint, omni_model: avjax.Model, compat: str | None):
    check_captions(clip, omni, omni_model, compat=compat)


def test_captions_equal_torch_on_a_real_clip(real_clips: Path, omni: TinyCheckpoint, omni_model: avjax.Model):
    check_captions(real_clips / "clip.mp4", omni, omni_model, compat="published")


@pytest.mark.exhaustive
def test_run_prints_captions_side_by_side(clip: Path, omni: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = invoke(
        "run", "-m", omni.directory, "--video", clip, "-p", PROMPT, "-r", "generated,video,2,8", "--max-new-tokens", 4
    ).stdout
    header = next(line for line in shown.splitlines() if "clean" in line)
    assert "generated->video@2:8" in header
    assert "edges edited" in shown


@pytest.mark.exhaustive
def test_a_silent_video_is_run_without_sound(real_clips: Path, omni: TinyCheckpoint):
    arguments = ["run", "-m", omni.directory, "-p", PROMPT, "--video", real_clips / "silent.mp4", "--max-new-tokens", 2]
    message = " ".join(invoke(*arguments, "--audio", "from_video", status=2).stderr.split())
    assert "silent.mp4: expected an audio stream, found none; pass --audio none" in message
    for silence in ([], ["--audio", "none"]):
        counts = json.loads(invoke(*arguments, *silence, "--fps", 0.5, "--json").stdout)["tokens"]
        assert counts["video"] > 0
        assert "audio" not in counts


def test_inspect_shows_what_the_model_sees(clip: Path, omni: TinyCheckpoint, omni_model: avjax.Model):
    spans = json.loads(invoke("inspect", clip, "-m", omni.directory, "--json").stdout)["spans"]
    prompt = omni_model.prompt("Describe this.", video=clip, audio="from_video")
    assert [s["start"] for s in spans[1:]] == [s["stop"] for s in spans[:-1]]
    assert spans[-1]["stop"] == len(prompt)
    assert [s["modality"] for s in spans].count("audio") == 2, "4 s of sound are two chunks"
    for span in spans:
        positions = prompt.positions[:, span["start"] : span["stop"]]
        assert span["positions"] == [[int(p.min()), int(p.max())] for p in positions]
    table = invoke("inspect", clip, "-m", omni.directory).stdout
    assert "seconds" in table
    assert f"position {prompt.next_position()}" in table


@pytest.mark.exhaustive
def test_convert_run_and_back(clip: Path, omni: TinyCheckpoint, tmp_path: Path):
    invoke("convert", omni.directory, tmp_path / "orbax")
    arguments = ["--video", clip, "-p", PROMPT, "--max-new-tokens", 6, "--json"]
    ours = json.loads(invoke("run", "-m", tmp_path / "orbax", *arguments).stdout)
    theirs = json.loads(invoke("run", "-m", omni.directory, *arguments).stdout)
    assert ours["variants"] == theirs["variants"]
    invoke("convert", "--to-hf", tmp_path / "orbax", tmp_path / "back")
    weights = (tmp_path / "back" / "model.safetensors").stat().st_size
    assert weights == pytest.approx((omni.directory / "model.safetensors").stat().st_size, rel=0.01)
    assert "already exists" in invoke("convert", omni.directory, tmp_path / "orbax", status=2).stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["omni", "vl"])
def test_verify_prints_its_table(family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    directory = request.getfixturevalue(family).directory
    table = invoke("verify", directory).stdout
    for part in ("vision tower, layer 0", "decoder, layer 7", "logits (video)"):
        assert part in table
    assert ("audio tower, output" in table) == (family == "omni")
    assert "FAILS" not in table
    assert len(re.findall(r"\bok\b", table)) >= 12


@pytest.mark.exhaustive
def test_verify_fails_on_another_checkpoint(omni: TinyCheckpoint, tmp_path: Path):
    from tests.tiny_hf import write_checkpoint

    other = write_checkpoint(tmp_path / "other", "qwen2_5_omni", seed=1)
    invoke("convert", other.directory, tmp_path / "orbax")
    assert "FAILS" in invoke("verify", omni.directory, tmp_path / "orbax", status=1).stdout


def test_a_wrong_rule_is_refused_before_anything_is_loaded():
    message = invoke("run", "-m", "no/such-model", "-p", "x", "-r", "generated->", status=2).stderr
    assert "generated->" in message


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("generated->image", "no image tokens"),
        ("smell->video", "unknown token type 'smell'"),
        ("generated,video,0,35", "0:8"),
        ("generated->video@0:4#h9", "0:4"),
        ("video[0s:2s]->audio", "no such edge"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule: str, reason: str, clip: Path, omni: TinyCheckpoint):
    message = invoke("run", "-m", omni.directory, "--video", clip, "-p", PROMPT, "-r", rule, status=2).stderr
    assert reason in message


def test_help_imports_nothing_heavy():
    """What makes `avjax --help` instant."""
    code = "import sys, avjax.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(modules)


def test_inspect_opens_no_clip_in_its_own_process(clip: Path, omni: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch):
    def crash(path: Path) -> None:
        raise AssertionError(f"{path} is opened here")

    for name in ("media_kind", "sound_offset_seconds", "has_sound"):
        monkeypatch.setattr(decode, name, crash)
    assert "seconds" in invoke("inspect", clip, "-m", omni.directory).stdout


def test_a_clip_that_its_decoder_dies_of_leaves_a_message(
    clip: Path, omni: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(isolated, "WORKER", "tests.media.faulty_worker")
    shutil.copy(clip, tmp_path / "crash.mp4")
    for arguments in (
        ["inspect", tmp_path / "crash.mp4", "-m", omni.directory],
        ["run", "-m", omni.directory, "-p", "What?", "--video", tmp_path / "crash.mp4"],
    ):
        refused = invoke(*arguments, status=2)
        assert "SIGSEGV" in refused.stderr and "crash.mp4" in refused.stderr
