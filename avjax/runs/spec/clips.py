"""The clips of a specification: as they are listed, or from a table."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from avjax.nearest import did_you_mean
from avjax.runs.spec.edits import Strict, Text
from avjax.runs.spec.values import repeated

MEDIA = ("video", "audio", "image")
WORDS = (None, "auto", "from_video", "none")  # in place of a sound file


class Clip(Strict):
    """A sample: its files, relative to the specification or the table, and what else is known of it."""

    name: Text | int | None = Field(None, description="By default the file's name without its ending.")
    video: Text | None = None
    audio: Text | None = Field(
        None,
        description="A sound file, 'from_video' or 'none'; by default the video's own, if model and file have it.",
    )
    image: Text | list[Text] | None = None
    labels: dict[str, str | int | float] = Field(
        {}, description="Values for the {names} in prompt, opening and answers."
    )

    @field_validator("audio", mode="before")
    @classmethod
    def _null_is_silence(cls, audio: Any) -> Any:
        """As `audio=None` in Python; a clip that does not mention its sound is heard."""
        return "none" if audio is None else audio

    @model_validator(mode="after")
    def _has_media(self) -> Self:
        if not any(getattr(self, kind) not in (None, "none", []) for kind in MEDIA):
            names = f"(labels: {', '.join(self.labels) or 'none'})"
            hint = next((hint for label in self.labels if (hint := did_you_mean(label, MEDIA))), "")
            raise ValueError(f"expected video, audio or image, got none {names}{hint}")
        return self

    @property
    def sample(self) -> str | int:
        if self.name is not None:
            return self.name
        files = [self.image] if isinstance(self.image, str) else self.image or []
        return Path(self.video or self.audio or files[0]).stem


def read_table(path: Path, directory: Path) -> list[dict[str, Any]]:
    """The clips of a table, as plain values; columns that are no file's are labels.

    Args:
      directory: put before the names of files.

    Raises:
      ValueError: there is no such table, or it cannot be read as one.
    """
    return [_clip_of(row, directory) for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"clips: expected a table, but there is no file {path}")
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if twice := repeated(reader.fieldnames or ()):
                raise ValueError(f"{path}: expected columns of different names, got {twice[0]!r} twice; rename one")
            rows: list[Any] = [{k: v for k, v in row.items() if v not in ("", None)} for row in reader]
    elif path.suffix == ".json":
        rows = json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(path).to_pylist()]
    else:
        raise ValueError(f"clips: expected a .csv, .json, .jsonl or .parquet table, got {path}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of rows with names")
    return rows


def _clip_of(row: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A row's other columns are labels."""
    own = {key: row[key] for key in ("name", *MEDIA, "labels") if row.get(key) is not None}
    if "audio" in row:  # a table of JSON says null where a clip is silent
        own["audio"] = row["audio"]
    if not isinstance(own.get("labels", {}), Mapping) or None in row:
        raise ValueError(f"clips: expected one value per column, and labels as a mapping, got the row {dict(row)}")
    labels = {key: value for key, value in row.items() if key not in own and value is not None}
    files = {kind: _beside(directory, own[kind]) for kind in MEDIA if kind in own}
    return own | files | {"labels": {**labels, **own.get("labels", {})}}


def _beside(directory: Path, given: Any) -> Any:
    if isinstance(given, list):
        return [_beside(directory, one) for one in given]
    return str(directory / given) if isinstance(given, str) and given not in ("auto", "from_video", "none") else given
