"""The files that `tests.versions.build` left: what each version of transformers saved and computed."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files"
VERSIONS = sorted((path.name for path in FILES.iterdir()), key=lambda name: [int(n) for n in name.split(".")])


@dataclasses.dataclass(frozen=True)
class Reference:
    """A checkpoint, and what the version that saved it computes on the prompt of `tests.versions.inputs`."""

    directory: Path
    kind: str  # omni (whole), thinker or vl
    tied: bool
    tokens: list[int]  # greedy
    logits: list[list[float]]  # of each token

    @property
    def version(self) -> str:
        return self.directory.parent.name

    def __str__(self) -> str:
        return f"{self.version}-{self.directory.name}"


def references() -> list[Reference]:
    """Every checkpoint of every version."""
    return [
        Reference(FILES / version / name, **entry)
        for version in VERSIONS
        for name, entry in json.loads((FILES / version / "reference.json").read_text()).items()
    ]


@functools.cache
def probes(version: str) -> dict[str, Any]:
    """What `tests.versions.probe` found."""
    return json.loads((FILES / version / "probes.json").read_text())


def configs(pattern: str = ".*") -> dict[str, dict[str, Any]]:
    """Configs whose name matches, by version and name."""
    return {
        f"{version}/{path.stem}": json.loads(path.read_text())
        for version in VERSIONS
        for path in sorted((FILES / version / "configs").glob("*.json"))
        if re.fullmatch(pattern, path.stem)
    }
