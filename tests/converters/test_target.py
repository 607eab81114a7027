"""Targets that exist and disks that fill up: what was there stays, and nothing half-written is left."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

import avjax
from avjax.checkpoint.huggingface import CheckpointError
from avjax.checkpoint.matching import Parameter
from converters.convert import convert
from converters.export import export
from tests.converters.targets import assert_nothing_was_written
from tests.tiny_hf import TinyCheckpoint


@pytest.mark.parametrize("kind", ["directory", "file", "broken link"])
def test_a_target_that_exists_is_left_alone(kind: str, omni: TinyCheckpoint, tmp_path: Path):
    target = tmp_path / "target"
    if kind == "directory":
        target.mkdir()
        (target / "precious").write_text("precious")
    elif kind == "file":
        target.write_text("precious")
    else:
        target.symlink_to(tmp_path / "gone")
    convert(omni.directory, tmp_path / "converted")
    before = sorted(tmp_path.rglob("*"))
    for call in (lambda: convert(omni.directory, target), lambda: export(tmp_path / "converted", target)):
        with pytest.raises(FileExistsError, match=f"{target}: already exists"):
            call()
    assert sorted(tmp_path.rglob("*")) == before


NO_SPACE = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    # As TensorStore and safetensors put it; seen on a file system that was full.
    "tensorstore": ValueError('RESOURCE_EXHAUSTED: Error writing local file "6.0": No space left on device [28]'),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


def assert_the_disk_is_full(call: Callable[[], object], target: Path) -> None:
    with pytest.raises(OSError, match=r"the disk is full.*make room first") as caught:
        call()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert_nothing_was_written(target)


@pytest.mark.parametrize("error", ["python", "tensorstore"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves other writes waiting
def test_a_disk_that_fills_up_leaves_nothing(
    error: str, omni: TinyCheckpoint, target: Path, monkeypatch: pytest.MonkeyPatch
):
    written = 0

    def blocks(self: Parameter, original=Parameter.blocks):
        nonlocal written
        for block in original(self):
            if written >= 100:  # several writers count
                raise NO_SPACE[error]
            yield block
            written += 1

    monkeypatch.setattr(Parameter, "blocks", blocks)
    assert_the_disk_is_full(lambda: convert(omni.directory, target), target)
    assert written >= 100
    monkeypatch.undo()
    convert(omni.directory, target)  # nothing is in the way of a second attempt
    avjax.load(target)


def test_a_disk_that_fills_up_at_the_last_file_leaves_nothing(
    omni: TinyCheckpoint, target: Path, monkeypatch: pytest.MonkeyPatch
):
    def copyfile(source: Path, copy: Path) -> None:
        Path(copy).write_bytes(b"{")
        raise NO_SPACE["python"]

    monkeypatch.setattr("converters.convert.shutil.copyfile", copyfile)
    assert_the_disk_is_full(lambda: convert(omni.directory, target), target)


def test_a_disk_that_fills_up_during_an_export_leaves_nothing(
    omni: TinyCheckpoint, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
):
    convert(omni.directory, tmp_path / "converted")
    monkeypatch.setattr("converters.export.SHARD_BYTES", 100_000)
    files = []

    def write(arrays, path: Path, original=export.__globals__["save_file"], **options) -> None:
        if len(files) == 2:
            raise NO_SPACE["safetensors"]
        original(arrays, path, **options)
        files.append(path)

    monkeypatch.setattr("converters.export.save_file", write)
    assert_the_disk_is_full(lambda: export(tmp_path / "converted", target), target)
    assert len(files) == 2


def test_a_disk_that_is_too_small_is_refused_at_once(
    omni: TinyCheckpoint, target: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    monkeypatch.setattr(Parameter, "blocks", None)  # nothing is read
    with pytest.raises(OSError, match=rf"{target}: needs .* GB, the disk has .* GB free; make room first"):
        convert(omni.directory, target)
    assert_nothing_was_written(target)


def test_an_export_wants_a_whole_converted_checkpoint(omni: TinyCheckpoint, tmp_path: Path, target: Path):
    with pytest.raises(CheckpointError, match=r"expected avjax\.json, found none"):
        export(omni.directory, target)
    convert(omni.directory, tmp_path / "converted")
    for name in ("decoder.final_norm.scale", "audio.conv1.bias"):
        (gone := tmp_path / "converted" / "params" / name).rename(tmp_path / gone.name)
    with pytest.raises(ValueError, match=r"\n  audio\.conv1\.bias: absent\n  decoder\.final_norm\.scale: absent\n"):
        export(tmp_path / "converted", target)
    assert_nothing_was_written(target)
