"""Hugging Face to avjax: into memory, or onto disk as an Orbax directory."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from avjax.checkpoint.huggingface import CheckpointError, open_source
from avjax.checkpoint.matching import Matching, match_parameters
from avjax.checkpoint.naming import Naming
from avjax.checkpoint.orbax import PARAMS
from avjax.families.registry import read_config
from avjax.models.config import read_json
from avjax.provenance import CONVERTED as PROVENANCE
from avjax.provenance import licence

WEIGHT_FILES = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)|model\.safetensors\.index\.json|\..*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a converted checkpoint came from, and what an export needs to write the same names again."""

    source: str
    revision: str | None
    licence: str | None
    prefix: str
    spellings: dict[str, str]
    aliases: tuple[str, ...]
    skipped_tensors: int
    avjax_version: str

    @property
    def naming(self) -> Naming:
        return Naming(self.prefix, self.spellings)

    @classmethod
    def read(cls, directory: Path) -> "Provenance":
        path = directory / PROVENANCE
        if not path.is_file():
            raise CheckpointError(f"{directory}: expected {PROVENANCE}, found none; is this a converted checkpoint?")
        raw = read_json(path)
        raw = {"spellings": {}, **raw}  # which those of the first versions do not have
        if raw.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise CheckpointError(f"{path}: expected what avjax convert writes, got {sorted(raw)}; convert again")
        return cls(**{**raw, "aliases": tuple(raw["aliases"])})


def convert(source_path: str | Path, target: str | Path) -> Matching:
    """Writes an Orbax checkpoint in the source's own dtype, with its config, tokenizer and preprocessor files.

    Parameters are streamed: memory holds a few copies of one block, and the pages of one mapped shard. The target
    appears whole or not at all.

    Raises:
      FileExistsError: the target exists.
      ValueError: the source is damaged or does not fit its config; everything wrong is named together.
      OSError: the disk is too small, or fills up meanwhile.
    """
    from converters.streaming import save_parameters  # Orbax takes a second to import

    target = Path(target)
    refuse_existing(target)
    source = open_source(source_path)
    plan = match_parameters(source, read_config(source.config))
    with atomic_directory(target, plan.nbytes) as building:
        save_parameters(building / PARAMS, plan.parameters)
        copy_side_files(source.directory, building)
        provenance = Provenance(
            source=str(source_path),
            revision=source.revision,
            licence=licence(source.directory),
            prefix=plan.prefix,
            spellings=dict(plan.naming.spellings),
            aliases=plan.aliases,
            skipped_tensors=plan.skipped,
            avjax_version=version("avjax"),
        )
        (building / PROVENANCE).write_text(json.dumps(dataclasses.asdict(provenance), indent=2) + "\n")
    return plan


def refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():  # a link to nowhere does not "exist"
        raise FileExistsError(f"{target}: already exists; remove it or choose another target directory")


@contextlib.contextmanager
def atomic_directory(target: Path, num_bytes: int) -> Iterator[Path]:
    """A directory to build in, which becomes `target` when the block succeeds and vanishes when it fails."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < num_bytes:
        raise OSError(
            f"{target}: needs {num_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; make room first"
        )
    building = target.with_name(f".{target.name}.partial-{os.getpid()}")
    building.mkdir()
    try:
        yield building
        building.rename(target)
    except Exception as error:
        # TensorStore and safetensors report a full disk as errors of other types.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(
            errno.ENOSPC, f"the disk is full, nothing was kept; make room first ({error})", str(target)
        ) from error
    finally:
        _remove(building)


def _remove(directory: Path) -> None:
    """Removes a directory that other writers, not told yet of an error, may still put files into for a moment."""
    for _ in range(20):
        if not directory.exists():
            return
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.1)


def copy_side_files(source: Path, target: Path) -> None:
    """Config, tokenizer, preprocessor, generation and licence files: all that is not weights."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not WEIGHT_FILES.fullmatch(path.name) and path.name != PROVENANCE:
            shutil.copyfile(path, target / path.name)
