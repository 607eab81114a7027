"""Stores: parts appear whole, are claimed once, and are read only as they were written."""

import json
import re
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from avjax.runs.store import Claim, Store

DATA = bytes(range(256)) * 10


class Bucket(MemoryFileSystem):
    """An object store in memory, under gs://."""

    protocol = ("gcs", "gs")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(re.sub("^gc?s://", "memory://", path))


@pytest.fixture(params=["local", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return begun(Store(tmp_path / "run"))
    for protocol in ("gcs", "gs"):
        fsspec.register_implementation(protocol, Bucket, clobber=True)
    return begun(Store(f"gs://{tmp_path.name}/run"))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return begun(Store(tmp_path / "run"))


def begun(store: Store) -> Store:
    store.begin({"identity": {"seed": 1}})
    return store


def written(store: Store, block: str, data: bytes = DATA) -> None:
    with store.claimed(block) as claim:
        assert claim is not None
        store.write(claim, data)


def files(store: Store) -> list[str]:
    root = Path(store.path)
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_a_part_is_read_as_it_was_written(store: Store):
    assert store.parts() == {}
    written(store, "aa")
    written(store, "bb", b"other")
    parts = store.parts()
    assert list(parts) == ["aa", "bb"]
    assert store.load(parts["aa"]) == DATA and store.load(parts["bb"]) == b"other"
    with store.claimed("aa") as claim:
        assert claim is None, "it is done"
    store.tidy()
    assert store.path.exists() and [p.name for p in store.path.iterdir() if p.name == "claims"] == []


def test_a_local_run_leaves_its_parts_alone(local: Store):
    written(local, "aa")
    local.tidy()
    assert [re.sub(r"\.\w{32}\.", ".CHECKSUM.", name) for name in files(local)] == [
        "cells/aa.CHECKSUM.parquet",
        "run.json",
    ]


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "longer"])
def test_damage_is_named_and_put_aside(store: Store, change: str):
    written(store, "aa")
    written(store, "bb")
    part = store.parts()["aa"]
    middle = len(DATA) // 2
    flipped = DATA[:middle] + bytes([DATA[middle] ^ 1]) + DATA[middle + 1 :]
    part.write_bytes({"flip": flipped, "cut": DATA[:-1], "empty": b"", "longer": DATA + b"\0"}[change])
    with pytest.raises(
        ValueError, match=rf"{re.escape(part.name)}: expected the parquet file .* got [\d,]+ bytes.*--repair"
    ):
        store.load(part)
    assert [p.name for p in store.put_aside(store.damaged())] == [part.name]
    assert list(store.parts()) == ["bb"] and store.put_aside(store.damaged()) == []
    written(store, "aa")
    assert store.load(store.parts()["aa"]) == DATA
    store.parts()["aa"].write_bytes(b"again")
    assert len(store.put_aside(store.damaged())) == 1 and list(store.parts()) == ["bb"]


def test_a_claim_is_one_process_s(local: Store):
    with local.claimed("aa") as first:
        assert first is not None
        with Store(local.path).claimed("aa") as second:
            assert second is None
        with Store(local.path).claimed("bb") as other:
            assert other is not None
        local.write(first, DATA)
        with Store(local.path).claimed("aa") as late:
            assert late is None
    assert [name for name in files(local) if name.startswith("claims")] == []


def test_a_claim_that_fails_can_be_had_again(local: Store):
    with pytest.raises(RuntimeError), local.claimed("aa") as claim:
        assert claim is not None
        raise RuntimeError("computing failed")
    assert files(local) == ["run.json"]
    written(local, "aa")


def test_what_a_dead_process_left_is_taken_over(local: Store):
    local.claims.mkdir()
    (local.claims / "aa").write_bytes(b"half a part, longer than the whole one will be" * 100)
    (local.claims / "bb").write_bytes(b"")
    written(local, "aa")
    assert local.load(local.parts()["aa"]) == DATA
    written(local, "bb")
    (local.claims / "bb").write_bytes(b"")  # died between its claim and its look at what is done
    with local.claimed("cc") as claim:
        assert claim is not None
        local.tidy()
        assert [p.name for p in local.claims.iterdir()] == ["cc"], "a living claim stays"
    local.tidy()
    assert not local.claims.exists()


def test_writers_of_one_block_without_locks_leave_one_part(store: Store):
    store.local = False  # as on an object store: nothing is claimed
    written(store, "aa", b"first")
    store.write(Claim("aa", None), b"second")
    store.write(Claim("aa", None), b"first")
    assert len(list(store.cells.iterdir())) == 1
    assert store.load(store.parts()["aa"]) in (b"first", b"second")


def test_a_run_is_gone_on_with(store: Store):
    again = Store(str(store.path))
    assert again.begin({"identity": {"seed": 2}})["identity"] == {"seed": 1}, "the first one's stays"
    again.amend({"samples": {"a": "1"}})
    assert store.read() == {"format": 1, "identity": {"seed": 1}, "samples": {"a": "1"}}


def test_other_directories_are_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="expected a run or an empty directory, got other files; choose another"):
        begun(Store(tmp_path))
    with pytest.raises(ValueError, match=r"expected a run, got no run\.json there"):
        Store(tmp_path).read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"format": 2}), "expected format 1, got 2; use the avjax that wrote it"),
        ("{", "expected a file written by avjax, got something else"),
        ("[]", "expected a file written by avjax, got something else"),
    ],
)
def test_run_json_of_others_is_refused(local: Store, text: str, message: str):
    (local.path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        local.read()


def test_failures_are_kept_until_they_are_forgotten(store: Store):
    assert store.failures() == {}
    store.report_failure("12", {"sample": "a", "reason": "no sound"})
    store.report_failure("12", {"sample": "a", "reason": "no picture"})
    assert store.failures() == {"12": {"sample": "a", "reason": "no picture"}}
    store.forget_failure("12")
    store.forget_failure("12")
    assert store.failures() == {}
