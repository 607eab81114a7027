"""Runs over clips whose decoder dies, hangs or is interrupted: each is named, and the others are done."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from avjax.cli import app
from avjax.media.isolated import IsolatedReader
from avjax.runs import prepare
from avjax.runs.store import Store

FAULTY = "tests.media.faulty_worker"
COMMAND = f"""
import functools
from avjax.cli import app
from avjax.media.isolated import IsolatedReader
from avjax.runs import prepare
prepare.IsolatedReader = functools.partial(IsolatedReader, module={FAULTY!r})
app()
"""


@pytest.fixture
def faulty(spec: Path) -> Path:
    """A specification of two good clips, with files beside it that decoders die of."""
    given = yaml.safe_load(spec.read_text())
    for name in ("crash", "hang", "out_of_memory"):
        shutil.copy(spec.parent / "clip-0.mp4", spec.parent / f"{name}.mp4")
    labels = {"sound": "barking", "suggested": "ticking"}
    files = ["clip-0.mp4", "clip-1.mp4"]
    clips = [{"video": file, "labels": labels} for file in files]
    spec.write_text(yaml.safe_dump({**given, "clips": clips, "block_cells": 20}))
    return spec


def with_clips(spec: Path, *files: str, **changes: Any) -> Path:
    given = yaml.safe_load(spec.read_text())
    clips = [{"video": file, "labels": given["clips"][0]["labels"]} for file in files]
    spec.write_text(yaml.safe_dump({**given, "clips": clips, **changes}))
    return spec


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.exhaustive
def test_clips_that_decoders_die_of_are_named_and_the_others_done(faulty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "IsolatedReader", functools.partial(IsolatedReader, module=FAULTY))
    files = ("crash.mp4", "clip-0.mp4", "hang.mp4", "out_of_memory.mp4", "clip-1.mp4")
    done = run("run", with_clips(faulty, *files, decode_seconds=8))
    assert done.exit_code == 3 and "34 cells computed, 3 clips failed" in done.output
    failures = {row["sample"]: row["reason"] for row in Store(faulty.parent / "run").failures().values()}
    assert failures.keys() == {"crash", "hang", "out_of_memory"}
    assert "crash.mp4" in failures["crash"] and "SIGSEGV" in failures["crash"]
    assert "hang.mp4" in failures["hang"] and "after 8 s" in failures["hang"]
    assert "out_of_memory.mp4" in failures["out_of_memory"] and "memory" in failures["out_of_memory"]

    monkeypatch.undo()  # the files are good; a longer limit is no other run
    again = run("run", faulty, "decode_seconds=100")
    assert again.exit_code == 0 and "51 cells computed, 0 clips failed" in again.output


def test_a_plan_names_a_clip_that_its_decoder_dies_of(faulty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "IsolatedReader", functools.partial(IsolatedReader, module=FAULTY))
    planned = run("run", with_clips(faulty, "clip-0.mp4", "crash.mp4"), "--dry-run")
    assert planned.exit_code == 2 and "crash.mp4" in planned.output and "SIGSEGV" in planned.output


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("files", [("hang.mp4", "clip-0.mp4"), ("clip-0.mp4", "hang.mp4")], ids=["first", "second"])
def test_an_interrupt_waits_for_no_decoder(faulty: Path, files: tuple[str, ...], number: signal.Signals):
    log = faulty.parent / "log.jsonl"
    arguments = ["run", str(with_clips(faulty, *files, decode_seconds=500)), "--log-json", str(log)]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), *arguments], stderr=subprocess.PIPE, start_new_session=True
    )
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    if files[0] != "hang.mp4":
        while process.poll() is None and '"block"' not in log.read_text():
            time.sleep(0.05)
    time.sleep(1)  # for the decoder to begin
    os.killpg(process.pid, number)  # as a terminal does, and Slurm: workers too
    assert process.wait(timeout=60) == 75
    assert process.stderr is not None and "clips failed" in process.stderr.read().decode()
    process.stderr.close()
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events[-1] == "stopped" and "failed" not in events
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, 0)


def test_limits_are_checked_early(faulty: Path):
    refused = run("run", faulty, "decode_seconds=0")
    assert refused.exit_code == 2 and "decode_seconds: expected greater than 0" in " ".join(refused.output.split())
