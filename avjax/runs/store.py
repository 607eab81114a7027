"""A run on disk: `run.json`, and `cells/`, a Parquet part for each block of cells that is done.

A part is named by its block and by the checksum of its bytes: `BLOCK.CHECKSUM.parquet`. It appears whole or not at all.
On a local disk a process claims a block before it computes it, by a lock that ends with the process, and the locked
file becomes the part. On an object store there are no locks: writers of one block leave one part behind.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from etils import epath

try:
    import fcntl
except ImportError:  # not on Windows; blocks are not claimed there
    fcntl = None

ATTEMPTS = 100
OLD_SECONDS = 600  # of a file that a killed process has not finished
FORMAT = 1  # of run.json and of the parts; a newer one is refused
SUFFIX = ".parquet"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A block that no other process of this machine computes; `None` for the file where nothing can be locked."""

    block: str
    file: io.FileIO | None


class StoreError(OSError):
    """A store or a log cannot be written, such as on a full disk; finished parts are kept."""


class Store:
    """The directory of one run.

    Args:
      path: local, or of an object store that `etils.epath` knows, such as gs://bucket/run.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"store: expected a directory, or gs://..., got {path!r}")
        self.path = epath.Path(path)
        self.local = "://" not in os.fspath(path)
        self.cells, self.claims, self.failed = (self.path / name for name in ("cells", "claims", "failed"))

    def begin(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Writes `run.json` where there is none. Returns its contents.

        Raises:
          ValueError: the directory holds something else, or a run of another version.
        """
        file = self.path / "run.json"
        if not file.exists():
            others = [p.name for p in self.path.iterdir()] if self.path.exists() else []
            strange = any(name != "cells" and not name.startswith(".run.json") for name in others)
            if strange and not file.exists():  # nobody has begun it between the two looks
                raise ValueError(f"{self.path}: expected a run or an empty directory, got other files; choose another")
            with self.writing():
                self.cells.mkdir(parents=True, exist_ok=True)
                self._appear(file, _json({"format": FORMAT, **about}))
        return self.read()

    def amend(self, about: Mapping[str, Any]) -> None:
        """Replaces values of `run.json`."""
        with self.writing():
            self._replace(self.path / "run.json", _json({**self.read(), **about}))

    def read(self) -> dict[str, Any]:
        """The contents of `run.json`.

        Raises:
          ValueError: it is not there, cannot be read, or is of a newer version.
        """
        file = self.path / "run.json"
        if not file.exists():
            raise ValueError(f"{self.path}: expected a run, got no run.json there")
        try:
            content = json.loads(file.read_text())
            version = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: expected a file written by avjax, got something else ({error})") from error
        if version != FORMAT:
            raise ValueError(f"{file}: expected format {FORMAT}, got {version}; use the avjax that wrote it")
        return content

    def parts(self) -> dict[str, epath.Path]:
        """The part of each block that is done. Reads names alone."""
        parts: dict[str, epath.Path] = {}
        if not self.cells.exists():
            return parts
        for name in sorted(self._names()):
            if _is_part(name):
                parts.setdefault(name.split(".")[0], self.cells / name)
        return parts

    def _names(self) -> Iterator[str]:
        if self.local:
            return iter(os.listdir(self.cells))  # noqa: PTH208
        return (path.name for path in self.cells.iterdir())

    def load(self, part: epath.Path) -> bytes:
        """A part's bytes.

        Raises:
          ValueError: they are not those that were written.
        """
        data = part.read_bytes()
        if _checksum(data) != part.name.split(".")[1]:
            raise ValueError(
                f"{part}: expected the {SUFFIX[1:]} file as it was written, got {len(data):,} bytes with another "
                "checksum; move it away, or let `avjax run SPEC --repair` do so and compute its cells again"
            )
        return data

    def damaged(self, strange: Callable[[bytes], bool] = lambda data: False) -> list[epath.Path]:
        """Parts whose bytes are not those that were written, or are `strange`. Reads all of them."""
        read = ((part, part.read_bytes()) for part in self.parts().values())
        return [part for part, data in read if _checksum(data) != part.name.split(".")[1] or strange(data)]

    def put_aside(self, parts: Iterable[epath.Path]) -> list[epath.Path]:
        """Moves parts, such as damaged ones, into `damaged/`. Returns where they are now."""
        aside = self.path / "damaged"
        moved = []
        for part in parts:
            place = aside / part.name
            if place.exists():  # a part of this name was damaged before
                place = aside / f"{part.name}.{uuid.uuid4().hex}"
            with self.writing(), suppress(FileNotFoundError):  # another process has put it aside
                aside.mkdir(parents=True, exist_ok=True)
                moved.append(part.rename(place))
        return moved

    @contextmanager
    def claimed(self, block: str) -> Iterator[Claim | None]:
        """The block for this process, or None: another process has it, or it is done."""
        if self._done(block):
            yield None
            return
        if not self.local or fcntl is None:
            yield Claim(block, None)
            return
        path = Path(self.claims / block)
        with self.writing():
            opened = self._opened(path)
        with opened as file:
            if not _locked(file, path):
                yield None
                return
            try:
                # Done by another process between the two looks.
                yield None if self._done(block) else Claim(block, file)
            finally:
                with suppress(OSError):  # a disk that has become read-only
                    if _same_file(file, path):  # it has not become the part
                        path.unlink()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises StoreError inside the block where the disk cannot be written.

        Raises:
          StoreError: it cannot.
        """
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self.path}: it cannot be written ({error.strerror or error}); finished parts are kept. Make room or "
                "make it writable, and run it again to continue"
            ) from error

    def _opened(self, path: Path) -> io.FileIO:
        """Opened for writing; another process that is done may remove the empty directory meanwhile."""
        for _ in range(ATTEMPTS):
            self.claims.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return path.open("a+b", buffering=0)  # closing it writes nothing, and so cannot fail as writing did
        raise FileNotFoundError(f"{path}: its directory keeps disappearing; is another program deleting files there?")

    def write(self, claim: Claim, data: bytes) -> epath.Path:
        """The part of a claimed block, all of it at once."""
        with self.writing():
            return self._written(claim, data)

    def _written(self, claim: Claim, data: bytes) -> epath.Path:
        part = self.cells / f"{claim.block}.{_checksum(data)}{SUFFIX}"
        if claim.file is None:
            self._appear(part, data)
            for other in sorted(self.cells.glob(f"{claim.block}.*{SUFFIX}"))[1:]:
                other.unlink(missing_ok=True)  # another process was as fast; both keep the same one
            return part
        claim.file.truncate(0)
        write_whole(claim.file, data)
        os.fsync(claim.file.fileno())
        Path(self.claims / claim.block).rename(part)
        return part

    def tidy(self) -> None:
        """Removes what processes that were killed have left of blocks that are done, as far as it can be written."""
        if not self.local or fcntl is None:
            return
        for path in Path(self.path).glob(".run.json.*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > OLD_SECONDS:
                    path.unlink()
        done, claims = self.parts(), []
        with suppress(FileNotFoundError):
            claims = list(Path(self.claims).iterdir())
        for path in claims:
            with suppress(OSError), path.open("r+b") as file:
                if path.name in done and _locked(file, path):
                    path.unlink()
        with suppress(OSError):  # others still work
            Path(self.claims).rmdir()
        for path in Path(self.path / "captures").glob(".*.partial"):
            if path.name.split(".")[1] in done:
                shutil.rmtree(path, ignore_errors=True)

    def report_failure(self, sample: str, failure: Mapping[str, Any]) -> None:
        """Keeps why a sample could not be computed; a later failure of it replaces an earlier one.

        Args:
          sample: a name of the sample's cells; a failure whose "block" is done by now is not told of.
        """
        with self.writing():
            self.failed.mkdir(parents=True, exist_ok=True)
            self._replace(self.failed / f"{sample}.json", _json(failure))

    def failures(self) -> dict[str, dict[str, Any]]:
        """Failures that `report_failure` kept, by name; those of blocks that are done by now are left out."""
        if not self.failed.exists():
            return {}
        paths = sorted(path for path in self.failed.iterdir() if path.name.endswith(".json"))
        failures = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in paths}
        done = self.parts()
        return {name: failure for name, failure in failures.items() if failure.get("block") not in done}

    def forget_failure(self, sample: str) -> None:
        with self.writing():
            (self.failed / f"{sample}.json").unlink(missing_ok=True)

    def _done(self, block: str) -> bool:
        return any(_is_part(path.name) for path in self.cells.glob(f"{block}.*{SUFFIX}"))

    def _appear(self, path: epath.Path, data: bytes) -> None:
        """The first of several writers wins on a local disk; an object store shows whole files alone."""
        if not self.local:
            path.write_bytes(data)
            return
        partial = self._partial(path)
        try:
            partial.write_bytes(data)
            with suppress(FileExistsError):
                os.link(partial, path)
        finally:
            with suppress(OSError):  # a disk that has become read-only
                partial.unlink(missing_ok=True)

    def _replace(self, path: epath.Path, data: bytes) -> None:
        if not self.local:
            path.write_bytes(data)
            return
        partial = self._partial(path)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _partial(self, path: epath.Path) -> Path:
        return Path(path).with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_whole(file: io.FileIO, data: bytes) -> None:
    """Writes all bytes, unbuffered: a full disk takes what it has room for, and refuses the rest."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _is_part(name: str) -> bool:
    return name.endswith(SUFFIX) and name.count(".") == 2


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _checksum(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _locked(file: Any, path: Path) -> bool:
    """Whether this process now holds the lock of the file that has this name."""
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return _same_file(file, path)


def _same_file(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
