"""What a run says of itself, and what it does when its disk fails."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from typer.testing import CliRunner

from avjax.cli import app
from avjax.cli.runs import FAILED, UNWRITTEN
from avjax.progress import _memory
from avjax.runs import store as stores
from avjax.runs.prepare import prepare_run
from avjax.runs.spec.spec import Spec
from avjax.runs.store import Store


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.exhaustive
def test_events_are_lines_of_json(spec: Path):
    log = spec.parent / "log.jsonl"
    assert run("run", spec, "block_cells=8", "--log-json", log).exit_code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", *["block"] * 6, "finished"]
    assert lines[0]["cells"] == lines[0]["missing"] == 51 == lines[-1]["computed"]
    assert sum(line["cells"] for line in lines[1:-1]) == 51
    assert all(line["cells_per_second"] > 0 and line["time"].endswith("+00:00") for line in lines[1:-1])
    assert run("run", spec, "block_cells=8", "--log-json", log).exit_code == 0  # goes on in the same file
    assert json.loads(log.read_text().splitlines()[-2]) | {"time": ""} == {
        "time": "", "event": "started", "cells": 51, "missing": 0,
    }  # fmt: skip


def test_a_failed_clip_is_an_event(spec: Path):
    (spec.parent / "broken.mp4").write_text("no film")
    clips = "clips=[{video: broken.mp4, labels: {sound: ticking, suggested: barking}}]"
    done = run("run", spec, clips, "--log-json", "-")
    assert done.exit_code == FAILED
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [(line["event"], line.get("sample")) for line in found][1] == ("failed", "broken")
    assert "broken.mp4" in found[1]["reason"]


@pytest.mark.exhaustive
def test_a_run_that_is_stopped_says_so(spec: Path, tmp_path: Path):
    told: list[tuple[str, dict[str, Any]]] = []

    def tell(event: str, **values: Any) -> None:
        told.append((event, values))

    prepared = prepare_run(Spec.read(spec, ["block_cells=8"]))
    outcome = prepared.execute(Store(tmp_path / "stopped"), stop=lambda: len(told) > 2, progress=False, tell=tell)
    assert outcome.stopped
    assert [event for event, _ in told] == ["started", "block", "block", "stopped"]
    assert told[-1][1]["computed"] == sum(values["cells"] for _, values in told[1:3]) == 17
    prepared.execute(Store(tmp_path / "stopped"), progress=False, tell=tell)
    assert told[4][1] == {"cells": 51, "missing": 34} and told[-1][0] == "finished"


@pytest.mark.parametrize(
    ("stats", "shown"),
    [
        (None, ""),
        ({}, ""),
        ({"bytes_in_use": 0}, "0.0 GB"),
        ({"bytes_in_use": 2_500_000_000, "bytes_limit": 16_000_000_000}, "2.5 of 16.0 GB"),
    ],
)
def test_device_memory_where_it_is_told(stats: dict[str, int] | None, shown: str, monkeypatch: pytest.MonkeyPatch):
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert _memory() == shown


@pytest.mark.exhaustive
def test_a_trace_is_written(spec: Path):
    assert run("run", spec, "--profile", spec.parent / "trace").exit_code == 0
    assert any(name.endswith(".xplane.pb") for name in files(spec.parent / "trace"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_keeps_what_is_finished(spec: Path, monkeypatch: pytest.MonkeyPatch, failure: int):
    real, calls = os.fsync, []

    def fsync(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise OSError(failure, os.strerror(failure))
        real(number)

    monkeypatch.setattr(stores.os, "fsync", fsync)
    stopped = run("run", spec, "block_cells=8")
    assert stopped.exit_code == UNWRITTEN
    said = " ".join(stopped.output.split())
    assert os.strerror(failure) in said and "finished parts are kept" in said and "run it again to continue" in said
    store = spec.parent / "run"
    kept = files(store)
    assert len(kept) == 3 and all(name == "run.json" or name.endswith(".parquet") for name in kept)
    resumed = run("run", spec, "block_cells=8")
    assert resumed.exit_code == 0 and "34 cells computed" in resumed.output
    assert set(kept) < set(files(store))


@pytest.mark.exhaustive
def test_a_disk_that_is_full_in_the_middle_of_a_part(spec: Path):
    """A limit on the size of files is a real refusal: some of a part is written, and what comes next is not."""
    assert run("run", spec, "block_cells=8", "--shard", "0/6").exit_code == 0
    store = spec.parent / "run"
    kept = files(store)
    size = (store / kept[0]).stat().st_size - 500
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    command = [sys.executable, "-c", f"{limited}; from avjax.cli import app; app()", "run", spec, "block_cells=8"]
    stopped = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    said = " ".join(stopped.stderr.split())
    assert stopped.returncode == UNWRITTEN, said
    assert os.strerror(errno.EFBIG) in said and "finished parts are kept" in said
    assert files(store) == kept and not (store / "claims").exists()
    assert run("run", spec, "block_cells=8").exit_code == 0
    assert len(files(store)) == 7


@pytest.mark.exhaustive
def test_merging_onto_a_disk_that_fails_goes_on_later(spec: Path, monkeypatch: pytest.MonkeyPatch):
    shares, into = [spec.parent / f"share-{i}" for i in range(2)], spec.parent / "all"
    for i, share in enumerate(shares):
        assert run("run", spec, "--shard", f"{i}/2", "--store", share).exit_code == 0

    def refuse(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "fsync", refuse)
        stopped = run("runs", "merge", *shares, "--into", into)
    assert stopped.exit_code == UNWRITTEN and "it cannot be written" in " ".join(stopped.output.split())
    assert files(into) == ["run.json"]
    assert "12 parts added" in run("runs", "merge", *shares, "--into", into).stdout


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_log_that_cannot_be_written_ends_the_run(spec: Path):
    stopped = run("run", spec, "--log-json", "/dev/full")
    said = " ".join(stopped.output.split())
    assert stopped.exit_code == UNWRITTEN and "--log-json /dev/full: it cannot be written" in said
    assert run("run", spec).exit_code == 0


def test_a_store_that_cannot_be_begun_is_told(spec: Path):
    (spec.parent / "run").write_text("a file")
    refused = run("run", spec)
    assert refused.exit_code in (2, UNWRITTEN)
    assert "run" in refused.output


@pytest.mark.exhaustive
def test_damage_is_found_before_anything_is_computed(spec: Path):
    assert run("run", spec).exit_code == 0
    part = sorted((spec.parent / "run" / "cells").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-1])
    refused = run("run", spec)
    assert refused.exit_code == 2 and "--repair" in refused.output and part.name in refused.output.replace("\n", "")


@pytest.mark.exhaustive
def test_damage_that_cannot_be_put_aside_is_told(spec: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("run", spec).exit_code == 0
    part = sorted((spec.parent / "run" / "cells").iterdir())[0]
    part.write_bytes(part.read_bytes()[:-1])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(type(Store(spec.parent).path), "rename", refuse)
        stopped = run("run", spec, "--repair")
    assert stopped.exit_code == UNWRITTEN and os.strerror(errno.EROFS) in " ".join(stopped.output.split())
    assert run("run", spec, "--repair").exit_code == 0


@pytest.mark.exhaustive
def test_options_may_come_first(spec: Path):
    assert run("run", "--store", spec.parent / "other", spec).exit_code == 0
    assert (spec.parent / "other" / "run.json").exists()


@pytest.mark.exhaustive
def test_names_and_words_decide_nothing(spec: Path, monkeypatch: pytest.MonkeyPatch):
    """A store that is called as an analysis is; a prompt that ends like a file's name."""
    monkeypatch.chdir(spec.parent)
    for order in (["spec.yaml", "--store", "knockout"], ["--store=gates", "--dry-run", "spec.yaml"]):
        found = run("run", *order)
        assert found.exit_code == 0, found.output
    assert (spec.parent / "knockout" / "run.json").exists() and not (spec.parent / "gates").exists()
    captioned = ["-m", "tiny-av", "--image", "no.png", "-p", "Describe notes.json"]
    assert "no.png" in run("run", *captioned).output
    assert "No such command 'notes.txt'" in run("run", "notes.txt").output


def test_a_key_that_occurs_twice_is_refused(spec: Path):
    spec.write_text(spec.read_text() + "prompt: Again.\n")
    refused = run("run", spec)
    assert refused.exit_code == 2 and "the key 'prompt' twice" in " ".join(refused.output.split())
    spec.write_text(spec.read_text().removesuffix("prompt: Again.\n"))
    refused = run("run", spec, "grid.layers={width: 4, width: 8}")
    assert refused.exit_code == 2 and "the key 'width' twice" in " ".join(refused.output.split())


def test_a_share_is_planned_alone(spec: Path):
    counts: list[Any] = []
    for share in ("0/1", "0/3"):
        planned = run("run", spec, "--dry-run", "--shard", share)
        assert planned.exit_code == 0, planned.output
        counts.append(planned.stdout.splitlines()[0])
    assert "x 3 samples" in counts[0] and "x 1 samples" in counts[1]


def test_other_executors_and_captures_are_planned(spec: Path):
    plans = [
        prepare_run(Spec.read(spec, words)).plan() for words in ([], ["executor=reference"], ["capture={sites: [z]}"])
    ]
    replay, reference, captured = plans
    assert reference.forwards == replay.forwards + replay.naive_forwards and reference.flops > replay.naive_flops
    assert captured.forwards == replay.forwards + 51, "a pass for each cell and the unedited run"
